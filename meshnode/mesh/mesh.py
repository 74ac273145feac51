"""The shell around the gossip engine: it owns the links, performs the engine's effects and tells it what happened.

The engine decides, and does nothing by itself. Whoever calls it here calls `_touch` afterwards, which performs its effects at
once and wakes the writers that have something to pull. The pump ticks it whenever its next deadline has come, and is woken only
for an earlier one; between two rounds it rests a moment, so that a burst of news costs one round.

Every connection runs behind a barrier of its own: whatever a peer does, or a bug that it finds, ends its link and is logged, and
the node goes on (design D3).
"""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import assert_never

import trio

from meshnode.address import Address, parse
from meshnode.backend import Backend
from meshnode.errors import ConfigurationError, LinkLost, PeerError
from meshnode.gossip.dialling import Attempt, Network
from meshnode.gossip.effects import Close, Dial, Effect, LinkId, Notify, Rekey
from meshnode.gossip.engine import Engine
from meshnode.gossip.member import Member
from meshnode.identity import Identity
from meshnode.mesh.gate import Gate, address_group
from meshnode.mesh.handshake import HANDSHAKE_S, Proven, greet
from meshnode.mesh.listen import accept, tune
from meshnode.mesh.peer import PeerBackend
from meshnode.mesh.reasons import CLOSED, explain, is_refusal
from meshnode.mesh.refusals import Refusal, Refusals
from meshnode.mesh.served import Serve
from meshnode.mesh.session import LEAVING, NORMAL, Session
from meshnode.names import NodeId, short
from meshnode.wire.codec import encode
from meshnode.wire.messages import Gossip, Hello, Loads, Sketch

WRONG_ID = 4403
CONNECT_S = 3.0
"""For TCP alone: a LAN answers in milliseconds, and a lost SYN is sent again after a second. Other addresses may be waiting."""
MAX_DIALS = 16
"""At once. The engine limits how many in a minute."""
_REST_S = 0.01
"""Between two rounds of the pump."""
_KNOWN_FOR_S = 1.0
"""At least between two looks at all members for the gate."""
_FLUSH_S = 1.0
_GOODBYE_S = 1.5
"""For the close handshakes of all links together, each of which is over after a second."""

_log = logging.getLogger(__name__)
_PeerFault = (PeerError, LinkLost, trio.TooSlowError, OSError)
"""What a connection may end with. Anything else is a bug of ours."""


def _reason(group: BaseException, *, dialled: bool) -> str:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    is_slow = isinstance(group, trio.TooSlowError)
    return f"no handshake within {HANDSHAKE_S:.0f} s" if is_slow else explain(group, dialled=dialled)


async def _open(addr: str) -> trio.SocketStream:
    address = parse(addr, flag="--peer")
    with trio.move_on_after(CONNECT_S):
        stream = await trio.open_tcp_stream(address.host, address.port)
        tune(stream)
        return stream
    raise LinkLost(f"no answer within {CONNECT_S:.0f} s: no machine there, or a firewall drops what it is sent")


