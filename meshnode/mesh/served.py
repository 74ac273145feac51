"""A request that a peer asked us to run: our end of its stream, and the task that runs it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, assert_never

import trio

from meshnode.backend import Events
from meshnode.errors import DeadlineExceeded, InternalError, MeshnodeError, PeerError
from meshnode.inference import Chunk, End, Event, Phase, Progress, Request, ToolCall
from meshnode.mesh import credit
from meshnode.mesh.lanes import Lanes
from meshnode.names import NodeId, short
from meshnode.wire.codec import decode_request, pack_ids
from meshnode.wire.messages import Body, Credit, Loads, StreamChunk, StreamEnd, StreamError, StreamProgress

Serve = Callable[[Request, NodeId], AbstractAsyncContextManager[Events]]
"""Runs a peer's request on our own backends."""

BODY_S = 30.0
"""For the whole request to arrive."""
QUIET_S = 1.0
"""The peer hears of each of its streams at least so often, so that it can tell busy from dead."""
READ_S = 20.0
"""A reader that takes nothing for so long loses its stream, and the slot behind it is free again."""
_PIECE_CHARS = 2048
_PIECE_IDS = 2048
_PIECE_HIDDEN = 768
"""Of one CHUNK frame: text, ids, and `_PIECE_HIDDEN` characters each of reasoning and of one tool call. With that call's id and
name and one token's log-probabilities in all less than 30 KiB, below half of the credit window."""

_log = logging.getLogger(__name__)

Cuttable = TypeVar("Cuttable", str, tuple[int, ...])


def _pieces(stream: int, chunk: Chunk) -> Iterator[StreamChunk]:
    """`chunk` as one frame, or as several when it is too large for one; `finish` and `stop` are on the last."""
    texts = _cut(chunk.text, _PIECE_CHARS)
    ids = _cut(chunk.token_ids, _PIECE_IDS)
    reasoning = _cut(chunk.reasoning, _PIECE_HIDDEN)
    calls = [piece for call in chunk.tool_calls for piece in _pieces_of_call(call)]
    count = max(1, *map(len, (texts, ids, reasoning, calls, chunk.logprobs)))
    for index in range(count):
        yield StreamChunk(
            stream,
            chunk.choice,
            texts[index] if index < len(texts) else "",
            pack_ids(ids[index] if index < len(ids) else ()),
            chunk.finish or "" if index == count - 1 else "",
            chunk.logprobs[index : index + 1],
            reasoning[index] if index < len(reasoning) else "",
            tuple(calls[index : index + 1]),
            chunk.stop if index == count - 1 else None,
        )


def _pieces_of_call(call: ToolCall) -> Iterator[ToolCall]:
    """The first with id and name, also when there are no arguments."""
    first, *others = _cut(call.arguments, _PIECE_HIDDEN) or ("",)
    yield ToolCall(call.index, call.id, call.name, first)
    yield from (ToolCall(call.index, "", "", piece) for piece in others)


def _cut(whole: Cuttable, size: int) -> Sequence[Cuttable]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


class Served:
    """The link's reader puts BODY, CREDIT and CANCEL in, without ever waiting; `run` and `reassure` are tasks of the link."""

    def __init__(self, stream: int, body_bytes: int, *, lanes: Lanes, load: Callable[[], Loads]) -> None:
        self.stream = stream
        self.body_bytes = body_bytes
        self._lanes = lanes
        self._load = load
        self._in = credit.Incoming()
        self._out = credit.Outgoing()
        self._body = bytearray()
        self._complete = trio.Event()
        self._credited = trio.Event()
        self._over = trio.Event()
        """There will be nothing more."""
        self._spoke = False
        """Something was sent since `reassure` looked last."""
        self._ended = False
        self._told = Progress(phase=Phase.QUEUED)
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """The peer wants no more, or is gone: the work stops at its next checkpoint."""
        self._lanes.discard(self.stream)
        self._scope.cancel()

    def receive(self, frame: Body | Credit) -> None:
        """Raises PeerError when the peer exceeds its credit or what it announced."""
        match frame:
            case Body():
                self._receive_body(frame)
            case Credit():
                self._out.give(frame.bytes)
                self._credited.set()
            case _:
                assert_never(frame)

    def _receive_body(self, frame: Body) -> None:
        """Kept at once, so paid back at once: its size was accepted with OPEN."""
        cost = credit.cost(frame)
        self._in.arrived(cost)
        self._body += frame.data
        if len(self._body) > self.body_bytes:
            raise PeerError(f"a body of more than the {self.body_bytes} bytes that OPEN announced")
        if len(self._body) == self.body_bytes:
            self._complete.set()
        elif given := self._in.taken(cost):
            self._lanes.control(Credit(stream=self.stream, bytes=given))

    async def run(self, serve: Serve, peer: NodeId) -> None:
        """Answer, whatever happens; a failure that is not a MeshnodeError is our bug, and the peer learns no more than that."""
        with self._scope:
            try:
                await self._answer(serve, peer)
            except MeshnodeError as error:
                self._fail(error)
            except Exception:
                _log.exception("a request of %s failed", short(peer))
                self._fail(InternalError("the serving node failed; its log says why"))
        self._over.set()

    async def _answer(self, serve: Serve, peer: NodeId) -> None:
        request = await self._wait_request()
        async with serve(request, peer) as events:
            async for batch in events:
                await self._send(batch)
        if not self._ended:
            raise InternalError("the answer stopped without an end")

    async def _wait_request(self) -> Request:
        with trio.move_on_after(BODY_S):
            if self.body_bytes:
                await self._complete.wait()
            return decode_request(bytes(self._body))
        raise DeadlineExceeded(f"the request did not arrive within {BODY_S:.0f} s")

    async def _send(self, batch: Iterable[Event]) -> None:
        for event in batch:
            match event:
                case Progress():
                    self._told = event
                    self._tell()
                case Chunk():
                    await self._send_chunk(event)
                case End():
                    self._ended = True
                    self._lanes.data(StreamEnd(self.stream, event, self._load()))
                case _:
                    assert_never(event)

    async def _send_chunk(self, chunk: Chunk) -> None:
        for piece in _pieces(self.stream, chunk):
            cost = credit.cost(piece)
            while not self._out.take(cost):
                await self._wait_credit()
            self._lanes.data(piece)
            self._spoke = True

    async def _wait_credit(self) -> None:
        with trio.move_on_after(READ_S) as slow:
            await self._credited.wait()
            self._credited = trio.Event()
        if slow.cancelled_caught:
            raise DeadlineExceeded(f"the reader took nothing of the answer for {READ_S:.0f} s")

    def _fail(self, error: MeshnodeError) -> None:
        if not self._ended:
            self._ended = True
            self._lanes.data(StreamError(self.stream, error.code, error.message, error.param, error.retry_after, self._load()))

    async def reassure(self) -> None:
        """Say after each second without anything else that the request is not forgotten, until the end."""
        while not self._over.is_set():
            self._spoke = False
            with trio.move_on_after(QUIET_S):
                await self._over.wait()
                return
            if not self._spoke and not self._ended:
                self._tell()

    def _tell(self) -> None:
        self._spoke = True
        self._lanes.data(StreamProgress(self.stream, self._told.phase, self._told.done, self._told.total))
