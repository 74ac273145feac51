"""From the bytes of tokens to the text that may be shown: whole characters, and nothing of a stop string (pure).

A token may end inside a character, and a stop string may begin in one token and end in another. So text is held back while it is,
or could still become, one of these.
"""

import codecs
from collections.abc import Sequence


class Text:
    """The text of one choice as it grows. `stop` is, from the push on that completes a stop string, the index of that string."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        assert all(stops), "an empty stop string would stop everything"
        self.stop: int | None = None
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def push(self, piece: bytes) -> str:
        """What may be shown now that the next token brought `piece`: up to the stop string, without it."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """The rest: what was held back did not become a stop string; half a character becomes U+FFFD."""
        shown = self._release(self._decoder.decode(b"", final=True))
        shown, self._held = shown + self._held, ""
        return shown

    def _release(self, new: str) -> str:
        if not self._stops or self.stopped:
            return "" if self.stopped else new
        text = self._held + new
        found = [(at, index) for index, stop in enumerate(self._stops) if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            self._held = ""
            return text[:at]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:count]):
            return count
    return 0
