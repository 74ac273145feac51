"""Hashes over records, so that two nodes can tell cheaply whether they know the same, and where they do not (pure).

A record's hash covers who, which life and how far; its content follows from these, since only its origin writes it. The hashes of
the records in one of 64 buckets are joined by XOR, which needs no order and takes a change of one record in constant time. None
of this is about trust: a member that makes two different sets look equal harms nobody but the repair of what differs.
"""

import hashlib
from collections.abc import Iterable

from meshnode.gossip.record import Record
from meshnode.names import NodeId
from meshnode.wire.messages import BUCKETS

HASH_BYTES = 8


def record_hash(record: Record) -> int:
    """0, which XOR does not see, for a node that is gone (retention differs from node to node) and for an empty record."""
    if record.left or record.down or record.version == 0:
        return 0
    numbers = record.epoch.to_bytes(8, "little") + record.incarnation.to_bytes(4, "little") + record.version.to_bytes(8, "little")
    digest = hashlib.sha256(b"meshnode-record-v1" + record.origin + numbers).digest()
    return int.from_bytes(digest[:HASH_BYTES], "little")


def bucket_of(node: NodeId) -> int:
    """Ids are hashes, so any byte of them spreads evenly."""
    return node[-1] % BUCKETS


def encode_buckets(buckets: Iterable[int]) -> bytes:
    """A set of buckets as a bitmap; bucket 0 is the lowest bit of the first byte."""
    return sum(1 << bucket for bucket in buckets).to_bytes(BUCKETS // 8, "little")


def decode_buckets(bitmap: bytes) -> frozenset[int]:
    bits = int.from_bytes(bitmap, "little")
    return frozenset(bucket for bucket in range(BUCKETS) if bits >> bucket & 1)


class Hashes:
    """The hashes of the buckets, kept current by `swap`."""

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS
        self._state = 0

    def swap(self, old: Record | None, new: Record | None) -> None:
        """`new` replaces `old`, both of one origin; None where there is none."""
        for record in filter(None, (old, new)):
            value = record_hash(record)
            self._buckets[bucket_of(record.origin)] ^= value
            self._state ^= value

    @property
    def state(self) -> bytes:
        """Of all records together."""
        return self._state.to_bytes(HASH_BYTES, "little")

    @property
    def buckets(self) -> bytes:
        """One hash after the other."""
        return b"".join(value.to_bytes(HASH_BYTES, "little") for value in self._buckets)

    def differing(self, theirs: bytes) -> tuple[int, ...]:
        """The buckets whose hash is another than in `theirs`, ascending."""
        ours = self.buckets
        spans = (slice(bucket * HASH_BYTES, (bucket + 1) * HASH_BYTES) for bucket in range(BUCKETS))
        return tuple(bucket for bucket, span in enumerate(spans) if ours[span] != theirs[span])
