"""Records against the vectors: hashes, buckets, joins and deltas."""

from typing import Any

import msgspec
import pytest

from meshnode.errors import PeerError
from meshnode.gossip.digest import Hashes, bucket_of, record_hash
from meshnode.gossip.record import Gap, Record, Stamp, apply, check, join
from meshnode.names import NodeId
from meshnode.wire.messages import Entry, RecordDelta, Standing
from protocol.vectors import Vector, load, readable

VECTORS = load("records")
ORIGIN = NodeId(bytes.fromhex("00112233445566778899aabbccddeeff"))


def named(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: vector["name"])


def bare(vector: Vector) -> Record:
    return Record(
        origin=NodeId(bytes.fromhex(vector.get("id", ORIGIN.hex()))),
        epoch=vector["epoch"],
        incarnation=vector["incarnation"],
        version=vector["version"],
        left=vector["standing"] == Standing.LEFT,
        down=vector["standing"] == Standing.DOWN,
    )


def entry(key: str, version: int, value: str | None) -> Entry:
    return Entry(key, version, None if value is None else bytes.fromhex(value))


def account(vector: Vector) -> Record:
    entries = {key: entry(key, version, value) for key, version, value in vector["entries"]}
    return msgspec.structs.replace(bare(vector), entries=entries)


def delta(fields: list[Any]) -> RecordDelta:
    origin, epoch, incarnation, start, end, entries, standing = fields
    found = tuple(entry(*each) for each in entries)
    return RecordDelta(NodeId(bytes.fromhex(origin)), epoch, incarnation, start, end, found, Standing(standing))


def shown(record: Record) -> object:
    """As a vector writes it, entries by key."""
    entries = [[entry.key, entry.version, readable(entry.value)] for _, entry in sorted(record.entries.items())]
    fields = {name: getattr(record, name) for name in ("epoch", "incarnation", "version", "standing")}
    return {**fields, "entries": entries}


@named("hashes")
def test_a_record_has_the_hash_and_the_bucket_of_the_vector(vector: Vector) -> None:
    record = bare(vector)

    assert record_hash(record).to_bytes(8, "little").hex() == vector["hash"]
    assert bucket_of(record.origin) == vector["bucket"]


@named("states")
def test_several_records_have_the_bucket_hashes_and_the_state_hash_of_the_vector(vector: Vector) -> None:
    hashes = Hashes()
    for record in map(bare, vector["records"]):
        hashes.swap(None, record)
    expected = [vector["buckets"].get(str(bucket), "00" * 8) for bucket in range(64)]

    assert hashes.buckets.hex() == "".join(expected)
    assert hashes.state.hex() == vector["state_hash"]


@named("stamps")
def test_stamps_are_ordered_as_in_the_vector(vector: Vector) -> None:
    stamps = [Stamp(*stamp) for stamp in vector["stamps"]]

    assert stamps == sorted(stamps)
    assert len(set(stamps)) == len(stamps)


@named("joins")
def test_two_accounts_join_to_that_of_the_vector_whichever_comes_first(vector: Vector) -> None:
    one, other = account(vector["one"]), account(vector["other"])

    assert shown(join(one, other)) == shown(join(other, one)) == vector["joined"]


@named("deltas")
def test_a_delta_gives_the_account_or_the_refusal_of_the_vector(vector: Vector) -> None:
    have = account(vector["have"]) if vector["have"] else None
    news = delta(vector["delta"])

    match vector["result"]:
        case "gap":
            with pytest.raises(Gap):
                apply(have, news)
        case "4400":
            with pytest.raises(PeerError) as refusal:
                check(news)
            assert refusal.value.close_code == 4400
        case expected:
            check(news)
            assert shown(apply(have, news)) == expected


def test_the_accounts_of_the_vectors_are_written_with_every_field() -> None:
    fields = set(msgspec.structs.asdict(Record(origin=ORIGIN, epoch=0))) - {"origin", "left", "down"} | {"standing"}

    assert all(set(vector[side]) == fields for vector in VECTORS["joins"] for side in ("one", "other", "joined"))
