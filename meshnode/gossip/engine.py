"""The gossip engine: who is in the mesh, what each node says of itself, and whom we are linked with (pure).

Theory of operation. The engine is a state machine without a clock, a socket or a task. Its shell tells it what happened
(`link_up`, `link_down`, `dial_failed`, `receive`, `discovered`, `move`, `advertise`, `set_load`, `observe_load`, `leave`), calls
`tick` when `next_deadline` has come, carries out `effects`, and asks `next_frame` for bytes whenever a socket can take some
(`ready` names the links that have any). After every call `next_deadline`, `effects` and `ready` may have changed. `now` never
runs backwards.

These things are kept, a module each:
- `knowledge`: a record for each node, and whose word counts for it. Records outlive links.
- `peer`, `link`: what each link still has to say. A pair of nodes should have one link; for moments it has two or none.
- `exchange`, `repair`: how records travel, and what two ends of a link do when theirs differ all the same.
- `dialling`, `plan`: attempts at seeds and at nodes without a link; `overlay` says who should have one.
- `roster`, `view`: the above as `Member`s, with the reason of everyone who is not routable.

How news travels: our own change goes out on every link in the next batch (50 ms). A record learnt from one peer is relayed to
the others 100 to 200 ms later, unless they have shown by then that they have it; in a full mesh the origin and one relay for
each pair do. Every flow ends: a PING is answered by at most one PONG, a delta is relayed only if it changed something, and for
the rest see `repair`.

What moves a peer: *linked* at `link_up`; *silent* after 3 s without a frame (not routable until the next frame), closed after
10 s; *lost* at `link_down` and redialled; *left* by its own LEAVE, or by hearsay when we have no link. A node that just
vanishes stays alive and not routable, with the reason: to declare it down takes agreement, which is not part of this engine
yet, and neither is refutation (every incarnation is 0).

Two processes with one identity (a copied data directory) are told apart by HELLO's `instance`. Whoever is linked with one refuses
the other, and says where the first is; the second goes there, and only when it has met a process that proves the same key does it
give up its own (`Rekey`). Nobody's word alone can make a node do that.

Errors: `judge` and `receive` raise PeerError; the shell closes that link with its code and reports `link_down`. Nothing else
raises because of what a peer did.
"""

import random
from collections.abc import Iterable, Mapping
from typing import assert_never

import msgspec

from meshnode.errors import PeerError
from meshnode.gossip import hello as greeting
from meshnode.gossip import limits, view
from meshnode.gossip.dialling import Attempt, Dialler, Network
from meshnode.gossip.effects import Close, Effect, LinkId, Rekey
from meshnode.gossip.exchange import Exchange
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.link import SILENCE_S, SILENT_CLOSE_S, Link
from meshnode.gossip.member import Member
from meshnode.gossip.notices import Notices
from meshnode.gossip.overlay import MAX_NODES
from meshnode.gossip.peer import Peer, surplus
from meshnode.gossip.plan import MESH_FULL, Planner
from meshnode.gossip.repair import Repair
from meshnode.gossip.roster import Roster
from meshnode.names import MeshId, NodeId, printable
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Delta,
    Digest,
    Gossip,
    Held,
    Hello,
    Leave,
    ModelState,
    Ping,
    Pong,
    Pull,
    Versions,
)

