"""How an exchange with a remote failed (pure)."""

from enum import StrEnum


class Cause(StrEnum):
    UNREACHABLE = "unreachable"
    TLS = "tls"
    FORBIDDEN = "forbidden"
    """An address that no bridge may connect to."""
    TOO_SLOW = "too slow"
    CUT = "cut"
    """The connection ended in the middle of a request."""
    NOT_HTTP = "not http"
    TOO_LARGE = "too large"


class Failure(Exception):
    """No answer, or no whole one; the text is for people and holds no secret. `stale`: an old connection had been closed."""

    def __init__(self, cause: Cause, text: str, *, stale: bool = False) -> None:
        super().__init__(text)
        self.cause = cause
        self.stale = stale
