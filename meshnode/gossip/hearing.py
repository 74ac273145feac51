"""Whom we hear and whom not: between the links, which know when a frame came, and the detector, which decides what silence means
(pure)."""

from meshnode.gossip import limits, view
from meshnode.gossip.agenda import Agenda
from meshnode.gossip.detector import Detector
from meshnode.gossip.dialling import Dialler
from meshnode.gossip.effects import LinkId
from meshnode.gossip.exchange import Exchange
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.lag import Lag
from meshnode.gossip.link import SILENCE_S, SILENT_CLOSE_S, Link
from meshnode.gossip.notices import Notices
from meshnode.gossip.peer import Peer
from meshnode.gossip.plan import Planner
from meshnode.names import NodeId
from meshnode.wire.messages import Accuse, Finding, Found, Probe

SILENT = 4408
FRESH_S = 1.5
"""We answer a probe by `heard` when a frame came within one and a half heartbeats: it may have died after an older one."""
ASK_AFTER_S = 1.0
"""A link that broke is redialled after 0.3 s; the answer to that is worth waiting for before others are asked."""
REDIAL_AGAIN_S = 0.35


class Hearing:
    """What the engine does about silence."""

    def __init__(  # noqa: PLR0913 - the engine's parts, each given once, by name
        self,
        *,
        known: Knowledge,
        peers: dict[NodeId, Peer],
        links: dict[LinkId, Link],
        agenda: Agenda,
        dialler: Dialler,
        planner: Planner,
        detector: Detector,
        exchange: Exchange,
        notices: Notices,
        lag: Lag,
    ) -> None:
        self._known = known
        self._peers = peers
        self._links = links
        self._agenda = agenda
        self._dialler = dialler
        self._planner = planner
        self._detector = detector
        self._exchange = exchange
        self._notices = notices
        self._lag = lag

    def seen(self, link: Link, now: float) -> None:
        """A frame came on `link`. Who was silent may have been called down meanwhile, and has to know in order to refute it."""
        if link.silent and (accusation := self._detector.accusation(link.peer)):
            link.say(accusation)
        link.heard(now)
        link.advance(now)
        self._peers[link.peer].last_seen = now
        self._detector.heard(link.peer)
        self._notices.verdict(link.peer, now)

    def met(self, link: Link, now: float) -> None:
        """`link` is up: its peer learns what it has to refute, and whom else we accuse, which may be lost with an older link."""
        for node in (link.peer, *self._detector.accused_by_us()):
            if accusation := self._detector.accusation(node):
                link.say(accusation)
        self.seen(link, now)

    def lost(self, node: NodeId, now: float) -> None:
        """The last link to `node` is gone."""
        self._detector.unheard(node, at=now + ASK_AFTER_S)

    def refused(self, node: NodeId, addr: str, now: float) -> None:
        """`addr`, where we looked for `node`, refuses connections. In a mesh of two there is nobody to ask but the host again."""
        peer = self._peers.get(node)
        if peer is not None and not peer.links and peer.lost_at is not None and self._is_its_own(addr, node):
            times = self._detector.refused(node, now)
            if times and size(self._known, self._peers) <= 2:
                self._dialler.again(node, now + REDIAL_AGAIN_S)
            self._deliver(now)

    def receive(self, source: Link, message: Probe | Finding | Accuse, now: float) -> None:
        """Raises PeerError when it comes too often."""
        match message:
            case Probe():
                _limit(source.probes, now)
                source.say(Finding(message.target, self._finding(message.target, now)))
            case Finding():
                self._detector.found(source.peer, message.target, message.found, now)
            case Accuse():
                _limit(source.accusations, now)
                self._accused(source, message, now)
        self._deliver(now)

    def tick(self, late: float, now: float) -> None:
        """Notice silences, and judge. `late`: how long after its time this is called."""
        if self._lag.served(late, now):
            for link in self._links.values():
                link.excuse(late, now)  # what they sent meanwhile is still to be read
            self._detector.excuse(now)
        for due in self._agenda.due(now):
            link = self._links[due]
            self._listen(link, now)
            link.advance(now)
        for node in self._detector.tick(now):
            if self._known.mark_down(node, now=now):
                self._exchange.changed(node, None, now)
        self._deliver(now)

    def _is_its_own(self, addr: str, node: NodeId) -> bool:
        """Whether `node` was there before, or says so itself: what only others say of addresses is no evidence."""
        belief = self._known.beliefs.get(node)
        said = view.addresses(belief.record, Peer()) if belief and belief.direct else ()
        return addr in said or self._dialler.proven(addr) == node

    def _listen(self, link: Link, now: float) -> None:
        """Notice a silence."""
        if link.heard_at + SILENT_CLOSE_S <= now:
            self._notices.close(link, SILENT, f"no frame for {view.span(now - link.heard_at)}")
        if link.is_silent(now) and not link.silent:
            link.silent = True
            self._detector.unheard(link.peer, at=max(now, link.grace_until + SILENCE_S))
            self._planner.soon(now)  # a new connection may get through where this one is held up
            self._notices.verdict(link.peer, now)

    def _finding(self, target: NodeId, now: float) -> Found:
        record, peer = self._known.record(target), self._peers.get(target)
        if record is None:
            return Found.UNKNOWN
        if peer and peer.link and max(peer.link.heard_at + FRESH_S, peer.link.grace_until) > now:
            return Found.HEARD
        accusation = self._detector.accusation(target)
        return Found.REFUSED if accusation and accusation.refused else Found.SILENT

    def _accused(self, source: Link, accusation: Accuse, now: float) -> None:
        target = accusation.target
        if target == self._known.me:
            self._exchange.refute(accusation.epoch, accusation.incarnation, now)
            return
        link = self._peers[target].link if target in self._peers else None
        if link is not None and not link.silent:
            self._exchange.pass_on(link, accusation, now)
        elif target in self._peers and self._peers[target].last_seen is not None:  # of whom we never met we cannot judge
            self._detector.accused(source.peer, accusation, now)

    def _deliver(self, now: float) -> None:
        """What the detector has for others, onto their links."""
        for helper, what in self._detector.outbox:
            if link := self._link(helper):
                link.say(what if isinstance(what, Accuse) else Probe(what))
        for helper, node in self._detector.questions:
            record = self._known.record(node)
            if record and (link := self._link(helper)):
                link.repair.want(node, epoch=record.epoch, from_version=record.version)
                link.advance(now)
        self._detector.outbox.clear()
        self._detector.questions.clear()

    def _link(self, node: NodeId) -> Link | None:
        peer = self._peers.get(node)
        return peer.link if peer else None


def helpers(peers: dict[NodeId, Peer], but: NodeId) -> list[NodeId]:
    """The nodes that we hear, except one."""
    return [node for node, peer in peers.items() if node != but and peer.link and not peer.link.silent]


def size(known: Knowledge, peers: dict[NodeId, Peer]) -> int:
    """How many nodes take part in a verdict: we, and those that we were linked with. Who is only heard of does not."""
    gone = known.left.keys() | known.down.keys()
    return 1 + sum(peer.last_seen is not None and node not in gone for node, peer in peers.items())


def _limit(bucket: limits.Bucket, now: float) -> None:
    if not bucket.take(1, now=now):
        raise limits.breach("probes or accusations too often")
