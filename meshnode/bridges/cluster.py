"""A bridge to a Backend.AI cluster: its services found, asked for their models, and offered as this node's (trio).

The manager is asked only to find services and for their tokens, never for an answer: requests go straight to a service. So a
manager that is away takes nothing away; its services stay as they were last known, as long as they answer themselves. Services
with one model are replicas of it, and `cluster/service/model` asks for one of them.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import trio

from meshnode import url
from meshnode.backend import Backend, Events
from meshnode.bridges import catalogue, discovery, tls
from meshnode.bridges.answer import answer
from meshnode.bridges.bridge import Facts
from meshnode.bridges.catalogue import Found
from meshnode.bridges.client import Client
from meshnode.bridges.discovery import LISTINGS, MAX_SERVICES, Service
from meshnode.bridges.health import State
from meshnode.bridges.manager import SKEW_SHOWN_S, Manager
from meshnode.bridges.service import ServiceBridge, Target
from meshnode.bridges.signing import KeyPair
from meshnode.bridges.tally import Tally
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import ConfigurationError, ModelUnavailable
from meshnode.gossip.member import Model
from meshnode.inference import Request
from meshnode.names import is_name
from meshnode.remote import Remote
from meshnode.url import Url
from meshnode.wire.messages import ModelState

log = logging.getLogger("meshnode.bridges")

AGAIN_S = 1.0
"""After a lost answer: the services are looked at again, but not more often than this."""
DISCOVER_APART_S = 5.0
"""However many answers are lost, the manager is asked no more often."""
PROBES_AT_ONCE = 8
_MAX_PINS = 4
"""Names for single services that one model gets; more would fill the node's record."""
_OF_THIS_LIST = frozenset({Verdict.NOT_ONE, Verdict.FAILING, Verdict.ADDRESS_NOT_ALLOWED})
"""Troubles that another list of the same manager may not have."""


