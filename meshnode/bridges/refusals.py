"""What a remote's answer that is none means to the caller (pure): whose fault it is, and whether another may be tried.

The words are the remote's: hostile text, cut and cleaned, with the keys that it was sent taken out (security rule 21).
"""

from collections.abc import Collection

from meshnode.bridges import openai_form
from meshnode.errors import (
    BodyTooLarge,
    ContextTooLong,
    InvalidRequest,
    MeshnodeError,
    ModelUnavailable,
    Overloaded,
    RemoteFailed,
    Unsupported,
)
from meshnode.names import printable

MAX_WORDS = 512
_HIDDEN = "[hidden]"
_MAX_RETRY_AFTER_S = 3600.0
_REQUEST_CODES = {"unsupported": Unsupported, "context_length_exceeded": ContextTooLong}


def scrubbed(text: str, secrets: Collection[str]) -> str:
    """`text` for people and logs."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, _HIDDEN)
    return printable(text, MAX_WORDS)


def words(status: int, answer: bytes, secrets: Collection[str]) -> str:
    said = scrubbed(openai_form.error_text(answer), secrets)
    return f"{said.rstrip('.')} ({status})" if said else f"status {status}"


def error(name: str, status: int, answer: bytes, *, retry_after: str = "", secrets: Collection[str] = ()) -> MeshnodeError:
    """The error for an answer with this status by the remote `name`."""
    said = words(status, answer, secrets)
    match status:
        case 400 | 405 | 415 | 422:
            kind = _REQUEST_CODES.get(openai_form.error_field(answer, "code") or "", InvalidRequest)
            param = openai_form.error_field(answer, "param")
            return kind(f"{name} refuses the request: {said}.", param=printable(param, 128) if param else None)
        case 413:
            return BodyTooLarge(f"{name} refuses the request: {said}.")
        case 401 | 403:
            return RemoteFailed(f"{name} does not accept this node's key: {said}.", hint="`meshnode remotes` says more.")
        case 404:
            return ModelUnavailable(f"{name} does not have the model any more: {said}.")
        case 429:
            return Overloaded(f"{name} takes no more requests for now: {said}.", retry_after=_seconds(retry_after))
        case 503:
            return ModelUnavailable(f"{name} cannot serve it now: {said}.", retry_after=_seconds(retry_after))
        case _:
            return RemoteFailed(f"{name} failed: {said}.")


def _seconds(retry_after: str) -> float | None:
    """Of a Retry-After in seconds; a date is not worth the trouble."""
    return min(float(retry_after), _MAX_RETRY_AFTER_S) if retry_after.isascii() and retry_after.isdigit() else None
