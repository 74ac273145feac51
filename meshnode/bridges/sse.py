"""Server-sent events, from bytes as they come to the data of each event (pure). Source: the HTML standard, section 9.2.6.

Only `data` counts: names, ids and comments are passed over. Lines end with LF or CR LF; the standard's lone CR is used by nobody.
"""

from collections.abc import Iterator

MAX_EVENT = 1024 * 1024
"""Bytes of one event: far beyond a token with its log-probabilities."""


class TooLong(Exception):
    """An event of more than `MAX_EVENT` bytes."""


class Lines:
    """`take` bytes and get the data of the events that are complete now; `rest` is what came last without its blank line."""

    def __init__(self) -> None:
        self._open = bytearray()
        """A line without its end."""
        self._data: list[bytes] = []
        self._size = 0

    def take(self, data: bytes) -> Iterator[bytes]:
        """Raises TooLong."""
        *lines, last = (bytes(self._open) + data).split(b"\n")
        for line in lines:
            if event := self._line(line.removesuffix(b"\r")):
                yield event
        self._open = bytearray(last)
        self._check(len(last))

    def rest(self) -> bytes:
        self._line(bytes(self._open))
        self._open.clear()
        return self._line(b"")

    def _line(self, line: bytes) -> bytes:
        """The event that this line ends, if any and if it has data."""
        if not line:
            event, self._data, self._size = b"\n".join(self._data), [], 0
            return event
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 1
            self._check(0)
        return b""

    def _check(self, more: int) -> None:
        if self._size + more > MAX_EVENT:
            raise TooLong
