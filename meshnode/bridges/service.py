"""One model service of a Backend.AI cluster: its token, its models, and whether it may be asked (trio).

A service behind the app proxy takes a token of its own, a JWT that the manager has made for it: kept in memory only, renewed at
80 % of its life, or when the proxy refuses it. On its way the app proxy hands the token to the model server, so whoever runs the
model can read it; it opens that service and nothing else.
"""

import math
from collections.abc import Callable, Sequence

import msgspec
import trio

from meshnode.bridges import catalogue, refusals
from meshnode.bridges.answer import Reaction
from meshnode.bridges.catalogue import Found
from meshnode.bridges.client import Ask, Client, Headers
from meshnode.bridges.discovery import Service
from meshnode.bridges.failure import Failure
from meshnode.bridges.health import Breaker
from meshnode.bridges.manager import Manager
from meshnode.bridges.tally import Tally
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import RemoteFailed

TOKEN_LIFE_S = 3600.0
RENEW_AT = 0.8
PROBE_S = 5.0
_MAX_LIST = 1024 * 1024
_MAX_TOKEN = 16 * 1024
_HEADERS: Headers = (("Accept", "application/json"),)  # the app proxy answers with web pages otherwise


def _trouble(words: str) -> Unusable:
    return Unusable(Verdict.UNREACHABLE, words)


class _Token(msgspec.Struct, frozen=True):
    token: str


class ServiceBridge:
    """What this node knows of one service. `reason` says why it is not offered; empty when it is."""

    def __init__(self, service: Service, client: Client, manager: Manager, *, name: str) -> None:
        self.service = service
        self.client = client
        self.name = name
        """CLUSTER/SERVICE, for people."""
        self.found: tuple[Found, ...] = ()
        self.reason = "not asked yet"
        self.tally = Tally()
        self.breaker = Breaker()
        self.token = ""
        self._manager = manager
        self._renew_at = -math.inf
        self._asking = trio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent there."""
        return not self.reason and self.breaker.admits(trio.current_time())

    @property
    def secrets(self) -> Sequence[str]:
        return (self.token,)

    async def authorization(self) -> Headers:
        """Raises Unusable."""
        if self.service.is_public:
            return ()
        async with self._asking:
            if not self.token or trio.current_time() >= self._renew_at:
                await self._renew()
        return (("Authorization", f"BackendAI {self.token}"),)  # `Bearer` is known only since 24.09

    def forget_token(self) -> None:
        self._renew_at = -math.inf

    async def probe(self) -> None:
        """Ask for its models; `found` and `reason` are what came of it."""
        if reason := self.service.why_not:
            self.found, self.reason = (), reason
            return
        try:
            self.found = await self._models()
            self.reason = "" if self.found else "it has no model"
        except (Failure, Unusable) as error:
            self.found, self.reason = (), f"its models cannot be read: {error.message if isinstance(error, Unusable) else error}"

    async def _models(self) -> tuple[Found, ...]:
        for last in (False, True):
            ask = Ask("GET", "/v1/models", (*_HEADERS, *await self.authorization()))
            head, body = await self.client.fetch(ask, limit=_MAX_LIST, seconds=PROBE_S)
            if head.status == 200:
                try:
                    return catalogue.read(body)
                except ValueError:
                    raise _trouble("its /v1/models is no list of models") from None
            if last or self.reaction(head.status, body) is not Reaction.ASK_AGAIN:
                raise _trouble(refusals.words(head.status, body, self.secrets))
        raise AssertionError("the last try returns or raises")

    def reaction(self, status: int, answer: bytes) -> Reaction:
        """E20008: the token has expired or is none; E20009: it is another service's, for addresses are given out anew."""
        said = refusals.words(status, answer, ())
        if status == 401 and ("E20008" in said or "E20009" in said or "E20006" in said):
            self.forget_token()
            return Reaction.ASK_AGAIN
        return Reaction.GONE if status == 404 or (status == 400 and "Unregistered slot" in said) else Reaction.PLAIN

    async def _renew(self) -> None:
        until = int(self._manager.now() + TOKEN_LIFE_S)
        body = msgspec.json.encode({"valid_until": until})
        answer = await self._manager.call("POST", f"/services/{self.service.id}/token", body)
        try:
            self.token = msgspec.json.decode(answer, type=_Token).token
        except (ValueError, RecursionError):
            self.token = ""
        if not self.token.isascii() or not self.token.isprintable() or not 0 < len(self.token) < _MAX_TOKEN:
            self.token = ""
            raise _trouble("the manager gave no token for it")
        self._renew_at = trio.current_time() + TOKEN_LIFE_S * RENEW_AT


class Target:
    """One model of a service, as a request's target."""

    def __init__(self, bridge: ServiceBridge, model: str, *, whole: Tally, on_loss: Callable[[], None]) -> None:
        self.name = bridge.name
        self.model = model
        self._bridge = bridge
        self._whole = whole
        self._on_loss = on_loss

    @property
    def client(self) -> Client:
        return self._bridge.client

    @property
    def secrets(self) -> Sequence[str]:
        return self._bridge.secrets

    async def authorization(self) -> Headers:
        try:
            return await self._bridge.authorization()
        except Unusable as error:
            raise RemoteFailed(f"{self.name} cannot be asked: {error.message}") from error

    def began(self) -> None:
        self._whole.began()
        self._bridge.tally.began()
        self._bridge.breaker.began()

    def refused(self, status: int, answer: bytes) -> Reaction:
        return self._bridge.reaction(status, answer)

    def ended(self, *, ok: bool | None, tokens: int) -> None:
        self._whole.ended(ok=ok, tokens=tokens)
        self._bridge.tally.ended(ok=ok, tokens=tokens)
        if ok is not None:
            self._bridge.breaker.ended(ok=ok, now=trio.current_time())
        if ok is False:
            self._on_loss()
