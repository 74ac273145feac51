"""Anti-entropy on one link: notice that two nodes' records differ, find where, and ask for what is missing (pure).

Deltas by per-link knowledge should leave nothing to repair. This is for what they do not foresee: a record that one node forgot
or refused, a bug, a member that lies. Equal hashes in the heartbeats cost nothing; a difference that lasts a second costs one
DIGEST, and one that cannot be repaired (a node that is linked with only one of the two may look different to the other) a DIGEST
in 30 s.

Every exchange ends: DIGEST is answered by at most one VERSIONS, that by PULL and DELTA, PULL by DELTA; and a DELTA by PULL only
where it begins beyond what we have, at most twice a second.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from meshnode.errors import PeerError
from meshnode.gossip import limits
from meshnode.gossip.digest import Hashes, bucket_of, encode_buckets
from meshnode.gossip.record import Record
from meshnode.names import NodeId
from meshnode.wire.codec import encode
from meshnode.wire.messages import Digest, Pull, Version, Versions, Want

SETTLE_S = 1.0
"""News under way makes hashes differ for the 0.3 s that a relay takes at most."""
FIRST_BACK_OFF_S = 2.0
MAX_BACK_OFF_S = 30.0
PULL_GAP_S = 0.5
"""Between two PULLs: half of what the other end tolerates."""
MAX_BYTES = 16 * 1024
"""Of a VERSIONS or a PULL, as of a DELTA."""
MAX_WANTS = 1024
VERSION_COST = 48
WANT_COST = 40
FRAME_COST = 64
"""Upper bounds in bytes on the wire."""

Records = Callable[[], Iterable[Record]]


class Repair:
    """What one link has to ask and to answer about differences."""

    def __init__(self, *, now: float) -> None:
        self._unanswered = 0
        """DIGESTs of ours that VERSIONS may still answer: where all is equal, none comes."""
        self._digests = limits.Bucket(limits.DIGESTS_PER_S, 2 * limits.DIGESTS_PER_S, now=now)
        self._pulls = limits.Bucket(limits.PULLS_PER_S, 2 * limits.PULLS_PER_S, now=now)
        self._differs_since: float | None = None
        self._back_off = FIRST_BACK_OFF_S
        self._next_digest = now
        self._digest = False
        self._asked: tuple[int, ...] = ()
        """Buckets that the peer wants to know about."""
        self._wants: dict[NodeId, Want] = {}
        self._next_pull = now
        self._pull = False

    def compare(self, *, equal: bool, busy: bool, now: float) -> None:
        """A heartbeat came, its hash `equal` to ours or not. `busy`: we have news on this link that explain a difference."""
        if equal:
            self._differs_since, self._back_off, self._digest = None, FIRST_BACK_OFF_S, False
        elif self._differs_since is None:
            self._differs_since = now
        elif now - self._differs_since >= SETTLE_S and not busy and now >= self._next_digest:
            self._digest = True

    def asked(self, digest: Digest, ours: Hashes, *, now: float) -> None:
        """Raises PeerError when it asks too often."""
        if not self._digests.take(1, now=now):
            raise limits.breach("DIGEST too often")
        self._asked = ours.differing(digest.hashes)

    def pulled(self, *, now: float) -> None:
        """Raises PeerError when it asks too often."""
        if not self._pulls.take(1, now=now):
            raise limits.breach("PULL too often")

    def answered(self) -> None:
        """Raises PeerError when VERSIONS answers nothing."""
        if not self._unanswered:
            raise PeerError("Versions: there was no DIGEST")
        self._unanswered -= 1

    def want(self, origin: NodeId, *, epoch: int, from_version: int) -> None:
        if origin in self._wants or len(self._wants) < MAX_WANTS:
            self._wants[origin] = Want(origin, epoch, from_version)

    @property
    def ready(self) -> bool:
        return self._digest or self._pull or bool(self._asked)

    def deadline(self) -> float:
        """When a PULL that has to wait may go."""
        return self._next_pull if self._wants and not self._pull else float("inf")

    def advance(self, now: float) -> None:
        if self._wants and self._next_pull <= now:
            self._pull = True

    def next_frame(self, ours: Hashes, records: Records, now: float, room: int) -> bytes | None:
        """The next PULL, VERSIONS or DIGEST. None when there is nothing, or `room` bytes are too few for it."""
        room = min(room, MAX_BYTES) - FRAME_COST
        if self._pull:
            return self._ask(now, room)
        if self._asked:
            return self._answer(records, room)
        if self._digest and len(ours.buckets) <= room:
            self._digest, self._unanswered = False, self._unanswered + 1
            self._next_digest, self._back_off = now + self._back_off, min(MAX_BACK_OFF_S, 2 * self._back_off)
            return encode(Digest(ours.buckets))
        return None

    def _ask(self, now: float, room: int) -> bytes | None:
        wants = tuple(islice(self._wants.values(), max(0, room // WANT_COST)))
        if not wants:
            return None
        for want in wants:
            del self._wants[want.origin]
        self._next_pull, self._pull = now + PULL_GAP_S, False
        return encode(Pull(wants))

    def _answer(self, records: Records, room: int) -> bytes | None:
        """As many of the buckets as fit; the peer asks for the others with its next DIGEST. One that never fits is left out."""
        if room < MAX_BYTES // 2:
            return None
        versions: list[Version] = []
        covered = []
        held = _by_bucket(records(), frozenset(self._asked))
        for bucket in self._asked:
            found = held.get(bucket, [])
            if (len(versions) + len(found)) * VERSION_COST > room:
                continue
            versions += found
            covered.append(bucket)
        self._asked = ()
        return encode(Versions(encode_buckets(covered), tuple(versions)))


def _by_bucket(records: Iterable[Record], buckets: frozenset[int]) -> dict[int, list[Version]]:
    found: dict[int, list[Version]] = {}
    for record in records:
        if (bucket := bucket_of(record.origin)) in buckets and record.version > 0:
            version = Version(record.origin, record.epoch, record.incarnation, record.version, record.standing)
            found.setdefault(bucket, []).append(version)
    return found
