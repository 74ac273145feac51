"""What a node says of itself: keys with versions, and which of two accounts is the newer (pure).

Only the origin writes its record. It counts its writes, so a key's version tells which of two values is the later one, and
`(from, to]` in a delta tells which writes it covers. Within an epoch two accounts join key by key; a higher epoch is a new life
of the process and replaces everything. The join is commutative, associative and idempotent, whoever relayed what in which
order.

Contiguity is what lets a version stand for everything before it: a delta that starts beyond what we have is not applied (`Gap`),
since that would leave a hole that nobody would ever know of.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from meshnode.errors import PeerError
from meshnode.names import NodeId
from meshnode.wire.messages import Entry, RecordDelta, Standing

MAX_INCARNATION = 65_535
"""One life is suspected wrongly a few times. Who lies about it all the time raises no more than this."""
RECORD_COST = 64
ENTRY_COST = 20
"""Upper bounds, in bytes on the wire, of what comes around a record's entries and around an entry's key and value."""


class Gap(PeerError):
    """The delta starts beyond what we `have`: the rest has to be asked for.

    Among honest nodes that only happens after one of them lost its memory of the other (a forgotten record, a forged one
    replaced): links are reliable and ordered.
    """

    def __init__(self, message: str, *, have: int) -> None:
        super().__init__(message)
        self.have = have


class Stamp(NamedTuple):
    """How new an account of a record is; compares as a tuple.

    Having left is final for the epoch: it outranks the rest of it. Being called down outranks being alive in the same
    incarnation, and the next incarnation refutes it.
    """

    epoch: int
    left: bool
    incarnation: int
    down: bool
    version: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One origin's keys up to `version`, tombstones included."""

    origin: NodeId
    epoch: int
    incarnation: int = 0
    version: int = 0
    entries: Mapping[str, Entry] = {}
    left: bool = False
    down: bool = False

    @property
    def stamp(self) -> Stamp:
        return stamp_of(self.epoch, self.standing, self.incarnation, self.version)

    @property
    def standing(self) -> Standing:
        return Standing.LEFT if self.left else Standing.DOWN if self.down else Standing.ALIVE

    @property
    def size(self) -> int:
        return sum(map(entry_size, self.entries.values()))

    def value(self, key: str) -> bytes | None:
        """The value of `key`; None if it has none or no longer."""
        entry = self.entries.get(key)
        return entry.value if entry else None


def entry_size(entry: Entry) -> int:
    return len(entry.key) + len(entry.value or b"") + ENTRY_COST


def delta_size(delta: RecordDelta) -> int:
    """An upper bound of its bytes on the wire."""
    return RECORD_COST + sum(map(entry_size, delta.entries))


def claim(delta: RecordDelta) -> Stamp:
    """The stamp that whoever sent `delta` has at least."""
    return stamp_of(delta.epoch, delta.standing, delta.incarnation, delta.to_version)


def stamp_of(epoch: int, standing: Standing, incarnation: int, version: int) -> Stamp:
    return Stamp(epoch, standing is Standing.LEFT, incarnation, standing is Standing.DOWN, version)


def write(record: Record, key: str, value: bytes | None) -> Record:
    """The origin's own change: one more version."""
    version = record.version + 1
    return msgspec.structs.replace(record, version=version, entries={**record.entries, key: Entry(key, version, value)})


def _rank(entry: Entry) -> tuple[int, bool, bytes]:
    """Total, so that even an origin that gives two values one version cannot make two nodes disagree for ever."""
    return entry.version, entry.value is not None, entry.value or b""


def join(one: Record, other: Record) -> Record:
    """What both accounts together say."""
    if one.epoch != other.epoch:
        return one if one.epoch > other.epoch else other
    entries = dict(one.entries)
    for key, entry in other.entries.items():
        if key not in entries or _rank(entry) > _rank(entries[key]):
            entries[key] = entry
    incarnation, down = max((one.incarnation, one.down), (other.incarnation, other.down))
    return Record(
        origin=one.origin,
        epoch=one.epoch,
        incarnation=incarnation,
        version=max(one.version, other.version),
        entries=entries,
        left=one.left or other.left,
        down=down,
    )


def check(delta: RecordDelta) -> None:
    """Raise PeerError for a delta that no origin can have meant."""
    if delta.incarnation > MAX_INCARNATION:
        raise PeerError(f"Delta: incarnation {delta.incarnation} is above {MAX_INCARNATION}")
    if not all(delta.from_version < entry.version <= delta.to_version for entry in delta.entries):
        raise PeerError("Delta: an entry's version is outside of the versions that the delta covers")
    if delta.from_version > delta.to_version:
        raise PeerError("Delta: from_version is above to_version")


def apply(have: Record | None, delta: RecordDelta) -> Record:
    """`have` with what `delta` adds. Raises Gap. A delta of an earlier epoch adds nothing."""
    known = have.version if have and have.epoch == delta.epoch else 0
    if delta.from_version > known and not (have and have.epoch > delta.epoch):
        raise Gap(f"Delta: starts at version {delta.from_version} and we have {known}", have=known)
    news = Record(
        origin=delta.origin,
        epoch=delta.epoch,
        incarnation=delta.incarnation,
        version=delta.to_version,
        entries={entry.key: entry for entry in sorted(delta.entries, key=_rank)},
        left=delta.standing is Standing.LEFT,
        down=delta.standing is Standing.DOWN,
    )
    return news if have is None else join(have, news)


def delta_for(record: Record, known: Stamp | None, room: int) -> RecordDelta | None:
    """What someone at `known` lacks, as far as it fits into `room` bytes; None if not even a first entry does.

    Entries go in the order of their versions, so that the piece that fits is contiguous with the pieces to come.
    """
    base = known.version if known and known.epoch == record.epoch else 0
    lacking = sorted((entry for entry in record.entries.values() if entry.version > base), key=_rank)
    room -= RECORD_COST
    taken = []
    for entry in lacking:
        room -= entry_size(entry)
        if room < 0:
            break
        taken.append(entry)
    if room < 0 and not taken:
        return None
    to_version = record.version if len(taken) == len(lacking) else taken[-1].version
    return RecordDelta(record.origin, record.epoch, record.incarnation, base, to_version, tuple(taken), record.standing)
