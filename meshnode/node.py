"""The composition root: makes the parts, wires them, runs them in one nursery, and takes them down in order.

The only module that knows all parts. Nothing is decided here: `gossip` decides who is a member, `routing` where a request runs.
"""

import logging
import math
import os
import random
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from meshnode import __version__, credentials, status
from meshnode.address import MESH_PORT, parse
from meshnode.api.app import App
from meshnode.api.limits import Limits
from meshnode.api.server import serve
from meshnode.api.trace import trace_id
from meshnode.backend import Backend, Events
from meshnode.bridges.bridge import Bridge
from meshnode.bridges.registry import Added, Registry, Removed
from meshnode.dispatch import Answer, Dispatcher
from meshnode.draining import Drain
from meshnode.errors import ConfigurationError, InvalidRequest, MeshnodeError, ModelNotFound, ModelUnavailable
from meshnode.front import check_open_api, open_api, open_as_ollama
from meshnode.gossip.effects import Notify
from meshnode.gossip.member import Member
from meshnode.gossip.view import MEMORY, MODEL
from meshnode.inference import Request
from meshnode.mesh.listen import local_address, open_mesh_listeners
from meshnode.mesh.membership import Membership
from meshnode.mesh.mesh import Mesh
from meshnode.names import NodeId, short
from meshnode.remote import Remote
from meshnode.routing.explain import Explanation
from meshnode.routing.policy import POLICIES
from meshnode.routing.scope import Scope, narrower
from meshnode.routing.table import RETRY_AFTER_S, Candidate, Listing, listings
from meshnode.start import Running, Start, run_file
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import ModelState
from meshnode.worker.configured import models_of
from meshnode.worker.machine import Memory

log = logging.getLogger("meshnode.node")

STOP_GRACE_S = 5.0
"""Answers under way, to clients and to peers, may finish for so long: short enough for who waits at the prompt. A guess."""
FINISH_S = 2.5
"""Of it, until what has not finished for peers is handed over to other nodes."""
PUBLISH_EVERY_S = 1.0
PUBLISH_APART_S = 0.1
SKETCH_EVERY_S = 5.0
"""Load is read at each change, at most ten times a second, and once a second for the speeds that drift without a change."""


