"""The gossip engine: who is in the mesh, what each node says of itself, and whom we are linked with (pure).

Theory of operation. The engine is a state machine without a clock, a socket or a task. Its shell tells it what happened
(`link_up`, `link_down`, `dial_failed`, `receive`, `advertise`, `set_load`, `observe_load`, `leave`), calls `tick` when
`next_deadline` has come, carries out `effects`, and asks `next_frame` for bytes whenever a socket can take some (`ready` names
the links that have any). After every call `next_deadline`, `effects` and `ready` may have changed. `now` never runs backwards.

Four things are kept, a module each:
- `knowledge`: a record for each node, and whose word counts for it. Records outlive links.
- `peer`, `link`: what each link still has to say. A pair of nodes should have one link; for moments it has two or none.
- `dialling`: attempts at seeds and at members without a link; `overlay` says which members should have one.
- `view`: the above as `Member`s, with the reason of everyone who is not routable.

How news travels: our own change goes out on every link in the next batch (50 ms). A record learnt from one peer is relayed to
the others 100 to 200 ms later, unless they have shown by then that they have it; in a full mesh the origin and one relay for
each pair do. Every flow ends: a PING is answered by at most one PONG, nothing else is answered, and a delta is relayed only if
it changed something.

What moves a peer: *linked* at `link_up`; *silent* after 3 s without a frame (not routable until the next frame), closed after
10 s; *lost* at `link_down` and redialled; *left* by its own LEAVE, or by hearsay when we have no link. A node that just
vanishes stays alive and not routable, with the reason: to declare it down takes agreement, which is not part of this engine
yet. Not here yet either: state hashes that would find a divergence that these rules do not foresee, and refutation (every
incarnation is 0).

Errors: `judge` and `receive` raise PeerError; the shell closes that link with its code and reports `link_down`. Nothing else
raises because of what a peer did.
"""

import random
from typing import assert_never

from meshnode.errors import PeerError
from meshnode.gossip import hello as greeting
from meshnode.gossip import limits, view
from meshnode.gossip.dialling import Dialler
from meshnode.gossip.effects import Close, Effect, LinkId, Notify
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.link import SILENCE_S, SILENT_CLOSE_S, Link
from meshnode.gossip.member import Member, Model
from meshnode.gossip.overlay import MAX_NODES
from meshnode.gossip.peer import Peer, surplus
from meshnode.gossip.plan import MESH_FULL, Planner
from meshnode.gossip.record import Record
from meshnode.names import MeshId, NodeId, printable, short
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, Delta, Gossip, Hello, Leave, ModelState, Ping, Pong, RecordDelta

RELAY_S = 0.1
RELAY_JITTER_S = 0.1
"""Long enough to see that the other one has the news already: jitter above a LAN's round trip halves the copies."""
REDIAL_S = 0.3
"""Time for a restarted process to listen again. A guess."""
SHORT_LIFE_S = 10.0
"""A link that breaks earlier counts as a failed dial."""
STALL_S = 2.0
"""Later than any busy loop is, and below the three seconds after which we would call everyone silent."""
MAX_LOADS = 64
DUPLICATE, SILENT, LEAVING, FULL, NORMAL = 4410, 4408, 4411, 4412, 1000
Loads = tuple[ModelState, ...]


