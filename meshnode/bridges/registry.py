"""The remotes of this node: kept in the data directory with their secrets, each with a bridge that runs (trio).

A remote of the configuration file is not kept, and cannot be removed but there. Secrets go to their remote and into the file of
mode 0600, and nowhere else: what is told of a remote is made here, field by field.
"""

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from meshnode.bridges import told
from meshnode.bridges.bridge import Bridge
from meshnode.bridges.cluster import Cluster
from meshnode.bridges.router import Router
from meshnode.bridges.verdict import Unusable
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError, InvalidRequest, NotFound
from meshnode.gossip.member import Bridged, Member
from meshnode.names import printable
from meshnode.remote import MAX_REMOTES, Kind, Remote, checked
from meshnode.wire.messages import ModelState

log = logging.getLogger("meshnode.bridges")

_FILE = "remotes.json"
VERIFY_S = 30.0
COUNTED_EVERY_S = 10.0
"""How often counters may change in the node's record (design D10)."""
_MAX_LOADS = 32
"""Models at work that are told in a heartbeat, which has room for 64 in all."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    remotes: tuple[Remote, ...] = ()


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a registration."""

    name: str
    said: str


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    name: str


@dataclass
class _Running:
    bridge: Bridge
    kept: bool
    life: trio.CancelScope = field(default_factory=trio.CancelScope)


