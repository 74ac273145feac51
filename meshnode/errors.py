"""Every error that meshnode raises on purpose, by whose fault it is.

    MeshnodeError
    ├── ConfigurationError      the operator's: a flag, a file, a token, a port; the process exits with it
    ├── RequestError            the caller's: a status 4xx, or 501; no other node would answer differently
    │   ├── InvalidRequest      400
    │   ├── Unsupported         400: named, and not possible yet
    │   ├── ContextTooLong      400
    │   ├── Unauthorized        401
    │   ├── Forbidden           403
    │   ├── NotFound            404: no such path
    │   ├── ModelNotFound       404: no node of the mesh has such a model
    │   ├── MethodNotAllowed    405
    │   ├── RequestTimeout      408: the request did not arrive in time
    │   ├── BodyTooLarge        413
    │   ├── Misdirected         421: a Host header that is not ours
    │   ├── RateLimited         429: a key's limit; `retry_after` says when it may ask again
    │   ├── HeadersTooLarge     431
    │   └── NotProvided         501: what another server of the same API does, and this one never will
    ├── ServingError            ours or a peer's: a status 5xx; `retryable` says whether another node may be tried
    │   ├── ModelUnavailable    503: known, and nowhere up now
    │   │   └── Draining        503: the node takes nothing new, or hands over what it has
    │   ├── Overloaded          503
    │   │   └── Busy            503: a peer gives back what would take much longer there than the asker thinks
    │   ├── WorkerFailed        502: the child process died or could not start
    │   ├── WorkerCrashed       500: two workers died under one request, which is taken to be the cause
    │   ├── LinkLost            502: the peer went away
    │   ├── RemoteFailed        502: a remote service that is bridged failed
    │   ├── DeadlineExceeded    504
    │   └── InternalError       500: a bug of ours
    └── PeerError               the peer's: it broke the protocol, or was refused; the link is closed with `close_code`

A request error or a serving error crosses the mesh as `(code, message, ...)` and is rebuilt by `from_code`, so that a caller sees
the same answer whichever node it asked.
"""

from typing import ClassVar


class MeshnodeError(Exception):
    """The base: what went wrong, and `hint`, the next thing to try (may be empty).

    `status` is the HTTP status, `kind` the OpenAI error type, `code` the stable word for programs. `param` names the offending
    field of a request; `retry_after` is in seconds.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ConfigurationError(MeshnodeError):
    code = "configuration"


class RequestError(MeshnodeError):
    status = 400
    kind = "invalid_request_error"
    code = "invalid_request"


class InvalidRequest(RequestError):
    pass


class Unsupported(RequestError):
    code = "unsupported"


class ContextTooLong(RequestError):
    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class Forbidden(RequestError):
    status = 403
    kind = "permission_error"
    code = "forbidden"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class Misdirected(RequestError):
    status = 421
    code = "misdirected"


class HeadersTooLarge(RequestError):
    status = 431
    code = "headers_too_large"


class RateLimited(RequestError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class NotProvided(RequestError):
    status = 501
    code = "not_provided"


class ServingError(MeshnodeError):
    retryable = True


class ModelUnavailable(ServingError):
    status = 503
    kind = "overloaded_error"
    code = "model_unavailable"


class Draining(ModelUnavailable):
    code = "draining"


class Overloaded(ServingError):
    status = 503
    kind = "overloaded_error"
    code = "overloaded"


class Busy(Overloaded):
    code = "busy"


class WorkerFailed(ServingError):
    status = 502
    code = "worker_failed"


class WorkerCrashed(ServingError):
    code = "worker_crashed"
    retryable = False


class LinkLost(ServingError):
    """`close_code` is what the peer closed the link with; 0 when it did not say."""

    status = 502
    code = "link_lost"

    def __init__(
        self, message: str, *, hint: str = "", param: str | None = None, retry_after: float | None = None, close_code: int = 0
    ) -> None:
        super().__init__(message, hint=hint, param=param, retry_after=retry_after)
        self.close_code = close_code


class RemoteFailed(ServingError):
    status = 502
    code = "remote_failed"


class DeadlineExceeded(ServingError):
    status = 504
    code = "deadline_exceeded"
    retryable = False


class InternalError(ServingError):
    code = "internal_error"
    retryable = False


class PeerError(MeshnodeError):
    """A peer sent what it may not send, or may not be linked with; `close_code` closes the link (WebSocket 4400-4499)."""

    code = "peer_error"

    def __init__(self, message: str, *, close_code: int = 4400) -> None:
        super().__init__(message)
        self.close_code = close_code


_CROSSING: dict[str, type[MeshnodeError]] = {
    error.code: error
    for error in (
        InvalidRequest, Unsupported, ContextTooLong, Forbidden, ModelNotFound, BodyTooLarge,
        ModelUnavailable, Draining, Overloaded, Busy, WorkerFailed, WorkerCrashed, LinkLost, RemoteFailed, DeadlineExceeded,
        InternalError,
    )
}  # fmt: skip


def from_code(code: str, message: str, *, param: str | None = None, retry_after: float | None = None) -> MeshnodeError:
    """The error that a peer or a worker reported; an unknown code (a newer version's) is an InternalError."""
    return _CROSSING.get(code, InternalError)(message, param=param, retry_after=retry_after)
