"""A bridge to any OpenAI-compatible server: Continuum Router, Backend.AI GO, llama-server, vLLM, Ollama, another mesh (trio).

Its list of models is its probe: read every quarter of a minute or so, each second while it answers 503 (it is warming up), and at
once when an answer was lost. Its models are offered while it is ready and its breaker is closed.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from meshnode.backend import Backend, Events
from meshnode.bridges import catalogue, refusals, tls, verdict
from meshnode.bridges.answer import Reaction, answer
from meshnode.bridges.bridge import Facts
from meshnode.bridges.client import Ask, Client, Headers
from meshnode.bridges.failure import Failure
from meshnode.bridges.health import Breaker, Health, State
from meshnode.bridges.tally import Tally
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import ModelUnavailable
from meshnode.gossip.member import Model
from meshnode.inference import Request
from meshnode.remote import Remote
from meshnode.wire.messages import ModelState

log = logging.getLogger("meshnode.bridges")

LIST_S = 10.0
MAX_LIST = 8 * 1024 * 1024
_HEADERS: Headers = (("Accept", "application/json"), ("x-meshnode-scope", "lan"))


class Router:
    """One registered server. `run` keeps what `models` says fresh."""

    def __init__(self, remote: Remote, *, rng: random.Random) -> None:
        self.remote = remote
        self.name = remote.name
        self.tally = Tally()
        self._rng = rng
        self._address = remote.address
        context = tls.context(ca=remote.ca, insecure=remote.insecure) if self._address.is_secure else None
        self.client = Client(self._address, secured_by=context, connect_to=remote.dialled(self._address))
        self._health = Health()
        self._breaker = Breaker()
        self._offer = catalogue.Offer()
        self._theirs: dict[str, str] = {}
        """By each name that we offer, the remote's own."""
        self._active: dict[str, int] = {}
        self._poke = trio.Event()
        self._lost = False
        self._on_change: Callable[[], None] = lambda: None

    @property
    def authorization(self) -> Headers:
        return (("Authorization", f"Bearer {self.remote.key}"),) if self.remote.key else ()

    async def verify(self) -> str:
        """Ask it once. Returns what there is to say; raises Unusable when it cannot be used as it was registered."""
        try:
            found = await self._list()
        except _Warming:
            return "It is there and warming up; its models appear once it is ready."
        self._accept(found)
        if not self._offer.models:
            return "It answers and has no model yet." if not found else "It answers, and none of its models can be offered."
        return f"{len(self._offer.models)} models: {', '.join(model.name for model in self._offer.models[:5])}"

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Keep the list fresh until cancelled; no fault of the remote ends it."""
        self._on_change = on_change
        try:
            while True:
                self._poke = trio.Event()
                await self._probe()
                with trio.move_on_after(self._health.pause(self._rng)):
                    await self._poke.wait()
        finally:
            await self.client.close()

    def models(self) -> tuple[Model, ...]:
        return self._offer.models if self._is_ready else ()

    def load(self) -> tuple[ModelState, ...]:
        """Only what is at work: a heartbeat has room for few."""
        busy = [model for model in self.models() if self._active.get(model.name)]
        return tuple(ModelState(model.name, model.digest, "ready", active=self._active[model.name]) for model in busy)

    def facts(self) -> Facts:
        ready = self._is_ready
        state = State.DOWN if self._health.state is State.READY and not ready else self._health.state
        reason = self._health.reason or ("" if ready else "too many of its answers failed lately")
        return Facts(state=state.value, reason=reason, left_out=self._offer.left_out)

    def backend(self, model: str) -> Backend:
        """Raises ModelUnavailable."""
        theirs = self._theirs.get(model)
        if theirs is None or not self._is_ready or not self._breaker.admits(trio.current_time()):
            raise ModelUnavailable(f"{self.name} does not offer {model} now.", retry_after=5.0)
        return _Service(self, model, theirs)

    def began(self, model: str) -> None:
        self.tally.began()
        self._breaker.began()
        self._active[model] = self._active.get(model, 0) + 1

    def ended(self, model: str, *, ok: bool | None, tokens: int) -> None:
        self.tally.ended(ok=ok, tokens=tokens)
        self._active[model] -= 1
        if ok is not None:
            self._breaker.ended(ok=ok, now=trio.current_time())
        if ok is False:
            self._lost = True
            self._poke.set()

    @property
    def _is_ready(self) -> bool:
        return self._health.state is State.READY and not self._breaker.is_open(trio.current_time())

    async def _probe(self) -> None:
        before = (self.facts(), self._offer)
        lost, self._lost = self._lost, False
        try:
            self._accept(await self._list())
            self._health.answered()
        except _Warming as warming:
            self._health.warming(str(warming), trio.current_time())
        except Unusable as error:
            self._health.failed(error.message, confirmed=lost)
        facts = self.facts()
        if before != (facts, self._offer):
            log.info(
                "%s is %s%s, %d models", self.name, facts.state, f": {facts.reason}" if facts.reason else "", len(self.models())
            )
            self._on_change()

    async def _list(self) -> tuple[catalogue.Found, ...]:
        """Raises Unusable or _Warming."""
        ask = Ask("GET", "/v1/models", (*_HEADERS, *self.authorization))
        try:
            head, body = await self.client.fetch(ask, limit=MAX_LIST, seconds=LIST_S)
        except Failure as failure:
            raise verdict.of_failure(failure) from failure
        words = refusals.words(head.status, body, [self.remote.key])
        match head.status:
            case 200:
                try:
                    return catalogue.read(body)
                except ValueError:
                    raise Unusable(Verdict.NOT_ONE, "Its /v1/models is no list of models.") from None
            case 401 | 403:
                raise Unusable(Verdict.WRONG_KEY, f"It does not accept the API key: {words}.")
            case 429:
                raise Unusable(Verdict.RATE_LIMITED, f"It takes no more requests for now: {words}.")
            case 503:
                raise _Warming(f"warming up: {words}")
            case 404:
                raise Unusable(Verdict.NOT_ONE, "It has no /v1/models.")
            case _:
                raise Unusable(Verdict.FAILING, f"Its /v1/models fails: {words}.")

    def _accept(self, found: Sequence[catalogue.Found]) -> None:
        self._offer = catalogue.offer(self.remote, found, prefixes=(self.name,))
        self._theirs = {
            name: theirs
            for model, theirs in zip(self._offer.models, self._offer.ids, strict=True)
            for name in (model.name, *model.aliases)
        }


class _Warming(Exception):
    """It answers 503: it is there, and not ready."""


class _Service:
    """One model of the router, as a Backend and as the only target of its requests."""

    def __init__(self, router: Router, offered: str, model: str) -> None:
        self.name = router.name
        self.model = model
        self._router = router
        self._offered = offered

    @property
    def client(self) -> Client:
        return self._router.client

    @property
    def secrets(self) -> Sequence[str]:
        return (self._router.remote.key,)

    async def authorization(self) -> Headers:
        return self._router.authorization

    def began(self) -> None:
        self._router.began(self._offered)

    def refused(self, status: int, answer: bytes) -> Reaction:
        """A model that is gone is dropped by the next list; a router has nothing to renew."""
        return Reaction.PLAIN

    def ended(self, *, ok: bool | None, tokens: int) -> None:
        self._router.ended(self._offered, ok=ok, tokens=tokens)

    def submit(self, request: Request) -> AbstractAsyncContextManager[Events]:
        return _submit(request, self)


@asynccontextmanager
async def _submit(request: Request, service: _Service) -> AsyncIterator[Events]:
    async with answer(request, [service]) as events:
        yield events