class Node:
    """This node as the API sees it, and the join between its own backends and the gossip about them."""

    membership: Membership
    """The current one, from the first `live` on."""

    def __init__(
        self, start: Start, *, api: str, ollama: str = "", listeners: Sequence[trio.SocketListener], secret: str
    ) -> None:
        self.name = start.settings.name
        self._start = start
        self._token = start.token
        self._api = api
        self._ollama = ollama
        self._listeners = listeners
        self._secret = secret
        self._models = models_of(start.settings, cache_dir=start.data_dir.subdirectory("cache"))
        self._registry = Registry(
            start.data_dir,
            configured=start.settings.remote,
            members=self.members,
            rng=random.Random(),  # noqa: S311 - to spread load and refreshes, not a secret
        )
        self._started = trio.current_time()
        self._changed = trio.Event()
        self._scope = Scope.LAN if start.settings.local_only else Scope.ANY
        self._drain = Drain(self.name)
        self._renewal = trio.Event()
        self._begun = trio.Event()
        self._joining = trio.Lock()
        self._rekeyed: tuple[float, str] | None = None
        self._salt = secrets.token_bytes(16)
        """When and why this node took a new key."""

    @property
    def mesh(self) -> Mesh:
        return self.membership.mesh

    async def live(self, *, task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a member, of one mesh after another if need be. Raises ConfigurationError when it cannot begin."""
        is_first = True
        while True:
            self._renewal = trio.Event()
            self._begin()
            async with trio.open_nursery() as nursery:
                await nursery.start(self.membership.run)
                if self._drain.on:
                    self.mesh.drain()
                nursery.start_soon(self._publish)
                running = self.running()
                self._start.data_dir.write_run(run_file(running, self._secret))
                if is_first:
                    task_status.started(running)
                    is_first = False
                else:
                    log.info("this node is %s in mesh %s now", running.node_id[:8], running.mesh_id)
                await self._renewal.wait()
                nursery.cancel_scope.cancel()

    def running(self) -> Running:
        identity = self.membership.identity
        return Running(
            name=self.name,
            node_id=identity.node_id.hex(),
            mesh_id=identity.mesh_id.hex(),
            api=self._api,
            ollama=self._ollama,
            mesh=tuple(str(local_address(listener)) for listener in self._listeners),
            advertised=self.membership.advertised,
        )

    async def join(self, peer: str | None) -> status.Joined:
        """Take the token that the data directory holds now, and dial `peer`. Raises InvalidRequest or ConfigurationError."""
        addr = None if peer is None else _peer_address(peer)
        async with self._joining:
            token = credentials.kept_token(self._start.data_dir)
            if token is not None and token != self._token:
                log.info("this node leaves mesh %s for another", self.running().mesh_id)
                self._token = token
                await self.mesh.leave()
                begun = self._begun
                self._renewal.set()
                await begun.wait()
            if addr:
                self.membership.add_seed(addr)
            running = self.running()
        return status.Joined(mesh=running.mesh_id, node=running.node_id)

    def _begin(self) -> None:
        self.membership = Membership(
            self._start.settings,
            self._start.data_dir,
            self._token,
            listeners=self._listeners,
            serve=self.serve_peer,
            on_change=_log_change,
            on_rekey=self._rekey,
        )
        self._me = self.membership.identity.node_id
        self._begun.set()
        self._begun = trio.Event()
        rng = random.Random()  # noqa: S311 - to draw a node, not a secret
        self._dispatcher = Dispatcher(
            me=self._me,
            members=self._candidates,
            backend_of=self._backend_of,
            on_change=self.changed,
            rng=rng,
            policy=POLICIES[self._start.settings.routing],
        )

    def _rekey(self, reason: str) -> None:
        """Not an orderly leave: that would tell the others that whoever keeps the identity has left."""
        log.warning("this node takes a new identity: %s", reason)
        credentials.new_node_key(self._start.data_dir)
        self._rekeyed = (trio.current_time(), reason)
        self._renewal.set()

    @asynccontextmanager
    async def submit(self, request: Request, scope: Scope = Scope.ANY) -> AsyncIterator[Answer]:
        """A client's request: its caller is this node and, where it showed one, the id of its key."""
        caller = f"{short(self._me)}/{request.caller}" if request.caller else short(self._me)
        request = msgspec.structs.replace(request, caller=caller)
        scope = narrower(scope, self._scope)
        try:
            self._dispatcher.route(request, scope)
        except ModelNotFound:
            if await self._models.look_again():
                self.mesh.set_load(self.load())  # a file just found is then "not ready" and not "does not exist"
        except ModelUnavailable:
            pass  # told when it is tried
        async with self._dispatcher.submit(request, scope) as answer:
            yield answer

    @asynccontextmanager
    async def serve_peer(self, request: Request, peer: NodeId) -> AsyncIterator[Events]:
        """A peer's request. Refused while we drain, so that the peer asks another node."""
        began, outcome = trio.current_time(), "cut"
        try:
            async with self._drain.serving(self._dispatcher.serve(request, peer)) as events:
                yield events
            outcome = "served"
        except MeshnodeError as error:
            outcome = error.code
            raise
        finally:
            _log_served(request, peer, outcome, trio.current_time() - began)

    def drain(self, on: bool, *, hand_over: bool = False) -> status.Drained:
        """Take nothing new from now on, or take requests again; `hand_over`: what runs for peers goes on elsewhere, at once."""
        self._drain.on = on
        self.mesh.drain(on)
        if on and hand_over:
            self._drain.hand_over()
        return status.Drained(draining=on, running=self._dispatcher.running)

    async def stop(self, stopping: trio.Event) -> None:
        """Once `stopping` is set, take nothing more from peers, and let what they asked finish, or else go on elsewhere."""
        await stopping.wait()
        self.drain(True)
        with trio.move_on_after(STOP_GRACE_S):
            with trio.move_on_after(FINISH_S):
                await self._drain.wait_idle()
            self._drain.hand_over()
            await self._drain.wait_idle()

    def members(self) -> tuple[Member, ...]:
        return self.mesh.members()

    def models(self, scope: Scope = Scope.ANY) -> tuple[Listing, ...]:
        return listings(self.members(), me=self._me, scope=narrower(scope, self._scope))

    async def add_remote(self, remote: Remote) -> Added:
        return await self._registry.add(remote)

    async def remove_remote(self, name: str) -> Removed:
        return await self._registry.remove(name)

    def _candidates(self) -> tuple[Member, ...]:
        """For routing: while we drain, our own clients' requests go to the others, too."""
        if not self._drain.on:
            return self.mesh.members()
        why = "draining; `meshnode drain --off` there ends it"
        return tuple(
            msgspec.structs.replace(member, routable=False, reason=why) if member.id == self._me else member
            for member in self.mesh.members()
        )

    def explain(self, request: Request, *, prompt_tokens: int | None) -> Explanation:
        """Raises MeshnodeError when no node could serve it."""
        return self._dispatcher.explain(request, prompt_tokens=prompt_tokens)

    def ready(self) -> str:
        """Empty when some model can be asked for, else what is missing."""
        if self.models():
            return ""
        waiting = self._models.waiting()
        return f"no model yet ({', '.join(waiting)})" if waiting else "no node with a model is linked"

    def report(self) -> status.Report:
        now = trio.current_time()
        running = self.running()
        rekeyed = self._rekeyed if self._rekeyed and now - self._rekeyed[0] < status.REFUSAL_SHOWN_S else None
        node = status.Node(
            id=running.node_id,
            name=self.name,
            version=__version__,
            api=running.api,
            mesh=running.mesh,
            pid=os.getpid(),
            uptime_s=round(now - self._started, 1),
            rekeyed=rekeyed[1] if rekeyed else "",
        )
        configured = set(map(str, self._start.settings.peer))  # who else is dialled in vain is only not at home
        workers = [
            status.Worker(name=trouble.name, state="unusable" if trouble.of_file else "failed", reason=trouble.reason)
            for trouble in self._models.troubles()
        ]
        refusals = [
            status.Refusal(addr=refusal.addr, reason=refusal.reason, age_s=now - refusal.at, count=refusal.count)
            for refusal in self.mesh.refusals()
            if not refusal.dialled or refusal.addr in configured
        ]
        return status.build(
            node=node,
            mesh_id=running.mesh_id,
            me=self._me,
            members=self.members(),
            search=self.membership.search(),
            workers=workers,
            refusals=refusals,
            now=now,
        )

    def changed(self) -> None:
        """Something that the mesh wants to know may have changed."""
        self._changed.set()

    async def _publish(self) -> None:
        """Tell the mesh what this node has and how busy it is, for ever."""
        told: dict[str, bytes] = {}
        memory = Memory()
        sketched_at = -math.inf
        while True:
            self._changed = trio.Event()
            self.mesh.set_load(self.load())
            if trio.current_time() >= sketched_at + SKETCH_EVERY_S:
                sketched_at = trio.current_time()
                self.mesh.set_sketches(self._models.sketches(self._salt))
            wanted = {f"{MODEL}{model.digest.hex()}": encode_value(model) for model in self._models.records()}
            wanted |= self._registry.told()
            if figures := memory.figures(trio.current_time()):
                wanted[MEMORY] = encode_value(figures)
            self._advertise(wanted, told)
            with trio.move_on_after(PUBLISH_EVERY_S):
                await self._changed.wait()
            await trio.sleep(PUBLISH_APART_S)

    async def run_backends(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self._models.run, on_change=self.changed))
            nursery.start_soon(partial(self._registry.run, on_change=self.changed))

    def _backend_of(self, candidate: Candidate) -> Backend:
        self.changed()
        if not candidate.local:
            return self.mesh.backend(candidate.node)
        if candidate.digest and (worker := self._models.backend(candidate.digest)):
            return worker
        if not candidate.digest and (bridge := self._bridge_for(candidate.model)):
            return bridge.backend(candidate.model)
        # Our own load in the gossip is a moment old: the worker that it calls ready may have ended since.
        raise ModelUnavailable(f"{candidate.model} has just stopped being served on this node.", retry_after=RETRY_AFTER_S)

    def _bridge_for(self, name: str) -> Bridge | None:
        """Of several that offer it the one with the least at work."""
        offering = [
            bridge
            for bridge in self._registry.bridges()
            if any(name in (model.name, *model.aliases) for model in bridge.models())
        ]
        return min(offering, key=lambda bridge: bridge.tally.active, default=None)

    def load(self) -> tuple[ModelState, ...]:
        """Of what this node serves itself."""
        return (*self._models.load(), *self._registry.load())

    def _advertise(self, wanted: Mapping[str, bytes], told: dict[str, bytes]) -> None:
        for key, value in wanted.items():
            if told.get(key) != value:
                try:
                    self.mesh.advertise(key, value)
                except ValueError as error:  # a record is bounded, and remembers what was once in it
                    log.warning("the others cannot be told of %s: %s; a restart of this node helps", key, error)
        for key in told.keys() - wanted.keys():
            self.mesh.advertise(key, None)
        told.clear()
        told.update(wanted)