class Engine:
    """One node's part in the gossip; see the module's text for how to drive it."""

    def __init__(  # noqa: PLR0913 - the facts of one process's life, each given once, by name
        self,
        *,
        node: NodeId,
        mesh: MeshId,
        name: str,
        version: str,
        epoch: int,
        listen: tuple[str, ...],
        seeds: tuple[str, ...],
        rng: random.Random,
        now: float,
    ) -> None:
        self._me = node
        self._hello = Hello(PROTOCOL_MIN, PROTOCOL_MAX, mesh, node, name, version, epoch, listen)
        self._rng = rng
        self._known = Knowledge(me=node, epoch=epoch, now=now)
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[LinkId, Link] = {}
        self._dialler = Dialler(rng)
        self._self = Peer(last_seen=None)
        self._models: dict[NodeId, tuple[Record, tuple[Model, ...]]] = {}
        self._effects: list[Effect] = []
        self._leaving = False
        self._planner = Planner(self._known, self._peers, self._dialler, seeds=seeds, listen=listen, now=now)
        for key, value in ((view.NAME, name), (view.VERSION, version), (view.ADDR, listen)):
            self._known.write(key, encode_value(value))

    # What the shell reports

    def hello(self) -> Hello:
        """The first frame of every link."""
        return self._hello

    def judge(self, hello: Hello, *, proven: NodeId) -> None:
        """Raise PeerError unless we may be linked with the node that proved to be `proven`."""
        greeting.check(hello, proven=proven, me=self._me, mesh=self._hello.mesh)
        if self._leaving:
            raise PeerError("this node is leaving the mesh", close_code=LEAVING)
        linked = sum(bool(peer.links) for node, peer in self._peers.items() if node != proven)
        if linked >= MAX_NODES - 1:
            raise PeerError(MESH_FULL, close_code=FULL)

    def link_up(self, link: LinkId, hello: Hello, *, addr: str, dialled: bool, now: float) -> None:
        """Both HELLOs were exchanged on `link`, and `judge` let the peer's pass. `addr` is where it was dialled, or came from."""
        node = hello.node
        new = self._known.record(node) is None
        try:
            self._refuse(hello, now)
            changed = self._known.meet(node, hello.epoch)
        except PeerError as error:
            self._effects.append(Close(link=link, code=error.close_code, reason=error.message))
            if dialled:
                self._dialler.failed(addr, error.message, now=now)
            return
        if dialled:
            self._dialler.succeeded(addr, node)
        peer = self._peers.setdefault(node, Peer())
        bucket = limits.Bucket(limits.GOSSIP_BYTES_PER_S, limits.GOSSIP_BURST, now=now)
        up = Link(
            id=link, peer=node, hello=hello, addr=addr, dialled=dialled, up_at=now, heard_at=now, bucket=bucket, next_ping=now
        )
        self._links[link] = up
        peer.links.append(up)
        peer.hello, peer.lost_at = hello, None
        for other, why in surplus(peer.links, me=self._me, peer=node):
            self._close(other, DUPLICATE, why)
        if changed and not new:
            peer.load = ()
        if new:
            self._notify("joined", node, f"{hello.name} (meshnode {hello.version}), linked at {addr}")
        self._seen(up, peer, now)
        self._introduce(up, now)
        self._planner.soon(now)

    def link_down(self, link: LinkId, reason: str, *, now: float) -> None:
        """`link` is gone, whoever closed it."""
        down = self._links.pop(link, None)
        if down is None:
            return
        peer = self._peers[down.peer]
        peer.links.remove(down)
        if not peer.links:
            peer.lost_at, peer.lost_reason, peer.load = now, printable(reason) or "closed", ()
            self._planner.lost(down.peer, short=now - down.up_at < SHORT_LIFE_S, at=now + REDIAL_S)
            self._after_change(down.peer, self._known.part(down.peer, now=now), None, now)
        self._verdict(down.peer, now)
        self._planner.soon(now)

    def dial_failed(self, addr: str, reason: str, *, now: float) -> None:
        """A Dial of `addr` did not lead to a link."""
        self._dialler.failed(addr, printable(reason), now=now)

    def receive(self, link: LinkId, message: Gossip, *, now: float, size: int = 0) -> None:
        """A frame of `size` bytes came on `link`. Raises PeerError when the peer may not say that; close the link then."""
        source = self._links.get(link)
        if source is None or source.closing:
            return
        peer = self._peers[source.peer]
        try:
            if not source.bucket.take(max(size, limits.FRAME_COST), now=now):
                raise limits.breach(f"more than {limits.GOSSIP_BYTES_PER_S / 1024:.0f} KiB of gossip a second")
            self._handle(source, peer, message, now)
        except PeerError as error:
            source.closing = True
            if error.close_code == limits.TOO_MUCH:
                peer.refused_until, peer.refusal = now + limits.PENALTY_S, error.message
            self._verdict(source.peer, now)
            raise
        self._seen(source, peer, now)

    def advertise(self, key: str, value: bytes | None, *, now: float) -> None:
        """Set `key` of our own record, or remove it. Raises ValueError when the others would refuse it as too large."""
        if not self._leaving and self._known.write(key, value):
            self._spread(self._me, None, at=now, now=now)

    def set_load(self, load: Loads, *, now: float) -> None:
        """Our load is `load` now; heartbeats carry it, and a large change brings them forward."""
        self._self.load, self._self.load_at = load[:MAX_LOADS], now
        for link in self._links.values():
            link.hurry(self._self.load, now)
            link.advance(now)

    def observe_load(self, node: NodeId, load: Loads, *, now: float) -> None:
        """A reply of `node` carried its load."""
        peer = self._peers.get(node)
        if peer and peer.links and load:
            peer.load, peer.load_at = load, now

    def leave(self, *, now: float) -> None:
        """We leave for good: nothing is dialled any more, and every link's last frame will be LEAVE."""
        self._leaving = True
        self._known.leave()
        for link in self._links.values():
            link.leave(self._known.epoch)

    # What the shell asks

    def next_frame(self, link: LinkId, now: float, max_bytes: int) -> bytes | None:
        """The next frame to write on `link`, encoded, at most `max_bytes` long. It counts as sent: write it, or lose the link."""
        source = self._links.get(link)
        return source.next_frame(self._known.record, self._self.load, now, max_bytes) if source else None

    def ready(self) -> tuple[LinkId, ...]:
        """The links that have a frame to write."""
        return tuple(link.id for link in self._links.values() if link.ready)

    def link_of(self, node: NodeId) -> LinkId | None:
        """The link to use for `node`."""
        peer = self._peers.get(node)
        return peer.link.id if peer and peer.link else None

    def effects(self) -> list[Effect]:
        """What there is to do since the last call."""
        drained, self._effects = self._effects, []
        return drained

    def members(self, *, now: float) -> tuple[Member, ...]:
        """Everyone we know of, ourselves included, by name and id."""
        found = [self._member(node, now) for node in self._known.beliefs]
        return tuple(sorted(found, key=lambda member: (member.name, member.id)))

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity for never."""
        if self._leaving:
            return float("inf")
        times = [self._planner.due, self._dialler.next_at(), self._known.next_burial()]
        times += [link.deadline() for link in self._links.values() if not link.closing]
        return min((time for time in times if time is not None), default=float("inf"))

    def tick(self, *, now: float) -> None:
        """Do what has become due; afterwards `next_deadline` is later than `now`."""
        if self._leaving:
            return
        self._excuse(now - self.next_deadline())
        for link in self._links.values():
            if not link.closing and link.deadline() <= now:
                link.advance(now)
                self._listen(link, now)
        for node in self._known.bury(now=now):
            self._forget(node)
        if self._planner.due is not None and self._planner.due <= now:
            self._planner.run(now)
        self._effects.extend(self._dialler.dials(now=now))

    # How it is done

    def _refuse(self, hello: Hello, now: float) -> None:
        """Raise PeerError if time or events since `judge` forbid a link."""
        peer = self._peers.get(hello.node, Peer())
        if self._leaving or self._known.has_left(hello.node, hello.epoch):
            raise PeerError("one of the two has left the mesh", close_code=LEAVING)
        if peer.refused_until > now:
            text = f"refused for {view.span(peer.refused_until - now)} more: {peer.refusal}"
            raise PeerError(text, close_code=limits.TOO_MUCH)

    def _handle(self, source: Link, peer: Peer, message: Gossip, now: float) -> None:
        match message:
            case Ping():
                peer.load, peer.load_at = message.load, now
                if message.want_pong:
                    source.answer(message.sequence)
            case Pong():
                peer.load, peer.load_at = message.load, now
                source.answered(message.sequence, now)
            case Delta():
                for delta in message.records:
                    self._learn(source, delta, now)
            case Leave():
                if message.epoch != source.hello.epoch:
                    raise PeerError(f"Leave: of epoch {message.epoch}, on a link of epoch {source.hello.epoch}")
                self._known.mark_left(source.peer, now=now)
                self._after_change(source.peer, True, source, now)
            case _:
                assert_never(message)

    def _learn(self, source: Link, delta: RecordDelta, now: float) -> None:
        own = delta.origin == source.peer
        if own and delta.epoch != source.hello.epoch:
            raise PeerError(f"Delta: its own record of epoch {delta.epoch}, on a link of epoch {source.hello.epoch}")
        new = delta.origin not in self._known.beliefs
        if own:
            changed = self._known.own_word(delta, now=now)
        else:
            linked = bool((peer := self._peers.get(delta.origin)) and peer.links)
            changed = self._known.hearsay(delta, teller=source.peer, linked=linked, now=now)
        source.told(delta)
        if changed and new:
            self._notify("joined", delta.origin, f"heard of from {self._name(source.peer)}")
        if changed and (keys := view.unreadable(delta.entries)):
            self._notify("changed", delta.origin, f"unreadable record: {', '.join(keys[:3])}")
        self._after_change(delta.origin, changed, source, now)

    def _after_change(self, node: NodeId, changed: bool, source: Link | None, now: float) -> None:
        """If the record of `node` changed: tell the shell, and everyone but `source`."""
        if not changed:
            return
        record = self._known.beliefs[node].record
        if record.left:
            self._notify("left", node, f"{self._name(node)} left the mesh")
            for link in self._peers.get(node, Peer()).links:
                self._close(link, NORMAL, "left the mesh")
            self._verdict(node, now)
        else:
            self._notify("changed", node, f"record of {self._name(node)}, version {record.version}")
        self._spread(node, source, at=now + RELAY_S + self._rng.uniform(0, RELAY_JITTER_S), now=now)
        self._planner.soon(now)

    def _spread(self, node: NodeId, source: Link | None, *, at: float, now: float) -> None:
        for link in self._links.values():
            if link is not source:
                link.offer(node, at)
                link.advance(now)

    def _introduce(self, link: Link, now: float) -> None:
        """Everything is news on a new link: ourselves at once, and as for the rest chance decides who of the two tells it."""
        link.offer(self._me, now)
        link.advance(now)
        at = now + self._rng.uniform(0, RELAY_JITTER_S)
        for node in self._known.beliefs:
            link.offer(node, at)

    def _seen(self, link: Link, peer: Peer, now: float) -> None:
        link.heard(now)
        link.advance(now)
        peer.last_seen = now
        self._verdict(link.peer, now)

    def _excuse(self, late: float) -> None:
        """If this tick is `late` because we were stopped, nobody was silent: what they sent meanwhile is still to be read."""
        if late > STALL_S:
            for link in self._links.values():
                link.heard_at += late

    def _listen(self, link: Link, now: float) -> None:
        """Notice a silence."""
        if link.heard_at + SILENT_CLOSE_S <= now:
            self._close(link, SILENT, f"no frame for {view.span(now - link.heard_at)}")
        if link.heard_at + SILENCE_S <= now and not link.silent:
            link.silent = True
            self._verdict(link.peer, now)

    def _verdict(self, node: NodeId, now: float) -> None:
        """Make known whether `node` is routable, if that is not what was made known last."""
        peer = self._peers.get(node)
        if peer is None:
            return
        why_not = self._why_not(node, peer, now)
        if peer.routable == (not why_not):
            return
        peer.routable = not why_not
        what, text = ("unroutable", f"{self._name(node)}: {why_not}") if why_not else ("routable", self._name(node))
        self._notify(what, node, text)

    def _why_not(self, node: NodeId, peer: Peer, now: float) -> str:
        record = self._known.beliefs[node].record
        return view.reason(record, peer, self._dialler.attempts.get(node), refused=self._planner.refusal(node), now=now)

    def _member(self, node: NodeId, now: float) -> Member:
        record = self._known.beliefs[node].record
        read = self._models.get(node)
        if read is None or read[0] is not record:
            read = self._models[node] = (record, view.models(record))
        if node == self._me:
            return view.member(record, self._self, why_not="this node leaves" if record.left else "", read=read[1])
        peer = self._peers.get(node, Peer())
        return view.member(record, peer, why_not=self._why_not(node, peer, now), read=read[1])

    def _close(self, link: Link, code: int, reason: str) -> None:
        if not link.closing:
            link.closing = True
            self._effects.append(Close(link=link.id, code=code, reason=reason))

    def _name(self, node: NodeId) -> str:
        record = self._known.record(node)
        return view.name(record, self._peers.get(node, Peer())) if record else short(node)

    def _notify(self, what: str, node: NodeId, text: str) -> None:
        self._effects.append(Notify(what=what, node=node, text=text))

    def _forget(self, node: NodeId) -> None:
        for link in self._peers.pop(node, Peer()).links:
            del self._links[link.id]
        self._models.pop(node, None)
        self._dialler.forget(node)
