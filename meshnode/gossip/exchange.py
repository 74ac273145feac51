"""How records travel: what a peer's frames about them mean, and whom else that is news for (pure).

News goes to everyone but who told it: our own in the next batch, others' after a pause in which most show that they have it.
"""

import random

from meshnode.errors import PeerError
from meshnode.gossip import limits, view
from meshnode.gossip.digest import bucket_of, decode_buckets
from meshnode.gossip.effects import LinkId
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.link import Link
from meshnode.gossip.notices import Notices
from meshnode.gossip.peer import Peer
from meshnode.gossip.record import Gap, Record, Stamp, stamp_of
from meshnode.gossip.roster import Roster
from meshnode.names import NodeId
from meshnode.wire.messages import Accuse, Digest, Pull, RecordDelta, Standing, Version, Versions

RELAY_S = 0.1
RELAY_JITTER_S = 0.1
"""Long enough to see that the other one has the news already: jitter above a LAN's round trip halves the copies."""
NORMAL = 1000


class Exchange:
    """The traffic of records between `known` and the peers."""

    def __init__(
        self,
        *,
        known: Knowledge,
        peers: dict[NodeId, Peer],
        links: dict[LinkId, Link],
        roster: Roster,
        notices: Notices,
        rng: random.Random,
    ) -> None:
        self._known = known
        self._peers = peers
        self._links = links
        self._roster = roster
        self._notices = notices
        self._rng = rng

    def introduce(self, link: Link, now: float) -> None:
        """Everything is news on a new link: ourselves at once, and as for the rest chance decides who of the two tells it."""
        link.offer(self._known.me, now)
        link.advance(now)
        at = now + self._rng.uniform(0, RELAY_JITTER_S)
        for node, belief in self._known.beliefs.items():
            if not belief.record.down:
                link.offer(node, at)

    def spread_own(self, now: float) -> None:
        self._spread(self._known.me, None, at=now, now=now)

    def refute(self, epoch: int, incarnation: int, now: float) -> bool:
        """We are called down or suspect, and are not: everyone is told so by a higher incarnation."""
        if not self._known.refute(epoch, incarnation):
            return False
        self._notices.notify("refuted", self._known.me, f"this node was suspected in incarnation {incarnation}")
        self.spread_own(now)
        return True

    def pass_on(self, link: Link, accusation: Accuse, now: float) -> None:
        """The peer of `link`, which we hear, is accused of being gone: it can refute that, if it is about its present stage."""
        record = self._known.record(link.peer)
        if record and (record.epoch, record.incarnation) == (accusation.epoch, accusation.incarnation):
            link.warn(accusation, now)

    def changed(self, node: NodeId, source: Link | None, now: float) -> None:
        """The record of `node` is another, by what `source` said or by our own verdict: tell the shell, and everyone else."""
        record = self._known.beliefs[node].record
        name = self._roster.name(node)
        if record.left:
            self._notices.notify("left", node, f"{name} left the mesh")
            for link in self._peers.get(node, Peer()).links:
                self._notices.close(link, NORMAL, "left the mesh")
            self._notices.verdict(node, now)
        elif record.down:
            self._notices.notify("down", node, f"{name}: {self._roster.evidence(node) or 'others agree'}")
            self._notices.verdict(node, now)
        else:
            self._notices.notify("changed", node, f"record of {name}, version {record.version}")
        relay_at = now + RELAY_S + self._rng.uniform(0, RELAY_JITTER_S)
        self._spread(node, source, at=relay_at if source else now, now=now)

    def forget(self, node: NodeId) -> None:
        """Our record of `node` ended, or begins anew: what others have of the old one says nothing of what they lack now."""
        for link in self._links.values():
            link.correct(node, None)

    def learn(self, source: Link, delta: RecordDelta, now: float) -> bool:
        """Take in what `source` says of one record; whether that changed it. Raises PeerError when it may not say that."""
        if delta.origin == self._known.me:
            return delta.standing is Standing.DOWN and self.refute(delta.epoch, delta.incarnation, now)
        if delta.origin == source.peer and delta.epoch != source.hello.epoch:
            raise PeerError(f"Delta: its own record of epoch {delta.epoch}, on a link of epoch {source.hello.epoch}")
        new = delta.origin not in self._known.beliefs
        try:
            changed = self._take(source, delta, now)
        except Gap as gap:
            source.repair.want(delta.origin, epoch=delta.epoch, from_version=gap.have)
            return False
        if delta.origin in self._known.beliefs:
            source.told(delta)
        if not changed:
            return False
        if new:
            self._notices.notify("joined", delta.origin, f"heard of from {self._roster.name(source.peer)}")
        if keys := view.unreadable(delta.entries):
            self._notices.notify("changed", delta.origin, f"unreadable record: {', '.join(keys[:3])}")
        self.changed(delta.origin, source, now)
        return True

    def repair(self, link: Link, message: Digest | Versions | Pull, now: float) -> None:
        """Raises PeerError when the peer may not say that, or not so often."""
        match message:
            case Digest():
                link.repair.asked(message, self._known.hashes, now=now)
            case Versions():
                link.repair.answered()
                self._reconcile(link, message, now)
            case Pull():
                link.repair.pulled(now=now)
                self._answer(link, message, now)

    def _reconcile(self, link: Link, theirs: Versions, now: float) -> None:
        """Offer what the peer lacks, and want what we lack."""
        for version in theirs.versions:
            ours, stamp = self._known.record(version.origin), _stamp(version)
            if ours is not None:
                link.correct(version.origin, stamp)
            if ours is not None and ours.stamp > stamp:
                link.offer(version.origin, now)
            elif (ours.stamp < stamp if ours else not stamp.down) and self._may_tell(link, version):
                link.repair.want(version.origin, epoch=stamp.epoch, from_version=_from(ours, stamp))
        covered, listed = decode_buckets(theirs.buckets), {version.origin for version in theirs.versions}
        for record in self._known.records():
            gone = record.left or record.down
            if record.origin not in listed and not gone and bucket_of(record.origin) in covered:
                link.correct(record.origin, None)
                link.offer(record.origin, now)

    def _answer(self, link: Link, pull: Pull, now: float) -> None:
        """The peer has no more than it says there."""
        for want in pull.wants:
            if self._known.record(want.origin) is not None:
                link.correct(want.origin, Stamp(want.epoch, False, 0, False, want.from_version))
                link.offer(want.origin, now)

    def _take(self, source: Link, delta: RecordDelta, now: float) -> bool:
        if delta.origin == source.peer:
            return self._known.own_word(delta, now=now)
        link = self._peers[delta.origin].link if delta.origin in self._peers else None
        speaking = link is not None and not link.is_silent(now)
        if link and speaking and delta.standing is Standing.DOWN:
            if not source.accusations.take(1, now=now):
                raise limits.breach("accusations too often")
            self.pass_on(link, Accuse(delta.origin, delta.epoch, delta.incarnation), now)
        denied = link is not None and delta.epoch != link.hello.epoch  # if the silence ends, nobody would say that again
        return self._known.hearsay(delta, teller=source.peer, speaking=speaking or denied, now=now)

    def _is_linked(self, node: NodeId) -> bool:
        peer = self._peers.get(node)
        return bool(peer and peer.links)

    def _may_tell(self, link: Link, version: Version) -> bool:
        """Nobody tells us about ourselves, of a node that we are linked with nobody but that node (design D8), and of one that we
        have buried nobody anything that we would take for news."""
        origin = version.origin
        if origin == self._known.me or self._known.is_buried(origin, version.epoch):
            return False
        return origin == link.peer or not self._is_linked(origin)

    def _spread(self, node: NodeId, source: Link | None, *, at: float, now: float) -> None:
        for link in self._links.values():
            if link is not source:
                link.offer(node, at)
                link.advance(now)


def _stamp(version: Version) -> Stamp:
    return stamp_of(version.epoch, version.standing, version.incarnation, version.version)


def _from(ours: Record | None, stamp: Stamp) -> int:
    return ours.version if ours is not None and ours.epoch == stamp.epoch else 0
