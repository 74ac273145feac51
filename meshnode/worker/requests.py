"""The open requests of one model: those that its child works on, and those that wait until there is a child (trio)."""

from dataclasses import dataclass

import trio

from meshnode.errors import InvalidRequest, MeshnodeError, Overloaded, from_code
from meshnode.inference import Event, Phase, Progress, Request
from meshnode.worker.child import Child
from meshnode.worker.protocol import Cancel, Failure, FrameTooLarge, Submit, frame
from meshnode.worker.stream import MAX_UNREAD, Stream

MAX_WAITING = 64
"""Requests beyond the slots that a model is given."""
MAX_UNSENT = 64 * 1024 * 1024
"""Bytes of requests that no child has read yet. Their number is no bound: whoever leaves makes room for another."""

LONGEST_RETRY_S = 120.0
"""What the official clients honour."""
PROGRESS_S = 1.0
"""Between reports to requests that wait for a child."""


@dataclass(frozen=True)
class _Waiting:
    data: bytes
    stream: Stream


class Requests:
    """Each is a number, never used twice, and a `Stream`. Only `reassure` waits."""

    def __init__(self, name: str, slots: int) -> None:
        self._name = name
        self._slots = slots
        self._given: dict[int, Stream] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._last = 0
        self._asked = trio.Event()

    def __len__(self) -> int:
        return len(self._given) + len(self._waiting)

    @property
    def active(self) -> int:
        return min(len(self._given), self._slots)

    @property
    def at_work(self) -> bool:
        """Whether the child has any."""
        return bool(self._given)

    def open(
        self, request: Request, child: Child | None, *, chain: tuple[int, ...] = (), remaining_s: float = 0.0
    ) -> tuple[int, Stream]:
        """Give `request` to the child, or let it wait for one. Raises Overloaded or InvalidRequest.

        `remaining_s`: work that is left here, for which whoever is refused had better wait a part, until one of them has ended.
        """
        retry_after = min(LONGEST_RETRY_S, max(1.0, remaining_s / max(1, len(self))))
        unsent = (child.unsent if child else 0) + sum(len(waiting.data) for waiting in self._waiting.values())
        if unsent > MAX_UNSENT:
            raise Overloaded(f"The worker of {self._name} is behind with reading requests.", retry_after=retry_after)
        if len(self) >= self._slots + MAX_WAITING:
            raise Overloaded(f"{len(self)} requests for {self._name} are open on this node.", retry_after=retry_after)
        self._last += 1
        try:
            data = frame(Submit(stream=self._last, request=request, chain=chain))
        except UnicodeEncodeError as error:
            raise InvalidRequest("The messages hold half of a surrogate pair.", param="messages") from error
        except FrameTooLarge as error:
            raise InvalidRequest("The messages are too long.", param="messages") from error
        stream = Stream()
        if child:
            self._given[self._last] = stream
            child.send(data)
        else:
            self._waiting[self._last] = _Waiting(data, stream)
            stream.put(Progress(phase=Phase.LOADING))
            self._asked.set()
        return self._last, stream

    def close(self, number: int, stream: Stream, child: Child | None) -> None:
        """Its reader is gone. What a child that is gone was given is here no more, so `child` is the one that works on it."""
        self._waiting.pop(number, None)
        if self._given.pop(number, None) and not stream.finished and child:
            child.send(frame(Cancel(stream=number)))
        stream.finished = True

    def give(self, child: Child) -> None:
        """All that wait, to the child that is ready now."""
        waiting, self._waiting = self._waiting, {}
        for number, each in waiting.items():
            self._given[number] = each.stream
            child.send(each.data)

    async def reassure(self) -> None:
        """Tell those that wait that they are not forgotten, for ever."""
        while True:
            await self._asked.wait()
            while self._waiting:
                await trio.sleep(PROGRESS_S)
                for waiting in self._waiting.values():
                    waiting.stream.put(Progress(phase=Phase.LOADING))
            self._asked = trio.Event()

    def hear(self, number: int, event: Event | Failure, child: Child | None) -> None:
        """What the child has for one of them, which may be closed already."""
        stream = self._given.get(number)
        if stream is None:
            return
        if isinstance(event, Failure):
            stream.fail(from_code(event.code, event.message, param=event.param, retry_after=event.retry_after))
            return
        stream.put(event)
        if stream.overrun and not stream.finished:
            stream.fail(Overloaded(f"The reader of this answer is more than {MAX_UNREAD} tokens behind."))
            if child:
                child.send(frame(Cancel(stream=number)))

    def fail_given(self, error: MeshnodeError) -> None:
        """The child is gone."""
        given, self._given = self._given, {}
        for stream in given.values():
            stream.fail(error)

    def refuse_waiting(self, error: MeshnodeError) -> None:
        """There will be no child."""
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.stream.fail(error)
