"""How long a client will wait for its whole answer, where it says so in a header."""

import msgspec

from meshnode.api.exchange import Exchange
from meshnode.errors import InvalidRequest
from meshnode.inference import Request
from meshnode.names import printable

HEADER = "x-meshnode-deadline-ms"
MOST_MS = 24 * 3600 * 1000


def with_deadline(exchange: Exchange, request: Request) -> Request:
    """`request` with the deadline of its client. Raises InvalidRequest for a header that is no number of milliseconds."""
    text = exchange.request.headers.get(HEADER)
    if text is None:
        return request
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_MS)) and 1 <= int(text) <= MOST_MS):
        shown = printable(text, 64)
        raise InvalidRequest(f"The header {HEADER} must be a number of milliseconds from 1 to {MOST_MS}, and is `{shown}`.")
    return msgspec.structs.replace(request, deadline_ms=int(text))
