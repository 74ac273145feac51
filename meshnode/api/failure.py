"""An error as the response that makes its client do the right thing, in the client's dialect (pure)."""

import math

from meshnode.api import anthropic_error, ollama_error, openai_error
from meshnode.api.dialect import Dialect
from meshnode.api.http import Headers, Response
from meshnode.errors import MeshnodeError, MethodNotAllowed, RateLimited, ServingError, Unauthorized

_MAX_RETRY_AFTER_S = 120
"""The official clients refuse to wait longer, and then do not retry at all. A key's limit is told as it is: no guess of ours."""


class WrongMethod(MethodNotAllowed):
    """`allowed` is what the path takes, separated by commas."""

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message, hint=f"It takes {allowed}.")
        self.allowed = allowed


def failure(error: MeshnodeError, dialect: Dialect, request_id: str) -> Response:
    """`request_id` is the one that the client sees."""
    headers: Headers = (("content-type", "application/json"), ("x-meshnode-reason", error.code))
    if error.retry_after is not None:
        longest = math.inf if isinstance(error, RateLimited) else _MAX_RETRY_AFTER_S
        headers += (("retry-after", str(min(max(math.ceil(error.retry_after), 1), longest))),)
    if error.status >= 500 and not (isinstance(error, ServingError) and error.retryable):
        headers += (("x-should-retry", "false"),)  # the official clients ask again after any 5xx otherwise
    if isinstance(error, Unauthorized):
        headers += (("www-authenticate", "Bearer"),)
    if isinstance(error, WrongMethod):
        headers += (("allow", error.allowed),)
    match dialect:
        case Dialect.OPENAI:
            return Response(status=error.status, headers=headers, body=openai_error.error_object(error))
        case Dialect.ANTHROPIC:
            body = anthropic_error.error_object(error, request_id)
            return Response(status=anthropic_error.status_of(error), headers=headers, body=body)
        case Dialect.OLLAMA:
            return Response(status=error.status, headers=headers, body=ollama_error.error_object(error))