async def run(start: Start) -> None:
    """Run one node until SIGINT or SIGTERM. Raises ConfigurationError when it cannot start."""
    settings = start.settings
    keys = credentials.api_keys(start.data_dir)
    check_open_api(settings, keys)
    api_listeners = await open_api(settings.api)
    ollama_listeners = await open_as_ollama(settings.api) if settings.as_ollama else []
    ollama = str(local_address(ollama_listeners[0])) if ollama_listeners else ""
    mesh_listeners = await open_mesh_listeners([str(address) for address in settings.mesh])
    secret = secrets.token_urlsafe(32)
    node = Node(start, api=str(local_address(api_listeners[0])), ollama=ollama, listeners=mesh_listeners, secret=secret)
    hosts = frozenset({settings.api.host})
    app = App(node, admin_secret=secret, hosts=hosts, keys=keys, keyless=settings.insecure_api)
    stopping = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_at_signal, stopping)
            running: Running = await nursery.start(node.live)
            nursery.start_soon(node.run_backends)
            async with trio.open_nursery() as answering:
                limits = Limits(grace_s=STOP_GRACE_S)
                await answering.start(partial(serve, app, [*api_listeners, *ollama_listeners], stopping=stopping, limits=limits))
                answering.start_soon(node.stop, stopping)
                start.announce(running)
            await node.mesh.leave()
            nursery.cancel_scope.cancel()
    finally:
        start.data_dir.remove("run.json")
        for listener in mesh_listeners:
            await trio.aclose_forcefully(listener)


def _peer_address(text: str) -> str:
    try:
        return str(parse(text, flag="HOST", default_port=MESH_PORT))
    except ConfigurationError as error:
        raise InvalidRequest(error.message, hint=error.hint, param="peer") from error


def _log_change(change: Notify) -> None:
    log.log(logging.DEBUG if change.what == "changed" else logging.INFO, "%s: %s", change.what, change.text)


def _log_served(request: Request, peer: NodeId, outcome: str, took_s: float) -> None:
    """As the entry node's own line has it, whose `id` and `trace` these are: so one search finds a request on all nodes."""
    trace = f" trace={trace_id(request.trace)}" if request.trace else ""
    line = "%s for %s: %s %.0f ms id=%s caller=%s%s"
    log.info(line, request.model, short(peer), outcome, took_s * 1000, request.id, request.caller, trace)


async def _set_at_signal(stopping: trio.Event) -> None:
    """The first signal ends the node in order, the second at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if stopping.is_set():
                raise KeyboardInterrupt
            log.info("stopping: answers under way may finish; once more stops at once")
            stopping.set()
