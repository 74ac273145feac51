"""The open requests of one model: those that its child works on, and those that wait for their turn or for a child (trio).

The child gets as many as it has slots, and `AHEAD` more, so that it never waits for us. The others wait here, where callers take
turns by the work that they bring (`routing.queue`). What takes no slot does not wait: texts to embed, and prompts to be counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from meshnode.errors import InvalidRequest, MeshnodeError, Overloaded, from_code
from meshnode.inference import Event, Phase, Progress, Request
from meshnode.routing.ask import BYTES_PER_TOKEN
from meshnode.routing.estimate import GUESS
from meshnode.routing.queue import Queue, Ticket
from meshnode.routing.router import USUAL_OUTPUT
from meshnode.worker.child import Child
from meshnode.worker.protocol import Cancel, Failure, FrameTooLarge, Step, Submit, frame
from meshnode.worker.stream import MAX_UNREAD, Stream

MAX_WAITING = 64
"""Requests beyond the slots that a model is given."""
AHEAD = 2
"""Requests that the child has beyond its slots."""
MAX_UNSENT = 64 * 1024 * 1024
"""Bytes of requests that no child has read yet. Their number is no bound: whoever leaves makes room for another."""

LONGEST_RETRY_S = 120.0
"""What the official clients honour."""
MAX_OPEN = 1 << 16
"""For the queue, whose bound is `MAX_WAITING` here."""
PROGRESS_S = 1.0
"""Between reports to requests that wait for a child."""


@dataclass(frozen=True)
class _Waiting:
    data: bytes
    stream: Stream
    ticket: Ticket


class Requests:
    """Each is a number, never used twice, and a `Stream`. Only `reassure` waits. `work_s` estimates what one takes alone."""

    def __init__(self, name: str, slots: int, *, work_s: Callable[[Request], float] = lambda _: 1.0) -> None:
        self._name = name
        self._slots = slots
        self._given: dict[int, Stream] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._queue = Queue(max_length=MAX_OPEN, max_wait_s=math.inf)
        self._numbers: dict[Ticket, int] = {}
        self._work_s = work_s
        self._has_child = False
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

    @property
    def waiting_s(self) -> float:
        """Work of those that wait here, one after the other."""
        return sum(waiting.ticket.work_s for waiting in self._waiting.values())

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
        self._has_child = child is not None
        if child and (self._has_room() or request.inputs is not None or request.sampling.max_tokens == 0):
            self._given[self._last] = stream
            child.send(data)
        else:
            now = trio.current_time()
            work_s = self._work_s(request)
            ticket = Ticket(priority=request.priority, caller=request.caller, work_s=work_s, since=now, deadline=None)
            self._queue.add(ticket, running_s=0.0, rate=1.0, now=now)
            self._waiting[self._last] = _Waiting(data, stream, ticket)
            self._numbers[ticket] = self._last
            stream.put(self._progress())
            self._asked.set()
        return self._last, stream

    def _has_room(self) -> bool:
        """Whether the child should have one more. Those whose reader has yet to take the end do not count."""
        return not self._waiting and self._unfinished() < self._slots + AHEAD

    def _unfinished(self) -> int:
        return sum(not stream.finished for stream in self._given.values())

    def _progress(self) -> Progress:
        return Progress(phase=Phase.QUEUED if self._has_child else Phase.LOADING)

    def close(self, number: int, stream: Stream, child: Child | None) -> None:
        """Its reader is gone. What a child that is gone was given is here no more, so `child` is the one that works on it."""
        self._forget(number)
        if self._given.pop(number, None) and not stream.finished and child:
            child.send(frame(Cancel(stream=number)))
        stream.finished = True
        if child:
            self.give(child)

    def _forget(self, number: int) -> None:
        """It waits no longer."""
        if waiting := self._waiting.pop(number, None):
            self._queue.remove(waiting.ticket)
            self._numbers.pop(waiting.ticket, None)

    def give(self, child: Child) -> None:
        """As many of those that wait as the child, which is ready, should have now."""
        self._has_child = True
        while self._unfinished() < self._slots + AHEAD and (ticket := self._queue.next(trio.current_time())):
            number = self._numbers.pop(ticket)
            waiting = self._waiting.pop(number)
            self._given[number] = waiting.stream
            child.send(waiting.data)

    async def reassure(self) -> None:
        """Tell those that wait that they are not forgotten, for ever."""
        while True:
            await self._asked.wait()
            while self._waiting:
                await trio.sleep(PROGRESS_S)
                for waiting in self._waiting.values():
                    waiting.stream.put(self._progress())
            self._asked = trio.Event()

    def hear(self, number: int, event: Event | Failure, child: Child | None) -> None:
        """What the child has for one of them, which may be closed already."""
        stream = self._given.get(number)
        if stream is None:
            return
        if isinstance(event, Failure):
            stream.fail(from_code(event.code, event.message, param=event.param, retry_after=event.retry_after))
        else:
            stream.put(event)
        if stream.overrun and not stream.finished:
            stream.fail(Overloaded(f"The reader of this answer is more than {MAX_UNREAD} tokens behind."))
            if child:
                child.send(frame(Cancel(stream=number)))
        if stream.finished and child:
            self.give(child)

    def fail_given(self, error: MeshnodeError) -> None:
        """The child is gone."""
        self._has_child = False
        given, self._given = self._given, {}
        for stream in given.values():
            stream.fail(error)

    def refuse_waiting(self, error: MeshnodeError) -> None:
        """There will be no child."""
        for number, each in list(self._waiting.items()):
            self._forget(number)
            each.stream.fail(error)


def work_s(request: Request, measured: Step) -> float:
    """Seconds that it takes alone at these speeds, roughly; for whose turn it is, only the proportions count."""
    size = sum(len(message.content) for message in request.messages) + len(request.prompt or "")
    read = size / BYTES_PER_TOKEN / (measured.prefill_per_s or 1 / GUESS.read_s)
    limit = request.sampling.max_tokens
    tokens = request.n * (USUAL_OUTPUT if limit is None else min(limit, USUAL_OUTPUT))
    return read + tokens * (measured.step_s or GUESS.step_s)
