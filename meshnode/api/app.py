"""The application behind the server: who may ask, which endpoint answers, and what every answer carries.

A new endpoint is a handler in `handlers.py` and one line in `ROUTES`.
"""

import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from meshnode.api import auth, handlers
from meshnode.api.exchange import Exchange, Node, json_response
from meshnode.api.http import Headers, Request, Response, header_text
from meshnode.api.openai import error_object
from meshnode.errors import InternalError, MeshnodeError, MethodNotAllowed, NotFound, ServingError, Unauthorized
from meshnode.names import printable

log = logging.getLogger("meshnode.api")

Handler = Callable[[Exchange], AbstractAsyncContextManager[Response]]

_MAX_RETRY_AFTER_S = 120
"""The official clients refuse to wait longer, and then do not retry at all."""


@dataclass(frozen=True)
class Route:
    """`path` may end with `/{id}`, which stands for the rest of the path, slashes included."""

    method: str
    path: str
    handler: Handler
    admin: bool = False

    def match(self, path: str) -> str | None:
        """What `{id}` stands for, empty without one; None when the path is another."""
        prefix, variable, _ = self.path.partition("{id}")
        if not variable:
            return "" if path == self.path else None
        return path[len(prefix) :] if path.startswith(prefix) and len(path) > len(prefix) else None


ROUTES = (
    Route("POST", "/v1/chat/completions", handlers.chat_completions),
    Route("GET", "/v1/models", handlers.models),
    Route("GET", "/v1/models/{id}", handlers.model),
    Route("GET", "/healthz", handlers.healthz),
    Route("GET", "/readyz", handlers.readyz),
    Route("GET", "/mesh/v1/status", handlers.status, admin=True),
    Route("POST", "/mesh/v1/join", handlers.join, admin=True),
    Route("POST", "/mesh/v1/remotes", handlers.add_remote, admin=True),
    Route("DELETE", "/mesh/v1/remotes/{id}", handlers.remove_remote, admin=True),
)


class App:
    """Answers the requests of one node. `hosts` are further names and addresses that a Host header may carry."""

    def __init__(self, node: Node, *, admin_secret: str, hosts: frozenset[str]) -> None:
        self._node = node
        self._admin_secret = admin_secret
        self._hosts = frozenset(host.lower() for host in hosts) | {node.name.lower()}
        self._started = int(time.time())

    @asynccontextmanager
    async def __call__(self, request: Request) -> AsyncIterator[Response]:
        """The response to `request`, whatever happens: a failure is its error object. Logs one line when it has been sent."""
        began = time.monotonic()
        exchange = self._exchange(request)
        response = Response(status=499)  # the web's word for a client that left before its answer; only the log shows it
        sent = "cut"
        try:
            async with AsyncExitStack() as work:
                try:
                    response = await work.enter_async_context(self._route(exchange))
                except MeshnodeError as error:
                    response = _error_response(error)
                except Exception:
                    log.exception("%s: an endpoint failed by a bug; please report it.", exchange.id)
                    response = _error_response(InternalError("The node failed to answer; its log says why."))
                response = replace(response, headers=self._headers(response.headers, exchange.shown_id, began))
                yield response
                sent = "sent"
        finally:
            self._log(exchange, response, sent, began)

    def refuse(self, error: MeshnodeError) -> Response:
        """The answer to what never became a request; logs it."""
        request_id = f"req-{uuid.uuid4().hex}"
        log.info("refused %d %s id=%s", error.status, error.code, request_id)
        response = _error_response(error)
        return replace(response, headers=self._headers(response.headers, request_id, time.monotonic()))

    def _exchange(self, request: Request) -> Exchange:
        """A sane id of the client's is shown again, and begins ours: ours must be unique in the mesh, whatever clients send."""
        fresh = uuid.uuid4().hex
        theirs = request.headers.get("x-request-id", "")
        if not _is_sane(theirs):
            theirs = ""
        return Exchange(
            node=self._node,
            request=request,
            id=f"{theirs}-{fresh[:12]}" if theirs else f"req-{fresh}",
            shown_id=theirs or f"req-{fresh}",
            started=self._started,
        )

    @asynccontextmanager
    async def _route(self, exchange: Exchange) -> AsyncIterator[Response]:
        request = exchange.request
        auth.check_host(request, self._hosts)
        auth.check_origin(request)
        route, rest = _find(request.method, request.path)
        if route.admin:
            auth.check_admin(request, self._admin_secret)
        async with route.handler(replace(exchange, rest=rest)) as response:
            yield response

    def _headers(self, own: Headers, request_id: str, began: float) -> Headers:
        """What every answer carries; a handler's own headers win."""
        common = {
            "x-request-id": request_id,
            "x-meshnode-node": header_text(self._node.name),
            "x-meshnode-reason": "local",
            "openai-processing-ms": str(round((time.monotonic() - began) * 1000)),
            "x-content-type-options": "nosniff",
            "content-security-policy": "frame-ancestors 'none'",
        }
        return tuple({**common, **dict(own)}.items())

    def _log(self, exchange: Exchange, response: Response, sent: str, began: float) -> None:
        request = exchange.request
        log.info(
            "%s %s %d %s %.0f ms id=%s node=%s",
            printable(request.method, 16),
            printable(request.path, 200),
            response.status,
            sent,
            (time.monotonic() - began) * 1000,
            exchange.id,
            dict(response.headers).get("x-meshnode-node", ""),
        )


def _is_sane(request_id: str) -> bool:
    return 0 < len(request_id) <= 64 and request_id.isascii() and all(char.isalnum() or char in "._:-" for char in request_id)


def _find(method: str, path: str) -> tuple[Route, str]:
    """The route and what its `{id}` stands for. HEAD is answered as GET; the server leaves the body out."""
    wanted = "GET" if method == "HEAD" else method
    found = [(route, rest) for route in ROUTES if (rest := route.match(path)) is not None]
    if not found:
        raise NotFound(f"There is no path {printable(path, 200)}.", hint=f"Try {', '.join(route.path for route in ROUTES[:3])}.")
    for route, rest in found:
        if route.method == wanted:
            return route, rest
    allowed = sorted({route.method for route, _ in found} | {"HEAD" for route, _ in found if route.method == "GET"})
    raise _WrongMethod(f"{printable(path, 200)} does not take {printable(method, 16)}.", allowed=", ".join(allowed))


class _WrongMethod(MethodNotAllowed):
    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message, hint=f"It takes {allowed}.")
        self.allowed = allowed


def _error_response(error: MeshnodeError) -> Response:
    headers: Headers = (("x-meshnode-reason", error.code),)
    if error.retry_after is not None:
        headers += (("retry-after", str(min(max(math.ceil(error.retry_after), 1), _MAX_RETRY_AFTER_S))),)
    if isinstance(error, ServingError) and not error.retryable:
        headers += (("x-should-retry", "false"),)  # the official clients ask again after any 5xx otherwise
    if isinstance(error, Unauthorized):
        headers += (("www-authenticate", "Bearer"),)
    if isinstance(error, _WrongMethod):
        headers += (("allow", error.allowed),)
    return json_response(error_object(error), status=error.status, headers=headers)