class Cluster:
    """One registered cluster. `run` keeps what `models` says fresh. `bridges` tells how many nodes see the same cluster."""

    def __init__(self, remote: Remote, *, rng: random.Random, bridges: Callable[[], int] = lambda: 1) -> None:
        self.remote = remote
        self.name = remote.name
        self.tally = Tally()
        self._rng = rng
        self._bridges = bridges
        self._tls = tls.context(ca=remote.ca, insecure=remote.insecure)
        address = remote.address
        client = self._client(address, loopback=address.is_loopback)
        self.manager = Manager(client, KeyPair(access_key=remote.access_key, secret_key=remote.key))
        self._services: dict[str, ServiceBridge] = {}
        self._left_out: tuple[tuple[str, str], ...] = ()
        self._offer = catalogue.Offer()
        self._targets: dict[str, list[tuple[ServiceBridge, str]]] = {}
        """By each name that is offered: the services that have it, and what they call it."""
        self._listing = LISTINGS[0]
        self._trouble = "not asked yet"
        self._asked_at = -DISCOVER_APART_S
        self._poke = trio.Event()

    async def verify(self) -> str:
        """Try it as it was registered. Returns a line for people; raises Unusable."""
        await self.manager.verify()
        await self._refresh()
        if self._trouble:
            raise Unusable(Verdict.NOT_ONE, self._trouble)
        offered = len([service for service in self._services.values() if not service.reason])
        known = len(self._services) + len(self._left_out)
        line = f"Backend.AI {self.manager.release}: {offered} of {known} services can be used"
        skew = abs(self.manager.clock_offset)
        clock = f"; its clock and this machine's are {skew / 60:.0f} minutes apart, which is corrected for"
        clock = clock if skew >= SKEW_SHOWN_S else ""
        return line + clock if known else f"Backend.AI {self.manager.release}: this key pair sees no model service yet{clock}"

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Keep services and models fresh until cancelled; no fault of the cluster ends it."""
        try:
            while True:
                self._poke = trio.Event()
                before = (self.facts(), self._offer)
                await self._refresh()
                if before != (self.facts(), self._offer):
                    self._tell()
                    on_change()
                await trio.sleep(AGAIN_S)
                with trio.move_on_after(self._pause() - AGAIN_S):
                    await self._poke.wait()
        finally:
            for client in (self.manager.client, *(service.client for service in self._services.values())):
                await client.close()

    def models(self) -> tuple[Model, ...]:
        return self._offer.models

    def load(self) -> tuple[ModelState, ...]:
        """Only what is at work: a heartbeat has room for few."""
        active = {model.name: self._active(model.name) for model in self.models()}
        return tuple(
            ModelState(model.name, model.digest, "ready", active=active[model.name])
            for model in self.models()
            if active[model.name]
        )

    def facts(self) -> Facts:
        if self.models():
            state, reason = State.READY, f"the manager: {self._trouble}" if self._trouble else ""
        elif self._trouble == "not asked yet":
            state, reason = State.UNKNOWN, self._trouble
        else:
            state, reason = State.DOWN, self._trouble or "no service of this key pair can be used now"
        services = ((each.service.name, each.reason) for each in self._services.values() if each.reason)
        return Facts(state=state.value, reason=reason, left_out=(*services, *self._left_out, *self._offer.left_out))

    def backend(self, model: str) -> Backend:
        """Raises ModelUnavailable."""
        held = [(service, theirs) for service, theirs in self._targets.get(model, ()) if service.is_open]
        if not held:
            raise ModelUnavailable(f"{self.name} does not offer {model} now.", retry_after=5.0)
        self._rng.shuffle(held)
        held.sort(key=lambda each: each[0].tally.active)
        return _Replicas([Target(service, theirs, whole=self.tally, on_loss=self._lose) for service, theirs in held])

    def _lose(self) -> None:
        """A service lost an answer: look at once."""
        self._poke.set()

    def _active(self, name: str) -> int:
        return sum(service.tally.active for service, _ in self._targets.get(name, ()))

    def _pause(self) -> float:
        return self.manager.rate.pause(1, self._rng, bridges=self._bridges())

    def _tell(self) -> None:
        facts = self.facts()
        log.info("%s is %s%s, %d models", self.name, facts.state, f": {facts.reason}" if facts.reason else "", len(self.models()))
        for service, reason in facts.left_out:
            log.info("%s: %s is not offered: %s", self.name, service, reason)

    # Finding

    async def _refresh(self) -> None:
        if trio.current_time() >= self._asked_at + DISCOVER_APART_S:
            self._asked_at = trio.current_time()
            try:
                await self._take(await self._discover())
                self._trouble = ""
            except Unusable as error:
                self._trouble = error.message
        limit = trio.CapacityLimiter(PROBES_AT_ONCE)

        async def probe(service: ServiceBridge) -> None:
            async with limit:
                await service.probe()

        async with trio.open_nursery() as nursery:
            for service in self._services.values():
                nursery.start_soon(probe, service)
        self._make_offer()

    async def _discover(self) -> list[Service]:
        """The services, by the list that worked last, else by the others in their order. Raises the first's Unusable."""
        first: Unusable | None = None
        for listing in dict.fromkeys((self._listing, *LISTINGS)):
            try:
                services = await self._list(listing)
            except Unusable as error:
                if error.verdict not in _OF_THIS_LIST:
                    raise
                first = first or error
                continue
            self._listing = listing
            return services
        assert first is not None
        raise first

    async def _list(self, listing: discovery.Listing) -> list[Service]:
        found: list[Service] = []
        while len(found) < MAX_SERVICES:
            body = await self.manager.call(listing.method, listing.path, listing.body(len(found)))
            try:
                page = listing.read(body, len(found))
            except ValueError as error:
                raise Unusable(Verdict.NOT_ONE, f"Its {listing.name} cannot be read: {error}.") from None
            found += page.services
            if not page.has_more:
                break
        return found

    async def _take(self, found: Sequence[Service]) -> None:
        """Keep what is known of services that are still the same; take the others anew."""
        before, self._services = self._services, {}
        left_out = [(service.name, f"only {MAX_SERVICES} services are looked at") for service in found[MAX_SERVICES:]]
        for service in found[:MAX_SERVICES]:
            known = before.get(service.id)
            if known is not None and known.service.url == service.url and known.service.is_public == service.is_public:
                known.service = service
                self._services[service.id] = before.pop(service.id)
                continue
            try:
                client = self._service_client(service)
            except ConfigurationError as error:
                left_out.append((service.name, error.message))
                continue
            self._services[service.id] = ServiceBridge(service, client, self.manager, name=f"{self.name}/{service.name}")
        self._left_out = tuple(left_out)
        for gone in before.values():
            await gone.client.close()

    def _service_client(self, service: Service) -> Client:
        """The manager's word is taken for where a service is, but not for this machine, nor for clear text, unless the cluster
        itself was registered so. One without an address gets a client that is never used."""
        address = url.parse(service.url, flag="its URL") if service.url else self.remote.address
        to = self.remote.dialled(address)
        is_home = self.remote.address.is_loopback or to is not None
        if not (address.is_secure or self.remote.insecure or self.remote.address.is_loopback):
            raise ConfigurationError(f"its address {address} is plain HTTP; register the cluster with --insecure to use it")
        return self._client(address, loopback=is_home)

    def _client(self, address: Url, *, loopback: bool) -> Client:
        secured_by = self._tls if address.is_secure else None
        return Client(address, secured_by=secured_by, loopback=loopback, connect_to=self.remote.dialled(address))

    def _make_offer(self) -> None:
        held: dict[str, list[tuple[ServiceBridge, Found]]] = {}
        for service in self._services.values():
            for found in service.found:
                held.setdefault(found.id, []).append((service, found))
        models = [Found(name, _context([found for _, found in holders])) for name, holders in sorted(held.items())]
        offer = catalogue.offer(self.remote, models, prefixes=(self.name,))
        targets: dict[str, list[tuple[ServiceBridge, str]]] = {}
        offered = []
        for model, theirs in zip(offer.models, offer.ids, strict=True):
            holders = [(service, theirs) for service, _ in held[theirs]]
            pins = {
                f"{service.name}/{theirs}": [(service, theirs)] for service, _ in holders if is_name(f"{service.name}/{theirs}")
            }
            targets |= dict.fromkeys((model.name, *model.aliases), holders) | pins
            aliases = (*model.aliases, *sorted(pins)[:_MAX_PINS])
            offered.append(msgspec.structs.replace(model, aliases=aliases))
        self._offer = msgspec.structs.replace(offer, models=tuple(offered))
        self._targets = targets


def _context(found: Sequence[Found]) -> int:
    """What every replica can take, as far as they say."""
    return min((each.context_length for each in found if each.context_length), default=0)


class _Replicas:
    """One model's services as a Backend."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets

    def submit(self, request: Request) -> AbstractAsyncContextManager[Events]:
        return self._submit(request)

    @asynccontextmanager
    async def _submit(self, request: Request) -> AsyncIterator[Events]:
        async with answer(request, self._targets) as events:
            yield events
