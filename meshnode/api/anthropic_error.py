"""Anthropic's error object, its types and its statuses (pure).

Its client tells errors apart by their status, and asks again after 408, 409, 429 and everything from 500 on.
"""

import msgspec

from meshnode.errors import ContextTooLong, MeshnodeError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def status_of(error: MeshnodeError) -> int:
    """529 is Anthropic's own for a server that is too busy."""
    return 529 if error.kind == "overloaded_error" else error.status


def error_object(error: MeshnodeError, request_id: str) -> bytes:
    """As JSON, the hint in its message. Agents look for `prompt is too long` to know when to shorten a conversation."""
    status = status_of(error)
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = f"prompt is too long: {error}" if isinstance(error, ContextTooLong) else str(error)
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})
