"""The inference streams of one link, by id.

The end that opens a stream chooses its id: odd where it dialled the link, even where it accepted, rising, never used twice. A
frame for a stream that is over is ignored, because it may have been under way when the stream ended; one for a stream that never
was breaks the protocol.

Limits, per link and direction: 256 streams, and 32 MiB of requests that peers have us hold. An OPEN beyond them is answered
`overloaded`: that is load, not malice. Credit bounds everything else (`credit.py`).
"""

from collections.abc import Callable
from typing import assert_never

from meshnode.errors import LinkLost, Overloaded, PeerError
from meshnode.mesh.asked import Asked
from meshnode.mesh.lanes import Lanes
from meshnode.mesh.served import Served
from meshnode.wire.codec import MAX_REQUEST
from meshnode.wire.messages import (
    Body,
    Cancel,
    Credit,
    Data,
    Loads,
    Open,
    StreamChunk,
    StreamEnd,
    StreamError,
    StreamProgress,
)

MAX_STREAMS = 256
MAX_HELD_BYTES = 4 * MAX_REQUEST
RETRY_AFTER_S = 1.0


class Streams:
    """`start` begins to run a stream that the peer opened; `load` is ours, to be sent with answers."""

    def __init__(
        self, lanes: Lanes, *, dialled: bool, peer: str, start: Callable[[Served], None], load: Callable[[], Loads]
    ) -> None:
        self._lanes = lanes
        self._peer = peer
        self._start = start
        self._load = load
        self._asked: dict[int, Asked] = {}
        self._served: dict[int, Served] = {}
        self._next_id = 1 if dialled else 2
        self._last_opened = 0 if dialled else -1
        """By the peer."""
        self._lost: str | None = None

    def open(self, body: bytes) -> Asked:
        """Ask the peer. Raises Overloaded at the limit, and LinkLost when the link is gone."""
        if self._lost is not None:
            raise LinkLost(self._lost)
        if len(self._asked) >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} requests are under way to {self._peer}.", retry_after=RETRY_AFTER_S)
        asked = Asked(self._next_id, body, lanes=self._lanes, peer=self._peer)
        self._asked[asked.stream] = asked
        self._next_id += 2
        return asked

    def close(self, asked: Asked) -> None:
        """Nobody reads it any more: cancel it, unless it is over."""
        asked.cancel()
        self._asked.pop(asked.stream, None)

    def finished(self, served: Served) -> None:
        """Its task is done."""
        del self._served[served.stream]

    def lose(self, reason: str) -> None:
        """The link is gone: every stream ends with LinkLost."""
        self._lost = reason
        for asked in self._asked.values():
            asked.fail(LinkLost(reason))
        for served in self._served.values():
            served.cancel()

    def receive(self, frame: Data) -> None:
        """Raises PeerError when the peer breaks the protocol."""
        match frame:
            case Open():
                self._accept(frame)
            case Cancel():
                if (served := self._find_served(frame.stream)) is not None:
                    served.cancel()
            case Body():
                if (served := self._find_served(frame.stream)) is not None:
                    served.receive(frame)
            case Credit() if self._is_ours(frame.stream):
                self._receive_answer(frame)
            case Credit():
                if (served := self._find_served(frame.stream)) is not None:
                    served.receive(frame)
            case StreamProgress() | StreamChunk() | StreamEnd() | StreamError():
                self._receive_answer(frame)
            case _:
                assert_never(frame)

    def _receive_answer(self, frame: Credit | StreamProgress | StreamChunk | StreamEnd | StreamError) -> None:
        if not self._is_ours(frame.stream) or frame.stream >= self._next_id:
            raise PeerError(f"{type(frame).__name__} for stream {frame.stream}, which was not opened")
        asked = self._asked.get(frame.stream)
        if asked is not None and not asked.is_over:
            asked.receive(frame)

    def _is_ours(self, stream: int) -> bool:
        return stream % 2 == self._next_id % 2

    def _find_served(self, stream: int) -> Served | None:
        if self._is_ours(stream) or stream > self._last_opened or stream < 1:
            raise PeerError(f"a frame for stream {stream}, which was not opened")
        return self._served.get(stream)

    def _accept(self, frame: Open) -> None:
        if self._is_ours(frame.stream) or frame.stream <= self._last_opened:
            raise PeerError(f"OPEN of stream {frame.stream}: the id is not a new one of the peer's")
        if frame.body_bytes > MAX_REQUEST:
            raise PeerError(f"OPEN of a body of {frame.body_bytes} bytes; at most {MAX_REQUEST} are allowed")
        self._last_opened = frame.stream
        held = sum(served.body_bytes for served in self._served.values())
        if len(self._served) >= MAX_STREAMS or held + frame.body_bytes > MAX_HELD_BYTES:
            refusal = Overloaded("too many requests are under way on this link", retry_after=RETRY_AFTER_S)
            self._lanes.control(StreamError(frame.stream, refusal.code, refusal.message, None, refusal.retry_after, self._load()))
            return
        served = Served(frame.stream, frame.body_bytes, lanes=self._lanes, load=self._load)
        self._served[frame.stream] = served
        self._start(served)