class Registry:
    """The bridges of this node. `members` tells who else bridges what; `run` must be running for anything to be fresh."""

    def __init__(
        self,
        data_dir: DataDir,
        *,
        configured: Sequence[Remote] = (),
        members: Callable[[], Sequence[Member]],
        rng: random.Random,
    ) -> None:
        self._data_dir = data_dir
        self._members = members
        self._rng = rng
        self._running: dict[str, _Running] = {}
        self._starting: tuple[trio.MemorySendChannel[_Running], trio.MemoryReceiveChannel[_Running]]
        self._starting = trio.open_memory_channel(MAX_REMOTES)
        self._changing = trio.Lock()
        self._counted: dict[str, tuple[int, int, int]] = {}
        self._counted_at = 0.0
        self._on_change: Callable[[], None] = lambda: None
        for remote in configured:
            self._put(remote, kept=False)
        for remote in _load(data_dir):
            if remote.name in self._running:
                log.warning("%s of the configuration file stands for the remote of that name that was added before", remote.name)
                continue
            self._put(remote, kept=True)

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Run the bridges, and those that are added, until cancelled."""
        self._on_change = on_change
        async with trio.open_nursery() as nursery:
            for running in list(self._running.values()):
                nursery.start_soon(partial(_live, running, on_change=on_change))
            async for added in self._starting[1]:
                nursery.start_soon(partial(_live, added, on_change=on_change))

    def bridges(self) -> tuple[Bridge, ...]:
        return tuple(running.bridge for running in self._running.values())

    async def add(self, remote: Remote) -> Added:
        """Try it, and keep it if it can be used. Raises InvalidRequest or Unusable; then nothing has changed."""
        async with self._changing:
            if remote.name in self._running:
                raise InvalidRequest(
                    f"There is a remote called {remote.name}.", hint=f"First: meshnode remove {remote.name}", param="name"
                )
            if len(self._running) >= MAX_REMOTES:
                raise InvalidRequest(f"This node has {MAX_REMOTES} remotes; more are not allowed.")
            bridge = self._bridge(remote)
            try:
                with trio.fail_after(VERIFY_S):
                    said = await bridge.verify()
            except Unusable as error:
                raise Unusable(error.verdict, f"{remote.name} was not added ({error.verdict}). {error.message}") from error
            except trio.TooSlowError:
                raise InvalidRequest(f"{remote.name} was not added: it was not tried out within {VERIFY_S:.0f} s.") from None
            running = self._running[remote.name] = _Running(bridge, kept=True)
            await self._save()
            self._starting[0].send_nowait(running)
        log.info("%s was added: %s", remote.name, said)
        self._on_change()
        return Added(name=remote.name, said=said)

    async def remove(self, name: str) -> Removed:
        """Raises NotFound or InvalidRequest."""
        async with self._changing:
            running = self._running.get(name)
            if running is None:
                known = ", ".join(self._running) or "none"
                raise NotFound(f"There is no remote called {printable(name, 64)} on this node.", hint=f"There are: {known}.")
            if not running.kept:
                raise InvalidRequest(f"{name} is in the configuration file.", hint="Remove it there, and restart the node.")
            del self._running[name]
            running.life.cancel()
            await self._save()
        log.info("%s was removed", name)
        self._on_change()
        return Removed(name=name)

    def load(self) -> tuple[ModelState, ...]:
        return tuple(state for bridge in self.bridges() for state in bridge.load())[:_MAX_LOADS]

    def told(self) -> dict[str, bytes]:
        """What the node's record says of remotes and their models."""
        models = [model for bridge in self.bridges() for model in bridge.models()]
        return told.models(models) | told.remotes(self._facts())

    def _facts(self) -> tuple[Bridged, ...]:
        if trio.current_time() >= self._counted_at + COUNTED_EVERY_S:
            self._counted_at = trio.current_time()
            tallies = {bridge.name: bridge.tally for bridge in self.bridges()}
            self._counted = {name: (tally.requests, tally.tokens, tally.errors) for name, tally in tallies.items()}
        return tuple(self._bridged(bridge) for bridge in self.bridges())

    def _bridged(self, bridge: Bridge) -> Bridged:
        remote, facts = bridge.remote, bridge.facts()
        requests, tokens, errors = self._counted.get(bridge.name, (0, 0, 0))
        return Bridged(
            name=remote.name,
            kind=remote.kind.value,
            service=service_id(remote),
            state=facts.state,
            reason=facts.reason,
            models=len(bridge.models()),
            left_out=facts.left_out,
            cost=remote.cost_class.value,
            spill_over=remote.spill_over,
            insecure=remote.insecure,
            requests=requests,
            tokens=tokens,
            errors=errors,
        )

    def _put(self, remote: Remote, *, kept: bool) -> None:
        self._running[remote.name] = _Running(self._bridge(remote), kept=kept)

    def _bridge(self, remote: Remote) -> Bridge:
        try:
            match remote.kind:
                case Kind.ROUTER:
                    return Router(remote, rng=self._rng)
                case Kind.CLUSTER:
                    return Cluster(remote, rng=self._rng, bridges=partial(self._alike, service_id(remote)))
        except ValueError as error:
            raise InvalidRequest(f"The certificates for {remote.name} cannot be used: {error}.", param="ca") from error

    def _alike(self, service: str) -> int:
        """How many bridges to this service live in the mesh, ours included."""
        others = [each for member in self._members() if member.routable for each in member.remotes if each.service == service]
        return max(1, len(others))

    async def _save(self) -> None:
        kept = _File(remotes=tuple(running.bridge.remote for running in self._running.values() if running.kept))
        content = msgspec.json.format(msgspec.json.encode(kept), indent=1)
        await trio.to_thread.run_sync(self._data_dir.write, _FILE, content)


def service_id(remote: Remote) -> str:
    """Equal wherever this very service is bridged; it tells nobody its address who does not know it."""
    return hashlib.sha256(f"meshnode-remote-v1 {remote.url}".encode()).hexdigest()[:12]


async def _live(running: _Running, *, on_change: Callable[[], None]) -> None:
    with running.life:
        await running.bridge.run(on_change=on_change)


def _load(data_dir: DataDir) -> tuple[Remote, ...]:
    content = data_dir.read(_FILE)
    if content is None:
        return ()
    try:
        return tuple(map(checked, msgspec.json.decode(content, type=_File).remotes))[:MAX_REMOTES]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{data_dir.path / _FILE} is damaged.", hint="Move it away, and add them anew.") from error
