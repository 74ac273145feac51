"""What waits to be written to one link: two lanes, drained into one message whenever the socket is ready (design D2).

Control (CREDIT, CANCEL, OPEN, refusals) goes first, then what the gossip engine has, then data. Gossip is pulled, not queued, so
that a slow peer costs no memory for it. Data is queued, and bounded by the credit of the streams. Control is bounded by `check`,
which the link's reader calls.

OPEN travels with control so that a CANCEL can never overtake it.
"""

from collections import deque
from collections.abc import Callable

import trio

from meshnode.errors import PeerError
from meshnode.wire.codec import encode
from meshnode.wire.messages import Body, Cancel, Credit, Open, StreamChunk, StreamEnd, StreamError, StreamProgress

MAX_WRITTEN = 64 * 1024
"""One message; a larger one would hold up what comes behind it, and block the loop for longer than a millisecond."""
_MAX_CONTROL = 4096
"""Frames. The open streams of a link need a few hundred."""


class Lanes:
    """Frames in the order in which they will be sent."""

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._data: deque[tuple[int, bytes]] = deque()
        self._wake = trio.Event()
        self._idle = trio.Event()

    def control(self, frame: Open | Cancel | Credit | StreamError) -> None:
        self._control.append(encode(frame))
        self.wake()

    def data(self, frame: Body | StreamChunk | StreamProgress | StreamEnd | StreamError) -> None:
        self._data.append((frame.stream, encode(frame)))
        self.wake()

    def check(self) -> None:
        """Raises PeerError when the peer makes us answer, and does not read the answers."""
        if len(self._control) > _MAX_CONTROL:
            raise PeerError(f"{_MAX_CONTROL} control frames wait for it to read", close_code=4429)

    def discard(self, stream: int) -> None:
        """Forget the data that `stream` still had to send."""
        self._data = deque(item for item in self._data if item[0] != stream)

    def wake(self) -> None:
        """Something may be there to write: the caller's, or the gossip engine's."""
        self._wake.set()
        if self._idle.is_set():
            self._idle = trio.Event()

    async def wait_wake(self) -> None:
        """Until the next `wake`; what was drained before is taken to be written."""
        if not self._wake.is_set():
            self._idle.set()
        await self._wake.wait()
        self._wake = trio.Event()

    async def wait_idle(self) -> None:
        """Until everything has been written."""
        while not self._idle.is_set():
            await self._idle.wait()

    def drain(self, pull: Callable[[int], bytes | None]) -> bytes:
        """The next message, empty when there is nothing. `pull` gives the gossip engine's next frame of at most so many bytes."""
        frames: list[bytes] = []
        room = MAX_WRITTEN
        while self._control and len(self._control[0]) <= room:
            frames.append(self._control.popleft())
            room -= len(frames[-1])
        while room > 0 and (frame := pull(room)) is not None:
            frames.append(frame)
            room -= len(frame)
        while self._data and len(self._data[0][1]) <= room:
            frames.append(self._data.popleft()[1])
            room -= len(frames[-1])
        return b"".join(frames)
