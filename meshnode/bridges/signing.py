"""How a request to a Backend.AI manager is signed, and in which version of its API (pure).

    string to sign = METHOD \\n path with query as sent \\n date as sent \\n host:<Host> \\n content-type:<media type> \\n
                     x-backendai-version:<version> \\n hex SHA-256 of nothing
    key            = HMAC(HMAC(secret key, day of the date), Host)
    Authorization: BackendAI signMethod=HMAC-SHA256, credential=<access key>:<hex HMAC(key, string to sign)>

Source: `ai/backend/client/auth.py` 23.9.10 and `ai/backend/common/auth/utils.py` 26.9.6, which agree. What is subtle: the body is
not signed, so a captured request can be sent again with another one for 15 minutes, and TLS is what protects it; the day is that
of the date's own time zone, so dates are always UTC here; the manager refuses a date that is 15 minutes off or more.
"""

import hashlib
import hmac
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from meshnode.errors import ConfigurationError

CONTENT_TYPE = "application/json"
OLDEST = "v4.20181215"
"""Since this version the body is not hashed."""
NEWEST = "v9.20250722"
"""The newest that this bridge was tried with; managers know all older ones."""
_VERSION = re.compile(r"v([0-9]{1,3})\.([0-9]{8})", re.ASCII)
_NOTHING = hashlib.sha256(b"").hexdigest()


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"KeyPair(access_key={self.access_key!r})"


def headers(pair: KeyPair, *, method: str, target: str, host: str, version: str, now: datetime) -> tuple[tuple[str, str], ...]:
    """What a request must carry beside Host. `target` is the path with its query as sent; `now` is the manager's time in UTC."""
    assert now.tzinfo is UTC
    date = now.isoformat()
    text = "\n".join(
        (method, target, date, f"host:{host}", f"content-type:{CONTENT_TYPE}", f"x-backendai-version:{version}", _NOTHING)
    )
    key = _hmac(_hmac(pair.secret_key.encode(), now.strftime("%Y%m%d")), host)
    signature = _hmac(key, text).hex()
    return (
        ("Date", date),
        ("Content-Type", CONTENT_TYPE),
        ("X-BackendAI-Version", version),
        ("Authorization", f"BackendAI signMethod=HMAC-SHA256, credential={pair.access_key}:{signature}"),
    )


def spoken_version(server: str) -> str:
    """The version to speak with a manager that says `server`: its own, or the newest that we know if it is newer still.

    Raises ConfigurationError for one that is too old, or that is no version.
    """
    theirs = _VERSION.fullmatch(server)
    if theirs is None:
        raise ConfigurationError("It does not say which version of Backend.AI's API it speaks.", hint="Is this a manager's URL?")
    if _rank(server) < _rank(OLDEST):
        raise ConfigurationError(f"It speaks Backend.AI's API {server}; {OLDEST} or newer is needed.", hint="Update the manager.")
    return min(server, NEWEST, key=_rank)


def clock_offset(date: str, now: datetime) -> float | None:
    """Seconds to add to our clock to have the server's, by the `Date` header of an answer that came at `now`; None without one.

    The header has whole seconds, so half a second is added on average. It is far less than what the manager allows.
    """
    try:
        theirs = parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return None
    return (theirs.replace(tzinfo=theirs.tzinfo or UTC) - now).total_seconds() + 0.5


def _rank(version: str) -> tuple[int, int]:
    major, _, date = version[1:].partition(".")
    return int(major), int(date)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
