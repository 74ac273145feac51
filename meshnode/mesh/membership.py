"""This node's life in one mesh with one key: its identity, its links, and how it finds the others.

A node that joins another mesh, or that has to take a new key, ends one membership and begins the next; its listeners, workers and
API go on. What a life learns about how to reach others is kept for the next one.
"""

import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence

import trio

from meshnode import __version__, contacts
from meshnode.config import Settings
from meshnode.credentials import node_key
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError
from meshnode.gossip.dialling import Attempt
from meshnode.gossip.effects import Notify
from meshnode.gossip.engine import Engine
from meshnode.identity import Token, make_identity
from meshnode.mesh.addresses import advertised, announced
from meshnode.mesh.announcement import Announcement, Found
from meshnode.mesh.discovery import Discovery, State
from meshnode.mesh.interfaces import scan, subnets
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.served import Serve
from meshnode.mesh.sightings import Sightings
from meshnode.names import NodeId, short
from meshnode.search import Mdns, OtherMesh, Search, Tried, solitude
from meshnode.status import ALONE_S
from meshnode.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN

WATCH_EVERY_S = 3.0
"""How soon a new interface or address is noticed. A look takes 2 ms."""
REMEMBER_EVERY_S = 1.0

_log = logging.getLogger(__name__)


class Membership:
    """`run` it once. `on_change` hears of members, `on_rekey` that another process has our key."""

    def __init__(
        self,
        settings: Settings,
        data_dir: DataDir,
        token: Token,
        *,
        listeners: Sequence[trio.SocketListener],
        serve: Serve,
        on_change: Callable[[Notify], None],
        on_rekey: Callable[[str], None],
    ) -> None:
        now = trio.current_time()
        self.identity = make_identity(token, node_key(data_dir))
        self._settings = settings
        self._data_dir = data_dir
        self._listeners = listeners
        self._contacts = contacts.load(data_dir, self.identity.mesh_id)
        self._interfaces = scan()
        self.advertised = advertised(listeners, settings.advertise, self._interfaces)
        """Where other machines reach us, as they are told."""
        engine = Engine(
            node=self.identity.node_id,
            mesh=self.identity.mesh_id,
            name=settings.name,
            version=__version__,
            epoch=data_dir.next_epoch(int(time.time() * 1000)),
            instance=secrets.token_bytes(8),
            listen=self.advertised,
            seeds=(*map(str, settings.peer), *self._contacts.seeds),
            remembered=self._contacts.peers,
            rng=random.Random(),  # noqa: S311 - for jitter, not for secrets
            now=now,
        )
        self.mesh = Mesh(
            identity=self.identity, engine=engine, listeners=listeners, serve=serve, on_change=on_change, on_rekey=on_rekey
        )
        self._sightings = Sightings(self.identity.mesh_id, (PROTOCOL_MIN, PROTOCOL_MAX))
        self._discovery = self._new_discovery() if settings.mdns else None
        self._last_linked = now

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. `mesh.leave` first for an orderly end."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.mesh.run)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._remember)
                nursery.start_soon(self._explain_solitude)
                if self._discovery:
                    nursery.start_soon(self._discovery.run)
                task_status.started()
        finally:
            if self._met_others():
                self._save()

    def add_seed(self, addr: str) -> None:
        """A person says that a node is there; kept for later lives."""
        self._contacts = self._contacts.with_seed(addr)
        self._save()
        self.mesh.add_seed(addr)

    def search(self) -> Search:
        """What is done to find others, and what came of it."""
        now = trio.current_time()
        return Search(
            alone_s=self._alone_for(now),
            mdns=_mdns(self._discovery),
            advertised=self.advertised,
            tried=tuple(_tried(attempt, now) for attempt in self.mesh.attempts() if attempt.reason),
            other_meshes=tuple(
                OtherMesh(id=other.mesh.hex(), addrs=other.addrs, age_s=round(now - other.at, 1))
                for other in self._sightings.other_meshes()
            ),
            other_versions=tuple(
                f"{found.addrs[0]} speaks protocol {found.protocol_min} to {found.protocol_max}"
                for found in self._sightings.other_versions()
            ),
        )

    def _alone_for(self, now: float) -> float | None:
        if any(member.routable and member.id != self.identity.node_id for member in self.mesh.members()):
            self._last_linked = now
            return None
        return round(now - self._last_linked, 1)

    def _announcement(self) -> Announcement:
        port, hosts = announced(self._listeners, self._settings.advertise, self._interfaces)
        return Announcement(
            node=self.identity.node_id,
            mesh=self.identity.mesh_id,
            protocol=(PROTOCOL_MIN, PROTOCOL_MAX),
            port=port,
            hosts=hosts,
        )

    def _new_discovery(self) -> Discovery:
        return Discovery(self._announcement(), self._interfaces, on_found=self._found, on_gone=self._gone)

    def _found(self, found: Found) -> None:
        if self._sightings.saw(found, trio.current_time()):
            _log.debug("mDNS: %s is at %s", short(found.node), ", ".join(found.addrs))
            self.mesh.discovered(found.node, found.addrs)

    def _gone(self, node: NodeId) -> None:
        self._sightings.gone(node)
        self.mesh.discovered(node, ())

    async def _watch(self) -> None:
        """Notice when interfaces or addresses come and go. The first look is for what changed since the start."""
        self._move()
        while True:
            await trio.sleep(WATCH_EVERY_S)
            found = await trio.to_thread.run_sync(scan)
            if found != self._interfaces:
                self._interfaces = found
                self._move()

    def _move(self) -> None:
        told = advertised(self._listeners, self._settings.advertise, self._interfaces)
        if told != self.advertised:
            _log.info("other nodes are told to reach this one at %s", ", ".join(told) or "no address")
        self.advertised = told
        local = {str(network.ip).partition("%")[0] for interface in self._interfaces for network in interface.networks}
        self.mesh.move(told, subnets(self._interfaces), local)
        if self._discovery:
            self._discovery.move(self._announcement(), self._interfaces)

    async def _remember(self) -> None:
        while True:
            await trio.sleep(REMEMBER_EVERY_S)
            if self._met_others():
                await trio.to_thread.run_sync(self._save)

    def _met_others(self) -> bool:
        """Whether there is something new to remember."""
        before, self._contacts = self._contacts, self._contacts.met(self.mesh.contacts())
        return before != self._contacts

    def _save(self) -> None:
        """A failure is never worth more than a line in the log."""
        try:
            contacts.save(self._data_dir, self._contacts)
        except ConfigurationError as error:
            _log.warning("who is in the mesh cannot be kept for the next start: %s", error)

    async def _explain_solitude(self) -> None:
        """Once each time that nobody is there for a while."""
        explained = False
        while True:
            await trio.sleep(1.0)
            alone = self._alone_for(trio.current_time())
            if alone is None:
                explained = False
            elif alone >= ALONE_S and not explained:
                explained = True
                for line in solitude(self.search()):
                    _log.info("%s", line)


def _mdns(discovery: Discovery | None) -> Mdns:
    if discovery is None:
        return Mdns(state=State.OFF.value, reason="by the setting --no-mdns")
    report = discovery.report()
    return Mdns(
        state=report.state.value, reason=report.reason, interfaces=report.interfaces, heard=report.heard, echo=report.echo
    )


def _tried(attempt: Attempt, now: float) -> Tried:
    node = short(attempt.expect) if attempt.expect else ""
    return Tried(addr=attempt.tried, node=node, reason=attempt.reason, age_s=round(now - attempt.tried_at, 1))
