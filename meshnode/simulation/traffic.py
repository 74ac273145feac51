"""What a process has sent as a member, handshakes apart (pure)."""

from collections import Counter
from collections.abc import Sequence

MESSAGE_OVERHEAD = 6 + 22
"""WebSocket's and TLS's bytes around each message."""


class Traffic:
    """Of one life."""

    def __init__(self) -> None:
        self.frames = 0
        self.frame_bytes = 0
        self.messages = 0
        self.kinds: Counter[int] = Counter()
        """How many frames of each kind."""

    def sent(self, frames: Sequence[bytes]) -> None:
        """One message of these frames. The kind is the second byte: a frame is a short msgpack array."""
        self.frames += len(frames)
        self.frame_bytes += sum(map(len, frames))
        self.messages += 1
        self.kinds.update(frame[1] for frame in frames)

    @property
    def socket_bytes(self) -> int:
        """As written to a socket, TCP/IP apart."""
        return self.frame_bytes + MESSAGE_OVERHEAD * self.messages
