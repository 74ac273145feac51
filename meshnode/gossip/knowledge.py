"""What this node believes of every record's origin, and whom it believes (pure; design D8).

Records are not signed. Instead: while we hear X on a link of its own, only X speaks for X. What others say of X then is kept
aside (`heard`, only while it is ahead of X's own word) and comes into force if the link is lost, so that a leave that X could not
tell us any more is not missed. Without a link to X, or while it is silent, hearsay is joined into X's record (but which life X
lives is for its link to say, silent or not); the first delta of a new link to X replaces what came by hearsay.

A node that left is remembered for an hour, so that `status` can say so, one that is down for a day; and then its id and epoch for
as long as there is room, so that slower nodes do not bring it back. Of a node that is gone nobody is told who never met it: it
would be passed on from newcomer to newcomer for ever.

Epochs rise, but for a node that lost its data and whose clock is late. Whoever meets it believes its link, and takes the life of
the higher epoch for over: nodes that it has not met yet still tell of that one, and by the order of stamps they would win.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from meshnode.errors import PeerError
from meshnode.gossip import limits
from meshnode.gossip.digest import Hashes
from meshnode.gossip.record import MAX_INCARNATION, Gap, Record, apply, check, write
from meshnode.names import NodeId
from meshnode.wire.messages import RecordDelta, Standing

LEFT_SHOWN_S = 3600.0
DOWN_SHOWN_S = 24 * 3600.0
"""A laptop that sleeps overnight is still the same member in the morning."""
GRAVEYARD = 4096
MAX_AHEAD_MS = 24 * 3600 * 1000
"""How far ahead of our clock a relayed epoch may be (security rule 8); a forged one hides its node's real ones until then."""


@dataclass
class Belief:
    """What we hold of one origin. `direct`: all of it came over its own links."""

    record: Record
    direct: bool
    heard: Record | None = None


