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
10 s; *lost* at `link_down` and redialled; *left* by its own LEAVE, or by hearsay when we do not hear it. That it is *down* takes
more than our own silence, and the agreement of others where there are any: `detector` tells how. Two verdicts, kept apart (design
D9): *routable* is ours, instant, and never gossiped; the state of a member is everybody's.

Two processes with one identity (a copied data directory) are told apart by HELLO's `instance`. Whoever is linked with one refuses
the other, and says where the first is; the second goes there, and only when it has met a process that proves the same key does it
give up its own (`Rekey`). Nobody's word alone can make a node do that.

Errors: `judge` and `receive` raise PeerError; the shell closes that link with its code and reports `link_down`. Nothing else
raises because of what a peer did.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import assert_never

import msgspec

from meshnode.errors import PeerError
from meshnode.gossip import hello as greeting
from meshnode.gossip import limits, view
from meshnode.gossip.admission import Admission
from meshnode.gossip.agenda import Agenda
from meshnode.gossip.detector import Detector
from meshnode.gossip.dialling import Attempt, Dialler, Network
from meshnode.gossip.effects import Close, Effect, LinkId
from meshnode.gossip.exchange import Exchange
from meshnode.gossip.hearing import Hearing, helpers, size
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.lag import Lag
from meshnode.gossip.link import Link, new_link
from meshnode.gossip.member import Member
from meshnode.gossip.notices import Notices
from meshnode.gossip.peer import Peer, surplus
from meshnode.gossip.plan import Planner
from meshnode.gossip.roster import Roster
from meshnode.names import MeshId, NodeId, printable
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Accuse,
    Delta,
    Digest,
    Finding,
    Gossip,
    Held,
    Hello,
    Leave,
    ModelState,
    Ping,
    Pong,
    Probe,
    Pull,
    Sketch,
    Versions,
)

