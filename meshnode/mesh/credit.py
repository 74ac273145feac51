"""Credit: how much of one stream's data may be under way in one direction (pure).

Each direction of a stream starts with 64 KiB. A data frame costs 16 bytes and its payload: for BODY the bytes of `data`, for
CHUNK the UTF-8 bytes of `text` and of `reasoning`, the bytes of `token_ids`, for each token in `logprobs` 16 bytes and its text,
and for each of `tool_calls` 16 bytes and the UTF-8 bytes of its texts. No other frame costs anything: there is one OPEN and one
END or ERROR, and of PROGRESS only the last counts. The receiver gives back what its reader has taken, when that is half of the
window or more; so a frame must not cost more than half of the window, or both ends could wait for each other.

A frame that costs more than the sender's credit must wait; a peer that sends it all the same, or that gives more credit than the
window has, breaks the protocol: its link is closed with 4429.
"""

from meshnode.errors import PeerError
from meshnode.inference import TokenLogprob, ToolCall
from meshnode.wire.messages import Body, StreamChunk

WINDOW = 64 * 1024
_FRAME = 16
"""Also of a log-probability and of a tool call. So that empty frames cannot be sent without end."""


def cost(frame: Body | StreamChunk) -> int:
    match frame:
        case Body():
            return _FRAME + len(frame.data)
        case StreamChunk():
            said = len(frame.text.encode()) + len(frame.reasoning.encode()) + sum(map(_cost_of_call, frame.tool_calls))
            return _FRAME + said + len(frame.token_ids) + sum(map(_cost_of, frame.logprobs))


def _cost_of_call(call: ToolCall) -> int:
    return _FRAME + sum(len(text.encode()) for text in (call.id, call.name, call.arguments))


def _cost_of(token: TokenLogprob) -> int:
    return _FRAME + len(token.text) + sum(_FRAME + len(other.text) for other in token.top)


class Outgoing:
    """What we may still send."""

    def __init__(self) -> None:
        self._left = WINDOW

    def take(self, cost: int) -> bool:
        """Whether a frame may be sent now; if so, it is paid for."""
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def give(self, amount: int) -> None:
        self._left += amount
        if self._left > WINDOW:
            raise PeerError(f"credit for more than the window of {WINDOW} bytes", close_code=4429)


class Incoming:
    """What the peer may still send, and what we owe it."""

    def __init__(self) -> None:
        self._left = WINDOW
        self._taken = 0

    def arrived(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise PeerError(f"more than the {WINDOW} bytes that a stream may have under way", close_code=4429)

    def taken(self, cost: int) -> int:
        """Our reader has taken so much. How much credit to give now: nothing until it is worth a frame."""
        self._taken += cost
        if 2 * self._taken < WINDOW:
            return 0
        given, self._taken = self._taken, 0
        self._left += given
        return given
