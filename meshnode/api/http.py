"""What a request and a response are, once they are off the wire (pure)."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from meshnode.errors import InvalidRequest
from meshnode.names import printable

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One whole request: its body has arrived and is within the limit."""

    method: str
    path: str
    """Percent-decoded once, without control characters. A `%2F` is a slash by now: routes match by prefix, no file is served."""
    query: str = ""
    headers: Mapping[str, str]
    """Names in lower case; a repeated header's values are joined by a comma."""
    body: bytes = b""
    peer: str = ""
    """Address of the client."""
    local: str = ""
    """Our address as the client reached it: what a Host header may name."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer. A body that is a generator is streamed, one write for each piece; no piece is empty."""

    status: int = 200
    headers: Headers = ()
    body: bytes | AsyncGenerator[bytes, None] = field(default=b"", repr=False)


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request line's target. Raises InvalidRequest for anything but an absolute path."""
    raw, _, query = target.partition("?")
    if not raw.startswith("/"):
        raise InvalidRequest("The request's target is not a path.", hint="Ask for a path such as /v1/models; this is no proxy.")
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The request's path is not UTF-8 text.") from None
    if printable(path, len(path)) != path.strip():
        raise InvalidRequest("The request's path holds control characters.")
    return path, query


def header_text(text: str) -> str:
    """`text`, which may come from a peer, fit for a header value."""
    return printable(text, 256).encode("ascii", "replace").decode("ascii")