class Mesh:
    """The links of one node. `run` it in the node's nursery; the other methods are for the rest of the node, in the same loop.
    The listeners stay open when it ends.

    `serve` runs what peers ask of us; `on_change` hears of members that come, change and go; `on_rekey` that this node needs a
    new key, and why.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        engine: Engine,
        listeners: Sequence[trio.SocketListener],
        serve: Serve,
        on_change: Callable[[Notify], None],
        on_rekey: Callable[[str], None],
    ) -> None:
        self._identity = identity
        self._engine = engine
        self._listeners = listeners
        self._serve = serve
        self._on_change = on_change
        self._on_rekey = on_rekey
        self._tasks: trio.Nursery | None = None
        """Kept because effects are performed synchronously and a Dial needs a task."""
        self._sessions: dict[LinkId, Session] = {}
        self._ids = count(1)
        self._gate = Gate()
        self._refusals = Refusals()
        self._dialling = trio.CapacityLimiter(MAX_DIALS)
        self._pump_at = float("-inf")
        """When the pump goes on by itself; before every deadline while it is about to look at them anyway."""
        self._hastened = trio.Event()
        self._leaving = False
        self._load: Loads = ()
        self._members_changed = False
        self._known_at = float("-inf")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept, dial and gossip until cancelled. `leave` first for an orderly stop."""
        try:
            async with trio.open_nursery() as self._tasks:
                for listener in self._listeners:
                    self._tasks.start_soon(accept, listener, self._accept, self._tasks)
                self._tasks.start_soon(self._pump)
                self._touch()
                task_status.started()
        finally:
            self._tasks = None

    def advertise(self, key: str, value: bytes | None) -> None:
        """Set a key of our record, or remove it. Raises ValueError beyond the limits of a record."""
        self._engine.advertise(key, value, now=trio.current_time())
        self._touch()

    def set_sketches(self, sketches: Sequence[Sketch]) -> None:
        """What our caches hold; at most every few seconds."""
        self._engine.set_sketches(sketches, now=trio.current_time())
        self._touch()

    def set_load(self, load: Loads) -> None:
        """Our live load, for heartbeats and answers."""
        self._load = load
        self._engine.set_load(load, now=trio.current_time())
        self._touch()

    def discovered(self, node: NodeId, addrs: tuple[str, ...]) -> None:
        """mDNS says that `node` is at `addrs`; none: no longer."""
        self._engine.discovered(node, addrs, now=trio.current_time())
        self._touch()

    def add_seed(self, addr: str) -> None:
        """An address that a person gave."""
        self._engine.add_seed(addr, now=trio.current_time())
        self._touch()

    def move(self, listen: tuple[str, ...], networks: tuple[Network, ...], local: Container[str]) -> None:
        """Others reach us at `listen` now, we are directly on `networks`, and have the addresses `local`. A link over an address
        that is gone would be silent for ten seconds before anyone noticed."""
        for session in list(self._sessions.values()):
            host = session.local.partition("%")[0]
            if local and host not in local and not Address(host, 0).is_loopback:
                session.end(NORMAL, f"this machine has no address {session.local} any more")
        self._engine.move(listen, networks, now=trio.current_time())
        self._touch()

    def drain(self, draining: bool = True) -> None:
        """Whether we take nothing new: others route nothing to us from when they hear it."""
        self._engine.drain(draining, now=trio.current_time())
        self._touch()

    def contacts(self) -> dict[NodeId, tuple[str, ...]]:
        """Whom to dial after a restart, the latest met last."""
        return self._engine.contacts()

    def attempts(self) -> Iterable[Attempt]:
        return self._engine.attempts()

    def members(self) -> tuple[Member, ...]:
        return self._engine.members(now=trio.current_time())

    def backend(self, node: NodeId) -> Backend:
        """The peer as a backend. Its `submit` raises LinkLost while there is no link to it."""
        return PeerBackend(partial(self._session_to, node))

    def refusals(self) -> tuple[Refusal, ...]:
        """Links that did not come about, the latest last."""
        return self._refusals.all()

    async def leave(self) -> None:
        """Tell every peer that we leave, within a second, and close the links. Nothing is dialled or accepted any more."""
        self._leaving = True
        self._engine.leave(now=trio.current_time())
        self._touch()
        sessions = list(self._sessions.values())
        with trio.move_on_after(_FLUSH_S):
            for session in sessions:
                await session.lanes.wait_idle()
        for session in sessions:
            session.end(LEAVING, "the node leaves")
        with trio.move_on_after(_GOODBYE_S):
            for session in sessions:
                await session.closed.wait()

    # What a session needs of us (session.Node).

    def next_frame(self, session: Session, max_bytes: int) -> bytes | None:
        return self._engine.next_frame(session.link_id, trio.current_time(), max_bytes)

    def receive(self, session: Session, frame: Gossip) -> None:
        self._engine.receive(session.link_id, frame, now=trio.current_time(), size=len(encode(frame)))
        self._touch()

    def heard(self, session: Session) -> None:
        if self._engine.heard(session.link_id, now=trio.current_time()):
            self._touch()

    def observe_load(self, session: Session, load: Loads) -> None:
        self._engine.observe_load(session.peer, load, now=trio.current_time())
        self._touch()

    def load(self) -> Loads:
        return self._load

    def ended(self, session: Session) -> None:
        _log.info("link to %s (%s) is down: %s", session.name, short(session.peer), session.reason)
        self._sessions.pop(session.link_id, None)
        self._engine.link_down(session.link_id, session.reason, code=session.close_code, now=trio.current_time())
        self._touch()

    def _session_to(self, node: NodeId) -> Session:
        link = self._engine.link_of(node)
        session = self._sessions.get(link) if link is not None else None
        if session is None or not session.is_up:
            name = next((member.name for member in self.members() if member.id == node), short(node))
            raise LinkLost(f"there is no link to {name}")
        return session

    def _touch(self) -> None:
        """Something happened to the engine."""
        if self._engine.next_deadline() < self._pump_at:
            self._hastened.set()
        for link in self._engine.ready():
            if session := self._sessions.get(link):
                session.lanes.wake()
        if self._tasks is None:
            return
        for effect in self._engine.effects():
            self._perform(effect, self._tasks)

    def _perform(self, effect: Effect, tasks: trio.Nursery) -> None:
        match effect:
            case Dial():
                if not self._leaving:
                    tasks.start_soon(self._dial, effect)
            case Close():
                if session := self._sessions.get(effect.link):
                    session.end(effect.code, effect.reason)
            case Notify():
                self._members_changed = True
                self._on_change(effect)
            case Rekey():
                self._on_rekey(effect.reason)
            case _:
                assert_never(effect)

    def _let_members_in(self, now: float) -> None:
        """Keep the gate's addresses of members current, when a connection comes: a burst of news may tell of a thousand nodes,
        and looking at all of them for each takes half a minute."""
        if self._members_changed and now >= self._known_at + _KNOWN_FOR_S:
            self._members_changed, self._known_at = False, now
            self._gate.known = frozenset(self._known_groups())

    def _known_groups(self) -> Iterator[str]:
        for member in self.members():
            with suppress(ConfigurationError):  # what a node says of itself may be no address
                yield address_group(parse(member.addr, flag="address").host)

    async def _pump(self) -> None:
        while True:
            self._hastened = trio.Event()
            self._pump_at = self._engine.next_deadline()
            with trio.move_on_at(self._pump_at):
                await self._hastened.wait()
            self._pump_at = float("-inf")
            self._engine.tick(now=trio.current_time())
            self._touch()
            await trio.sleep(_REST_S)

    async def _accept(self, stream: trio.SocketStream) -> None:
        """One connection that came in, from its first byte to its last."""
        if self._leaving:
            await trio.aclose_forcefully(stream)
            return
        host = "unknown"
        try:
            host, port = stream.socket.getpeername()[:2]
            addr = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            tune(stream)
            self._let_members_in(trio.current_time())
            async with trio.open_nursery() as nursery:
                with self._gate.slot(host, trio.current_time()), trio.fail_after(HANDSHAKE_S):
                    judge = partial(self._judge, addr, None)
                    proven = await greet(nursery, stream, self._identity, ours=self._engine.hello, judge=judge, dialled=False)
                await self._hold(proven, addr, stream)
        except* _PeerFault as group:
            self._refused(address_group(host), _reason(group, dialled=False), dialled=False)
        except* Exception:
            _log.exception("the link from %s failed: this is a bug", host)
        finally:
            await trio.aclose_forcefully(stream)

    async def _dial(self, dial: Dial) -> None:
        """One connection that we make, likewise. The engine hears of it in any case."""
        reason, refused = "", False
        try:
            async with trio.open_nursery() as nursery:
                async with self._dialling:
                    with trio.fail_after(HANDSHAKE_S):
                        stream = await _open(dial.addr)
                        judge = partial(self._judge, dial.addr, dial.expect)
                        proven = await greet(nursery, stream, self._identity, ours=self._engine.hello, judge=judge, dialled=True)
                self._refusals.forget(dial.addr, dialled=True)
                await self._hold(proven, dial.addr, stream)
        except* _PeerFault as group:
            reason, refused = _reason(group, dialled=True), is_refusal(group)
            self._refused(dial.addr, reason, dialled=True)
        except* Exception:
            reason = "a bug of ours"
            _log.exception("the link to %s failed: this is a bug", dial.addr)
        if reason:
            self._engine.dial_failed(dial.addr, reason, refused=refused, now=trio.current_time())
            self._touch()

    def _judge(self, addr: str, expect: NodeId | None, hello: Hello, proven: NodeId) -> None:
        try:
            self._engine.judge(hello, proven=proven, addr=addr, now=trio.current_time())
        finally:
            self._touch()
        if expect is not None and proven != expect:
            raise PeerError(f"another node than expected: {short(proven)}, not {short(expect)}", close_code=WRONG_ID)

    async def _hold(self, proven: Proven, addr: str, stream: trio.SocketStream) -> None:
        """A link is up: run it until it is down."""
        local = str(stream.socket.getsockname()[0])
        session = Session(LinkId(next(self._ids)), proven, local=local, node=self, serve=self._serve)
        _log.info("%s link to %s (%s) at %s", ">" if proven.link.dialled else "<", session.name, short(session.peer), addr)
        self._sessions[session.link_id] = session
        self._engine.link_up(session.link_id, proven.hello, addr=addr, dialled=proven.link.dialled, now=trio.current_time())
        self._touch()
        await session.run()

    def _refused(self, addr: str, reason: str, *, dialled: bool) -> None:
        """Who only hangs up on us, such as a port scanner, was not refused."""
        if not dialled and reason == CLOSED:
            _log.debug("< %s hung up during the handshake", addr)
        elif self._refusals.add(addr, reason, trio.current_time(), dialled=dialled):
            _log.warning("%s no link with %s: %s", ">" if dialled else "<", addr, reason)
