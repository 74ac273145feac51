"""The application behind the server: who may ask, which endpoint answers, and what every answer carries.

A new endpoint is a handler in `handlers.py` and one line in `ROUTES`.
"""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from meshnode.api import administration, auth, handlers, key_endpoints, token_endpoints
from meshnode.api import ollama_endpoints as ollama
from meshnode.api.account import Account
from meshnode.api.dialect import Dialect, dialect_of
from meshnode.api.exchange import Exchange, Node
from meshnode.api.failure import WrongMethod, failure
from meshnode.api.http import Headers, Request, Response, header_text
from meshnode.api.metrics import Metrics
from meshnode.api.quota import Quota
from meshnode.api.scoped import Scoped, scope_of
from meshnode.errors import InternalError, MeshnodeError, NotFound
from meshnode.inference import Usage
from meshnode.keys import KeyRing
from meshnode.names import printable

log = logging.getLogger("meshnode.api")

Handler = Callable[[Exchange], AbstractAsyncContextManager[Response]]


@dataclass(frozen=True)
class Route:
    """`path` may end with `/{id}`, which stands for the rest of the path, slashes included."""

    method: str
    path: str
    handler: Handler
    admin: bool = False
    here: bool = False
    """Only for clients on this machine, who need no key."""

    def match(self, path: str) -> str | None:
        """What `{id}` stands for, empty without one; None when the path is another."""
        prefix, variable, _ = self.path.partition("{id}")
        if not variable:
            return "" if path == self.path else None
        return path[len(prefix) :] if path.startswith(prefix) and len(path) > len(prefix) else None


ROUTES = (
    Route("POST", "/v1/chat/completions", handlers.chat_completions),
    Route("POST", "/v1/completions", handlers.completions),
    Route("POST", "/v1/messages", handlers.messages),
    Route("POST", "/v1/messages/count_tokens", token_endpoints.count_tokens),
    *(Route("POST", f"{root}/tokenize", token_endpoints.tokenize) for root in ("", "/v1")),
    *(Route("POST", f"{root}/detokenize", token_endpoints.detokenize) for root in ("", "/v1")),
    Route("GET", "/v1/models", handlers.models),
    Route("GET", "/v1/models/{id}", handlers.model),
    Route("POST", "/v1/embeddings", handlers.embeddings),
    Route("GET", "/", ollama.greeting),
    Route("POST", "/api/chat", ollama.chat),
    Route("POST", "/api/generate", ollama.generate),
    Route("POST", "/api/embed", ollama.embed),
    Route("POST", "/api/embeddings", ollama.embeddings),
    Route("GET", "/api/tags", ollama.tags),
    Route("GET", "/api/ps", ollama.running),
    Route("POST", "/api/show", ollama.show),
    Route("GET", "/api/version", ollama.version),
    *(Route("POST", f"/api/{path}", ollama.library) for path in ("pull", "push", "create", "copy")),
    Route("DELETE", "/api/delete", ollama.library),
    Route("GET", "/healthz", handlers.healthz),
    Route("GET", "/health", handlers.healthz),
    Route("GET", "/readyz", handlers.readyz),
    Route("GET", "/metrics", handlers.metrics, here=True),
    Route("GET", "/mesh/v1/status", handlers.status, admin=True),
    Route("POST", "/mesh/v1/join", handlers.join, admin=True),
    Route("POST", "/mesh/v1/remotes", handlers.add_remote, admin=True),
    Route("DELETE", "/mesh/v1/remotes/{id}", handlers.remove_remote, admin=True),
    Route("POST", "/mesh/v1/drain", administration.drain, admin=True),
    Route("POST", "/mesh/v1/explain", administration.explain, admin=True),
    Route("GET", "/mesh/v1/keys", key_endpoints.listed, admin=True),
    Route("POST", "/mesh/v1/keys", key_endpoints.new, admin=True),
    Route("DELETE", "/mesh/v1/keys/{id}", key_endpoints.revoke, admin=True),
)


_PLAIN = frozenset(route.path for route in ROUTES if "{id}" not in route.path)
_LIKELY = ("/v1/chat/completions", "/v1/models", "/v1/messages", "/api/chat")


