"""A request that we asked a peer to run: our end of its stream."""

from collections import deque
from typing import assert_never

import trio

from meshnode.errors import LinkLost, MeshnodeError, PeerError, from_code
from meshnode.inference import Chunk, Event, Finish, Progress
from meshnode.mesh import credit
from meshnode.mesh.lanes import Lanes
from meshnode.wire.codec import unpack_ids
from meshnode.wire.messages import Body, Cancel, Credit, Open, StreamChunk, StreamEnd, StreamError, StreamProgress

SILENCE_S = 16.0
"""A peer reports every second: who asks is impatient earlier, if there is somebody else to ask, and this is for the others."""
_PIECE = 16 * 1024
"""Of the body: half of what a frame may carry, so that what others send can go in between."""


class Asked:
    """The events of one request (an `Events`). The link's reader puts frames in, without ever waiting; one task takes events out.

    The body goes out as far as the peer's credit reaches, each time that some comes: no task is needed for it.
    """

    def __init__(self, stream: int, body: bytes, *, lanes: Lanes, peer: str) -> None:
        self.stream = stream
        self.is_over = False
        """Nothing more will come from the peer, or is wanted."""
        self._lanes = lanes
        self._peer = peer
        self._body = deque(body[start : start + _PIECE] for start in range(0, len(body), _PIECE))
        self._out = credit.Outgoing()
        self._in = credit.Incoming()
        self._ready: list[Event] = []
        self._cost = 0
        """Of the chunks in `_ready`."""
        self._failure: MeshnodeError | None = None
        self._changed = trio.Event()
        lanes.control(Open(stream=stream, body_bytes=len(body)))
        self._send_body()

    def __aiter__(self) -> "Asked":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        await trio.lowlevel.checkpoint()
        while not self._ready and not self.is_over:
            await self._wait_change()
        if self._ready:
            return self._take()
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    async def _wait_change(self) -> None:
        """Raises LinkLost when the peer has been silent for too long."""
        with trio.move_on_after(SILENCE_S) as silence:
            await self._changed.wait()
        if silence.cancelled_caught:
            raise LinkLost(f"{self._peer} has said nothing about the request for {SILENCE_S:.0f} s.")

    def _take(self) -> tuple[Event, ...]:
        batch = tuple(self._ready)
        self._ready.clear()
        if not self.is_over:
            self._changed = trio.Event()
            if given := self._in.taken(self._cost):
                self._lanes.control(Credit(stream=self.stream, bytes=given))
        self._cost = 0
        return batch

    def cancel(self) -> None:
        """Nobody wants the rest. After the end this does nothing."""
        if not self.is_over:
            self.is_over = True
            self._lanes.discard(self.stream)
            self._lanes.control(Cancel(stream=self.stream))

    def fail(self, error: MeshnodeError) -> None:
        """There will be nothing more; what has arrived is still handed out first."""
        if not self.is_over:
            self._failure = error
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self._changed.set()

    def receive(self, frame: Credit | StreamProgress | StreamChunk | StreamEnd | StreamError) -> None:
        """Raises PeerError when the peer exceeds its credit."""
        match frame:
            case Credit():
                self._out.give(frame.bytes)
                self._send_body()
            case StreamProgress():
                self._put_progress(Progress(phase=frame.phase, done=frame.done, total=frame.total))
            case StreamChunk():
                self._put_chunk(frame)
            case StreamEnd():
                self._ready.append(frame.end)
                self._end()
            case StreamError():
                self._lanes.discard(self.stream)
                self.fail(from_code(frame.code, frame.message, param=frame.param, retry_after=frame.retry_after))
            case _:
                assert_never(frame)

    def _put_progress(self, progress: Progress) -> None:
        """Only the last of several that wait counts, so that they need no credit."""
        if self._ready and isinstance(self._ready[-1], Progress):
            self._ready.pop()
        self._ready.append(progress)
        self._changed.set()

    def _put_chunk(self, frame: StreamChunk) -> None:
        cost = credit.cost(frame)
        self._in.arrived(cost)
        self._cost += cost
        try:
            finish = Finish(frame.finish) if frame.finish else None
        except ValueError as error:
            raise PeerError("StreamChunk.finish: no reason that is known") from error
        ids = unpack_ids(frame.token_ids)
        chunk = Chunk(
            choice=frame.choice,
            text=frame.text,
            token_ids=ids,
            finish=finish,
            logprobs=frame.logprobs,
            reasoning=frame.reasoning,
            tool_calls=frame.tool_calls,
            stop=frame.stop,
        )
        self._ready.append(chunk)
        self._changed.set()

    def _send_body(self) -> None:
        while self._body and self._out.take(credit.cost(piece := Body(stream=self.stream, data=self._body[0]))):
            self._body.popleft()
            self._lanes.data(piece)