REDIAL_S = 0.3
"""Time for a restarted process to listen again. A guess."""
SHORT_LIFE_S = 10.0
"""A link that breaks earlier counts as a failed dial."""
MAX_LOADS = 64
MAX_STALL_S = 60.0
NOTED_EVERY_S = 0.25
DUPLICATE = 4410
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
        self._known = Knowledge(me=node, epoch=epoch, now=now)
        self._peers: dict[NodeId, Peer] = {}
        self._links: dict[LinkId, Link] = {}
        self._agenda = Agenda(rng)
        self._dialler = Dialler(rng)
        self._self = Peer(last_seen=None)
        self._leaving = False
        self._planner = Planner(
            self._known, self._peers, self._dialler, seeds=seeds, remembered=remembered, listen=listen, now=now
        )
        lag = Lag()
        self._detector = Detector(
            self._known, lag, rng, helpers=partial(helpers, self._peers), size=partial(size, self._known, self._peers)
        )
        known, peers, links, dialler, detector = self._known, self._peers, self._links, self._dialler, self._detector
        self._roster = Roster(
            known=known, peers=peers, dialler=dialler, planner=self._planner, detector=detector, ourselves=self._self
        )
        self._notices = Notices(self._peers, self._roster)
        self._admission = Admission(self._known, self._peers, self._roster.outsiders, add=self._notices.add)
        self._exchange = Exchange(known=known, peers=peers, links=links, roster=self._roster, notices=self._notices, rng=rng)
        self._hearing = Hearing(
            known=known,
            peers=peers,
            links=links,
            agenda=self._agenda,
            dialler=dialler,
            planner=self._planner,
            detector=detector,
            exchange=self._exchange,
            notices=self._notices,
            lag=lag,
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
        self._admission.judge(hello, ours=self._hello, proven=proven, addr=addr, now=now)

    def link_up(self, link: LinkId, hello: Hello, *, addr: str, dialled: bool, now: float) -> None:
        """Both HELLOs were exchanged on `link`, and `judge` let the peer's pass. `addr` is where it was dialled, or came from."""
        node = hello.node
        new = self._known.record(node) is None
        try:
            self._admission.confirm(hello, now)
            changed = self._known.meet(node, hello.epoch)
        except PeerError as error:
            self._notices.add(Close(link=link, code=error.close_code, reason=error.message))
            if dialled:
                self._dialler.failed(addr, error.message, now=now)
            return
        if dialled:
            self._dialler.succeeded(addr, node)
        peer = self._peers.setdefault(node, Peer())
        up = new_link(link, hello, self._agenda, addr=addr, dialled=dialled, now=now)
        self._links[link] = up
        peer.links.append(up)
        peer.hello, peer.lost_at = hello, None
        self._roster.outsiders.forget(node)
        for other, why in surplus(peer.links, me=self._me, peer=node, now=now):
            self._notices.close(other, DUPLICATE, why)
        if changed and not new:
            peer.load = ()
            peer.sketches.clear()
            self._exchange.forget(node)
        if new:
            self._notices.notify("joined", node, f"{hello.name} (meshnode {hello.version}), linked at {addr}")
        self._hearing.met(up, now)
        self._exchange.introduce(up, now)
        for sketch, _ in self._self.sketches.values():
            up.sketch(sketch)
        self._planner.soon(now)

    def link_down(self, link: LinkId, reason: str, *, code: int = 0, now: float) -> None:
        """`link` is gone, whoever closed it. `code` is what the peer closed it with, 0 for none."""
        down = self._links.pop(link, None)
        if down is None:
            return
        self._agenda.drop(link)
        if code == greeting.OWN_ID and down.hello.held:
            self._planner.verify(down.hello.held.listen, now)
        peer = self._peers[down.peer]
        peer.links.remove(down)
        if not peer.links:
            peer.lost_at, peer.lost_reason, peer.load = now, printable(reason) or "closed", ()
            peer.sketches.clear()
            self._planner.lost(down.peer, short=now - down.up_at < SHORT_LIFE_S, at=now + REDIAL_S)
            self._hearing.lost(down.peer, now)
            if self._known.part(down.peer, now=now):
                self._exchange.changed(down.peer, None, now)
        self._notices.verdict(down.peer, now)
        self._planner.soon(now)

    def dial_failed(self, addr: str, reason: str, *, refused: bool = False, now: float) -> None:
        """A Dial of `addr` did not lead to a link. `refused`: the host is there, and nothing listens."""
        expected = self._dialler.expected(addr)
        self._dialler.failed(addr, printable(reason), now=now)
        for node in expected if refused else ():
            self._hearing.refused(node, addr, now)
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
            source.begin_close()
            if error.close_code == limits.TOO_MUCH:
                peer.refused_until, peer.refusal = now + limits.PENALTY_S, error.message
            self._notices.verdict(source.peer, now)
            raise
        self._hearing.seen(source, now)

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

    def set_sketches(self, sketches: Sequence[Sketch], *, now: float) -> None:
        """What we have cached is this now; direct peers are told of what is new in it. Not to be called for every change."""
        for sketch in filter(lambda sketch: self._self.hear(sketch, now), sketches):
            for link in self._links.values():
                link.sketch(sketch)

    def observe_load(self, node: NodeId, load: Loads, *, now: float) -> None:
        """A reply of `node` carried its load."""
        peer = self._peers.get(node)
        if peer and peer.links and load:
            peer.load, peer.load_at = load, now

    def heard(self, link: LinkId, *, now: float) -> bool:
        """Something came on `link`: its peer lives. Whether that was worth noting; a stream of tokens is, four times a second."""
        source = self._links.get(link)
        if source is None or source.closing or source.heard_at + NOTED_EVERY_S > now:
            return False
        self._hearing.seen(source, now)
        return True

    def announce_stall(self, seconds: float, *, now: float) -> None:
        """We may be silent for so long (at most 60 s): nobody shall suspect us, and nobody ask us for anything."""
        for link in self._links.values():
            link.stall(now + min(seconds, MAX_STALL_S), now)
            link.advance(now)

    def drain(self, draining: bool, *, now: float) -> None:
        """Whether we take nothing new. Others route nothing to us from when they hear it."""
        self.advertise(view.DRAINING, view.NIL if draining else None, now=now)

    def forget(self, node: NodeId, *, now: float) -> bool:
        """An operator says that `node`, which is not linked, is gone for good: it counts as left, everywhere. False if it did."""
        peer, record = self._peers.get(node), self._known.record(node)
        if node == self._me or record is None or record.left or (peer and peer.links):
            return False
        self._known.forget(node, now=now)
        self._exchange.changed(node, None, now)
        self._planner.soon(now)
        return True

    def leave(self, *, now: float) -> None:
        """We leave for good: nothing is dialled any more, and every link's last frame will be LEAVE."""
        self._leaving = self._admission.leaving = True
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
        return self._agenda.ready()

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
        return self._planner.contacts()

    def attempts(self) -> Iterable[Attempt]:
        """What is dialled or waits to be."""
        return [attempt for attempt in self._dialler.attempts.values() if attempt.addrs and attempt.deadline() is not None]

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity for never."""
        if self._leaving:
            return float("inf")
        others = (self._planner.due, self._dialler.next_at(), self._known.next_burial())
        return min(self._agenda.deadline(), self._detector.deadline(), *(at for at in others if at is not None))

    def tick(self, *, now: float) -> None:
        """Do what has become due; afterwards `next_deadline` is later than `now`."""
        if self._leaving:
            return
        self._hearing.tick(now - self.next_deadline(), now)
        for node in self._known.bury(now=now):
            self._forget(node)
        if self._planner.due is not None and self._planner.due <= now:
            self._planner.run(now)
        for dial in self._dialler.dials(now=now):
            self._notices.add(dial)

    # How it is done

    def _handle(self, source: Link, peer: Peer, message: Gossip, now: float) -> None:
        match message:
            case Ping():
                peer.load, peer.load_at = message.load, now
                source.grace_until = now + message.grace_ms / 1000 if message.grace_ms else 0.0
                equal = message.state_hash == self._known.hashes.state
                source.repair.compare(equal=equal, busy=source.has_news, now=now)
                if message.want_pong:
                    source.answer(message.sequence)
            case Pong():
                peer.load, peer.load_at = message.load, now
                source.answered(message.sequence, now)
            case Sketch():
                peer.hear(message, now)
            case Delta():
                for delta in message.records:
                    if self._exchange.learn(source, delta, now):
                        self._planner.soon(now)
            case Leave():
                if message.epoch != source.hello.epoch:
                    raise PeerError(f"Leave: of epoch {message.epoch}, on a link of epoch {source.hello.epoch}")
                self._known.mark_left(source.peer, now=now)
                self._exchange.changed(source.peer, source, now)
            case Digest() | Versions() | Pull():
                self._exchange.repair(source, message, now)
            case Probe() | Finding() | Accuse():
                self._hearing.receive(source, message, now)
            case _:
                assert_never(message)

    def _forget(self, node: NodeId) -> None:
        for link in self._peers.pop(node, Peer()).links:
            del self._links[link.id]
            self._agenda.drop(link.id)
        self._exchange.forget(node)
        self._detector.forget(node)
        self._roster.forget(node)
        self._dialler.forget(node)