class Knowledge:
    """Every belief, our own record among them. Methods that take in what others say return whether a record changed."""

    def __init__(self, *, me: NodeId, epoch: int, now: float) -> None:
        self.me = me
        self.epoch = epoch
        self.beliefs: dict[NodeId, Belief] = {me: Belief(Record(origin=me, epoch=epoch), direct=True)}
        self.hashes = Hashes()
        """Of all records, ours included."""
        self.left: dict[NodeId, float] = {}
        """When we learned that a peer left; the earliest first."""
        self.down: dict[NodeId, float] = {}
        """Likewise, that it is down."""
        self._started = now
        self._graveyard: OrderedDict[NodeId, int] = OrderedDict()
        self._new_ids: OrderedDict[NodeId, limits.Bucket] = OrderedDict()
        """For each teller its own, so that one that lies costs no other its link; the longest unused are forgotten."""
        self._bytes = 0

    def record(self, node: NodeId) -> Record | None:
        belief = self.beliefs.get(node)
        return belief.record if belief else None

    def records(self) -> Iterator[Record]:
        return (belief.record for belief in self.beliefs.values())

    def write(self, key: str, value: bytes | None) -> bool:
        """Change our own record. Raises ValueError when that breaks a limit by which the others would refuse it."""
        own = self.beliefs[self.me]
        if own.record.value(key) == value:
            return False
        record = write(own.record, key, value)
        if fault := limits.fault(record):
            raise ValueError(f"the key {key} cannot be advertised: that would make {fault}")
        self._replace(own, record)
        return True

    def leave(self) -> None:
        """Our own leave, for our own view: the others learn it from the LEAVE frame."""
        own = self.beliefs[self.me]
        self._replace(own, msgspec.structs.replace(own.record, left=True))

    def has_left(self, node: NodeId, epoch: int) -> bool:
        """Whether `node` itself told us that it leaves in `epoch`."""
        belief = self.beliefs.get(node)
        return belief is not None and belief.direct and belief.record.left and belief.record.epoch == epoch

    def meet(self, node: NodeId, epoch: int) -> bool:
        """A link to `node` is up, which lives in `epoch`. Another epoch's record ends here, whatever anyone said."""
        belief = self.beliefs.get(node)
        over = max(self._graveyard.pop(node, -1), belief.record.epoch if belief else -1)
        if over > epoch:
            self._inter(node, over)
        if belief is None:
            if len(self.beliefs) >= 2 * limits.MAX_RECORDS:  # hearsay fills half: who is really there has room
                raise limits.breach(f"more than {2 * limits.MAX_RECORDS} records")
            self.beliefs[node] = Belief(Record(origin=node, epoch=epoch), direct=True)
            return True
        if belief.record.epoch == epoch and not belief.record.left:
            return False
        self._bytes -= belief.record.size
        self.hashes.swap(belief.record, None)
        self.left.pop(node, None)
        self.down.pop(node, None)
        self.beliefs[node] = Belief(Record(origin=node, epoch=epoch), direct=True)
        return True

    def own_word(self, delta: RecordDelta, *, now: float) -> bool:
        """What a linked node says of itself. Raises PeerError when it may not."""
        check(delta)
        if delta.standing is Standing.DOWN:
            raise PeerError("Delta: it calls itself down")
        belief = self.beliefs[delta.origin]
        base = belief.record if belief.direct else None
        changed = self._commit(belief, apply(base, delta), now)
        belief.direct = True
        if belief.heard and belief.heard.stamp <= belief.record.stamp:
            belief.heard = None
        return changed

    def hearsay(self, delta: RecordDelta, *, teller: NodeId, speaking: bool, now: float) -> bool:
        """What `teller` says of another; `speaking`: what that one says for itself counts more. Raises PeerError when it may not.

        What is not to be believed is ignored: the teller may be as honest as we are.
        """
        check(delta)
        belief = self.beliefs.get(delta.origin)
        if delta.origin == self.me or delta.epoch > self._latest_epoch(now) or self._is_buried(delta, belief):
            return False
        if belief is None:
            return self._first_word(delta, teller, now)
        if speaking and delta.standing is Standing.DOWN:
            return False  # it is here: what would that be worth later?
        if speaking:
            try:
                heard = apply(belief.heard or belief.record, delta)
            except Gap:  # the node's new life may be known to the teller before its own first word is here
                return False
            belief.heard = heard if heard.stamp > belief.record.stamp and not limits.fault(heard) else None
            return False
        changed = self._commit(belief, apply(belief.record, delta), now)
        belief.direct = belief.direct and not changed
        return changed

    def part(self, node: NodeId, *, now: float) -> bool:
        """No link to `node` is left: what others said of it meanwhile counts now."""
        belief = self.beliefs[node]
        if belief.heard is None:
            return False
        belief.direct = False
        heard, belief.heard = belief.heard, None
        with suppress(PeerError):  # no room for it: the node's own last word stays
            return self._commit(belief, heard, now)
        return False

    def refute(self, epoch: int, incarnation: int) -> bool:
        """Somebody calls us down, or suspects it, in that life and incarnation. Whether there was something to refute.

        A lower incarnation is refuted already; a higher one is a lie, since only we raise it, and would use up the numbers.
        """
        own = self.beliefs[self.me]
        if (epoch, incarnation) != (self.epoch, own.record.incarnation) or incarnation >= MAX_INCARNATION:
            return False
        self._replace(own, msgspec.structs.replace(own.record, incarnation=incarnation + 1))
        return True

    def mark_down(self, node: NodeId, *, now: float) -> bool:
        """We are convinced that `node` is gone."""
        belief = self.beliefs[node]
        return not belief.record.left and self._commit(belief, msgspec.structs.replace(belief.record, down=True), now)

    def mark_left(self, node: NodeId, *, now: float) -> None:
        """The node itself says that it leaves."""
        belief = self.beliefs[node]
        record = belief.record
        self._commit(
            belief, apply(record, RecordDelta(node, record.epoch, 0, record.version, record.version, (), Standing.LEFT)), now
        )

    def is_buried(self, node: NodeId, epoch: int) -> bool:
        """Whether that life of `node` is over here. The one that we hold a record of is not, though it be of a lower epoch."""
        record = self.record(node)
        return (record.epoch if record else -1) < epoch <= self._graveyard.get(node, -1)

    def forget(self, node: NodeId, *, now: float) -> None:
        """An operator says that it is gone for good. Should it be there after all, it is welcome."""
        self.mark_left(node, now=now)
        self.beliefs[node].direct = False

    def next_burial(self) -> float | None:
        if not self.left and not self.down:
            return None
        left = next((at + LEFT_SHOWN_S for at in self.left.values()), None)
        down = next((at + DOWN_SHOWN_S for at in self.down.values()), None)
        return min((at for at in (left, down) if at is not None), default=None)

    def bury(self, *, now: float) -> list[NodeId]:
        """Forget those that left or went down long ago, but for the graveyard."""
        gone = [node for node, at in self.left.items() if at + LEFT_SHOWN_S <= now]
        gone += [node for node, at in self.down.items() if at + DOWN_SHOWN_S <= now]
        for node in gone:
            self.left.pop(node, None)
            self.down.pop(node, None)
            record = self.beliefs.pop(node).record
            self._bytes -= record.size
            self.hashes.swap(record, None)
            self._inter(node, record.epoch)
        return gone

    def _inter(self, node: NodeId, epoch: int) -> None:
        self._graveyard[node] = max(epoch, self._graveyard.pop(node, 0))
        if len(self._graveyard) > GRAVEYARD:
            self._graveyard.popitem(last=False)

    def _is_buried(self, delta: RecordDelta, belief: Belief | None) -> bool:
        """Nobody needs to hear of a node that was gone before we ever met it. One that is down may come back."""
        if belief is None and delta.standing is Standing.DOWN:
            return True
        if belief is None and delta.standing is Standing.LEFT:
            self._inter(delta.origin, delta.epoch)
        return self.is_buried(delta.origin, delta.epoch)

    def _latest_epoch(self, now: float) -> int:
        """Our start, in ms since 1970, is our epoch; a core without a clock knows the time from that."""
        return self.epoch + int((now - self._started) * 1000) + MAX_AHEAD_MS

    def _first_word(self, delta: RecordDelta, teller: NodeId, now: float) -> bool:
        if len(self.beliefs) >= limits.MAX_RECORDS:
            return False  # no fault of this teller's, who may be the most honest of all
        record = apply(None, delta)
        if not self._bucket(teller, now).take(1, now=now):
            raise limits.breach(f"more than {limits.NEW_IDS_PER_S:.0f} new nodes a second")
        belief = Belief(Record(origin=delta.origin, epoch=delta.epoch), direct=False)
        self._commit(belief, record, now)
        self.beliefs[delta.origin] = belief
        return True

    def _bucket(self, teller: NodeId, now: float) -> limits.Bucket:
        bucket = self._new_ids.pop(teller, None) or limits.Bucket(limits.NEW_IDS_PER_S, limits.NEW_IDS_BURST, now=now)
        self._new_ids[teller] = bucket
        if len(self._new_ids) > limits.TELLERS:
            self._new_ids.popitem(last=False)
        return bucket

    def _commit(self, belief: Belief, record: Record, now: float) -> bool:
        if record == belief.record:
            return False
        if fault := limits.fault(record):
            raise limits.breach(fault)
        grown = self._bytes + record.size - belief.record.size
        if grown > limits.MAX_TOTAL_BYTES:
            raise limits.breach(f"records of more than {limits.MAX_TOTAL_BYTES} bytes in all")
        self._bytes = grown
        self._replace(belief, record)
        _note(self.left, record.origin, record.left, now)
        _note(self.down, record.origin, record.down and not record.left, now)
        return True

    def _replace(self, belief: Belief, record: Record) -> None:
        self.hashes.swap(belief.record, record)
        belief.record = record


def _note(times: dict[NodeId, float], node: NodeId, holds: bool, now: float) -> None:
    """Keep in `times` since when it holds."""
    if holds:
        times.setdefault(node, now)
    else:
        times.pop(node, None)