class App:
    """Answers the requests of one node. `hosts` are further names and addresses that a Host header may carry.

    `keyless`: whoever reaches the port may use the models, from wherever.
    """

    def __init__(
        self, node: Node, *, admin_secret: str, hosts: frozenset[str], keys: KeyRing | None = None, keyless: bool = False
    ) -> None:
        self._node = node
        self._admin_secret = admin_secret
        self._keys = KeyRing() if keys is None else keys
        self._quota = Quota(self._keys)
        self._keyless = keyless
        self._hosts = frozenset(host.lower() for host in hosts) | {node.name.lower()}
        self._started = int(time.time())
        self._metrics = Metrics(node)

    @asynccontextmanager
    async def __call__(self, request: Request) -> AsyncIterator[Response]:
        """The response to `request`, whatever happens: a failure is its error object. Logs one line when it has been sent."""
        began = time.monotonic()
        exchange = self._exchange(request)
        dialect = dialect_of(request)
        path = _path_label(request.path)
        self._metrics.begun()
        response = Response(status=499)  # the web's word for a client that left before its answer; only the log shows it
        sent = "cut"
        try:
            async with AsyncExitStack() as work:
                try:
                    response = await work.enter_async_context(self._route(exchange))
                except MeshnodeError as error:
                    self._metrics.failed(error.code)
                    response = failure(error, dialect, exchange.shown_id)
                except Exception:
                    log.exception("%s: an endpoint failed by a bug; please report it.", exchange.id)
                    self._metrics.failed(InternalError.code)
                    response = failure(InternalError("The node failed to answer; its log says why."), dialect, exchange.shown_id)
                response = replace(response, headers=self._headers(response.headers, exchange.shown_id, began, dialect))
                yield response
                sent = "sent"
        finally:
            self._metrics.ended(path, response.status)
            self._log(exchange, response, sent, began)

    def refuse(self, error: MeshnodeError) -> Response:
        """The answer to what never became a request; logs it."""
        request_id = f"req-{uuid.uuid4().hex}"
        log.info("refused %d %s id=%s", error.status, error.code, request_id)
        self._metrics.begun()
        self._metrics.failed(error.code)
        self._metrics.ended("", error.status)
        response = failure(error, Dialect.OPENAI, request_id)
        return replace(response, headers=self._headers(response.headers, request_id, time.monotonic(), Dialect.OPENAI))

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
            keys=self._keys,
            metrics=self._metrics,
        )

    @asynccontextmanager
    async def _route(self, exchange: Exchange) -> AsyncIterator[Response]:
        request = exchange.request
        auth.check_host(request, self._hosts)
        auth.check_origin(request)
        caller = auth.caller_of(request, secret=self._admin_secret, keys=self._keys)
        auth.check_use(request, caller, keyless=self._keyless)
        route, rest = _find(request.method, request.path)
        if route.admin:
            auth.check_admin(request, caller)
        elif route.here:
            auth.check_here(request)
        elif caller.key and route.method == "POST":
            self._quota.admit(caller.key, now=time.monotonic())
        node = self._account(Scoped(self._node, scope_of(request)), caller)
        async with route.handler(replace(exchange, rest=rest, node=node)) as response:
            yield response

    def _account(self, node: Node, caller: auth.Caller) -> Account:
        def charge(usage: Usage) -> None:
            if caller.key:
                self._quota.charge(caller.key, usage.prompt_tokens + usage.completion_tokens, now=time.monotonic())

        return Account(node, caller, on_usage=charge, metrics=self._metrics)

    def _headers(self, own: Headers, request_id: str, began: float, dialect: Dialect) -> Headers:
        """What every answer carries; a handler's own headers win."""
        common = {
            "x-request-id": request_id,
            "x-meshnode-node": header_text(self._node.name),
            "x-meshnode-reason": "local",
            "openai-processing-ms": str(round((time.monotonic() - began) * 1000)),
            "x-content-type-options": "nosniff",
            "content-security-policy": "frame-ancestors 'none'",
        }
        if dialect is Dialect.ANTHROPIC:
            common["request-id"] = request_id  # where its client looks for it
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


def _path_label(path: str) -> str:
    """The path of the route, for the metrics: one of few, whatever clients ask for. Empty for a path that there is not."""
    return path if path in _PLAIN else next((route.path for route in ROUTES if route.match(path) is not None), "")


def _find(method: str, path: str) -> tuple[Route, str]:
    """The route and what its `{id}` stands for. HEAD is answered as GET; the server leaves the body out."""
    wanted = "GET" if method == "HEAD" else method
    found = [(route, rest) for route in ROUTES if (rest := route.match(path)) is not None]
    if not found:
        raise NotFound(f"There is no path {printable(path, 200)}.", hint=f"Try {', '.join(_LIKELY)}.")
    for route, rest in found:
        if route.method == wanted:
            return route, rest
    allowed = sorted({route.method for route, _ in found} | {"HEAD" for route, _ in found if route.method == "GET"})
    raise WrongMethod(f"{printable(path, 200)} does not take {printable(method, 16)}.", allowed=", ".join(allowed))