REDIAL_S = 0.3
"""Time for a restarted process to listen again. A guess."""
SHORT_LIFE_S = 10.0
"""A link that breaks earlier counts as a failed dial."""
STALL_S = 2.0
"""Later than any busy loop is, and below the three seconds after which we would call everyone silent."""
MAX_LOADS = 64
DUPLICATE, SILENT, LEAVING, FULL = 4410, 4408, 4411, 4412
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
        instance: bytes,
        listen: tuple[str, ...],
        seeds: tuple[str, ...],
        remembered: Mapping[NodeId, tuple[str, ...]],
        rng: random.Random,
        now: float,
    ) -> None:
        self._me = node
        self._hello = Hello(PROTOCOL_MIN, PROTOCOL_MAX, mesh, node, name, version, epoch, instance, listen)
        self._rng = rng
        self._known = Knowledge(me=node, epoch=epoch, now=now)
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[LinkId, Link] = {}
        self._dialler = Dialler(rng)
        self._self = Peer(last_seen=None)
        self._leaving = False
        self._planner = Planner(
            self._known, self._peers, self._dialler, seeds=seeds, remembered=remembered, listen=listen, now=now
        )
        self._roster = Roster(self._known, self._peers, self._dialler, self._planner, ourselves=self._self)
        self._notices = Notices(self._peers, self._roster)
        self._exchange = Exchange(
            known=self._known, peers=self._peers, links=self._links, roster=self._roster, notices=self._notices, rng=rng
        )
        for key, value in ((view.NAME, name), (view.VERSION, version), (view.ADDR, listen)):
            self._known.write(key, encode_value(value))

    # What the shell reports

    def hello(self, peer: NodeId) -> Hello:
        """The first frame of a link with `peer`, as it has proved to be."""
        belief = self._known.record(peer)
        if belief is None:
            return self._hello
        listen = view.addresses(belief, self._peers.get(peer, Peer()))
        return msgspec.structs.replace(self._hello, held=Held(belief.epoch, listen))

    def judge(self, hello: Hello, *, proven: NodeId, addr: str, now: float) -> None:
        """Raise PeerError unless we may be linked with the node at `addr` that proved to be `proven`."""
        try:
            greeting.check(hello, proven=proven, ours=self._hello)
        except PeerError as error:
            self._note_refusal(hello, error, addr, now)
            raise
        if self._leaving:
            raise PeerError("this node is leaving the mesh", close_code=LEAVING)
        link = self._peers[proven].link if proven in self._peers else None
        if link and greeting.life(link.hello) != greeting.life(hello) and not link.is_silent(now):
            raise PeerError(f"another process with this identity is linked from {link.addr}", close_code=greeting.OWN_ID)
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
            self._notices.add(Close(link=link, code=error.close_code, reason=error.message))
            if dialled:
                self._dialler.failed(addr, error.message, now=now)
            return
        if dialled:
            self._dialler.succeeded(addr, node)
        peer = self._peers.setdefault(node, Peer())
        bucket = limits.Bucket(limits.GOSSIP_BYTES_PER_S, limits.GOSSIP_BURST, now=now)
        up = Link(id=link, peer=node, hello=hello, addr=addr, dialled=dialled, bucket=bucket, repair=Repair(now=now), up_at=now)
        self._links[link] = up
        peer.links.append(up)
        peer.hello, peer.lost_at = hello, None
        self._roster.outsiders.forget(node)
        for other, why in surplus(peer.links, me=self._me, peer=node, now=now):
            self._notices.close(other, DUPLICATE, why)
        if changed and not new:
            peer.load = ()
        if new:
            self._notices.notify("joined", node, f"{hello.name} (meshnode {hello.version}), linked at {addr}")
        self._seen(up, peer, now)
        self._exchange.introduce(up, now)
        self._planner.soon(now)

    def link_down(self, link: LinkId, reason: str, *, code: int = 0, now: float) -> None:
        """`link` is gone, whoever closed it. `code` is what the peer closed it with, 0 for none."""
        down = self._links.pop(link, None)
        if down is None:
            return
        if code == greeting.OWN_ID and down.hello.held:
            self._planner.verify(down.hello.held.listen, now)
        peer = self._peers[down.peer]
        peer.links.remove(down)
        if not peer.links:
            peer.lost_at, peer.lost_reason, peer.load = now, printable(reason) or "closed", ()
            self._planner.lost(down.peer, short=now - down.up_at < SHORT_LIFE_S, at=now + REDIAL_S)
            if self._known.part(down.peer, now=now):
                self._exchange.changed(down.peer, None, now)
        self._notices.verdict(down.peer, now)
        self._planner.soon(now)

    def dial_failed(self, addr: str, reason: str, *, now: float) -> None:
        """A Dial of `addr` did not lead to a link."""
        self._dialler.failed(addr, printable(reason), now=now)
        verifying = self._dialler.attempts.get(self._me)
        if verifying is not None and verifying.failures:
            self._dialler.forget(self._me)

    def discovered(self, node: NodeId, addrs: tuple[str, ...], *, now: float) -> None:
        """By mDNS `node` is at `addrs`; none: no longer. Anyone can say so, so it leads to a dial at most."""
        if node == self._me:
            self._planner.verify(addrs, now)
        else:
            self._planner.announce(node, addrs, now)

    def add_seed(self, addr: str, *, now: float) -> None:
        """A person gave the address of a node."""
        self._planner.add_seed(addr, now)

    def move(self, listen: tuple[str, ...], networks: tuple[Network, ...], *, now: float) -> None:
        """Our addresses are `listen` now, and we are directly on `networks`."""
        self._hello = msgspec.structs.replace(self._hello, listen=listen)
        self._planner.move(listen, networks, now)
        self.advertise(view.ADDR, encode_value(listen), now=now)

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
            self._notices.verdict(source.peer, now)
            raise
        self._seen(source, peer, now)

    def advertise(self, key: str, value: bytes | None, *, now: float) -> None:
        """Set `key` of our own record, or remove it. Raises ValueError when the others would refuse it as too large."""
        if not self._leaving and self._known.write(key, value):
            self._exchange.spread_own(now)

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
        return source.next_frame(self._known, self._self.load, now, max_bytes) if source else None

    def ready(self) -> tuple[LinkId, ...]:
        """The links that have a frame to write."""
        return tuple(link.id for link in self._links.values() if link.ready)

    def link_of(self, node: NodeId) -> LinkId | None:
        """The link to use for `node`."""
        peer = self._peers.get(node)
        return peer.link.id if peer and peer.link else None

    def effects(self) -> list[Effect]:
        """What there is to do since the last call."""
        return self._notices.drain()

    def members(self, *, now: float) -> tuple[Member, ...]:
        """Everyone we know of, ourselves included, by name and id."""
        return self._roster.members(now=now)

    def contacts(self) -> dict[NodeId, tuple[str, ...]]:
        """Whom we could dial in a next life: everyone we were linked with in this one or remember from an earlier one, the latest
        last, with the address that worked first."""
        met = sorted((peer.last_seen, node) for node, peer in self._peers.items() if peer.last_seen is not None)
        found = {node: self._planner.addresses(node) for _, node in met}
        return {node: addrs for node, addrs in (self._planner.remembered | found).items() if addrs}

    def attempts(self) -> Iterable[Attempt]:
        """What is dialled or waits to be."""
        return [attempt for attempt in self._dialler.attempts.values() if attempt.addrs and attempt.deadline() is not None]

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
        for dial in self._dialler.dials(now=now):
            self._notices.add(dial)

    # How it is done

    def _note_refusal(self, hello: Hello, error: PeerError, addr: str, now: float) -> None:
        if error.close_code == greeting.WRONG_VERSION:
            self._roster.outsiders.saw(hello, addr=addr, now=now)
        elif error.close_code == greeting.OWN_ID and greeting.gives_way(self._hello, hello):
            self._notices.add(Rekey(reason=f"{error.message} (the other is at {addr})"))

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
                equal = message.state_hash == self._known.hashes.state
                source.repair.compare(equal=equal, busy=source.has_news, now=now)
                if message.want_pong:
                    source.answer(message.sequence)
            case Pong():
                peer.load, peer.load_at = message.load, now
                source.answered(message.sequence, now)
            case Delta():
                for delta in message.records:
                    if self._exchange.learn(source, delta, now):
                        self._planner.soon(now)
            case Leave():
                if message.epoch != source.hello.epoch:
                    raise PeerError(f"Leave: of epoch {message.epoch}, on a link of epoch {source.hello.epoch}")
                self._known.mark_left(source.peer, now=now)
                self._exchange.changed(source.peer, source, now)
            case Digest():
                source.repair.asked(message, self._known.hashes, now=now)
            case Versions():
                source.repair.answered()
                self._exchange.reconcile(source, message, now)
            case Pull():
                source.repair.pulled(now=now)
                self._exchange.answer(source, message, now)
            case _:
                assert_never(message)

    def _seen(self, link: Link, peer: Peer, now: float) -> None:
        link.heard(now)
        link.advance(now)
        peer.last_seen = now
        self._notices.verdict(link.peer, now)

    def _excuse(self, late: float) -> None:
        """If this tick is `late` because we were stopped, nobody was silent: what they sent meanwhile is still to be read."""
        if late > STALL_S:
            for link in self._links.values():
                link.heard_at += late

    def _listen(self, link: Link, now: float) -> None:
        """Notice a silence."""
        if link.heard_at + SILENT_CLOSE_S <= now:
            self._notices.close(link, SILENT, f"no frame for {view.span(now - link.heard_at)}")
        if link.heard_at + SILENCE_S <= now and not link.silent:
            link.silent = True
            self._notices.verdict(link.peer, now)

    def _forget(self, node: NodeId) -> None:
        for link in self._peers.pop(node, Peer()).links:
            del self._links[link.id]
        for other in self._links.values():
            other.correct(node, None)
        self._roster.forget(node)
        self._dialler.forget(node)
