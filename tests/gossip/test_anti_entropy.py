"""What two nodes do when their records differ although everything was told."""

import random

import msgspec
import pytest
from gossip.small_lan import Lan, Node, node_id
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import PeerError
from meshnode.gossip import digest, limits
from meshnode.gossip.digest import Hashes, decode_buckets, encode_buckets, record_hash
from meshnode.gossip.knowledge import Belief
from meshnode.gossip.record import Record
from meshnode.gossip.repair import MAX_BYTES, PULL_GAP_S, Repair
from meshnode.names import NodeId
from meshnode.wire.codec import decode, encode_value
from meshnode.wire.messages import BUCKETS, Delta, Digest, Entry, Pull, RecordDelta, Versions, Want

STRANGER = node_id(77)


def mesh(size: int, seconds: float = 3.0) -> tuple[Lan, list[Node]]:
    lan = Lan(0)
    nodes = [lan.start(number, seeds=(1,) if number > 1 else ()) for number in range(1, size + 1)]
    lan.run(seconds)
    return lan, nodes


def record(origin: NodeId, *, epoch: int = 1, version: int = 3, left: bool = False) -> Record:
    entries = {"name": Entry("name", version, encode_value("far"))} if version else {}
    return Record(origin=origin, epoch=epoch, version=version, entries=entries, left=left)


def believe(node: Node, account: Record) -> None:
    """Put `account` into what the node knows, past all links: as if a bug or a full table had kept it from the others."""
    known = node.engine._known
    old = known.record(account.origin)
    known.hashes.swap(old, account)
    known.beliefs[account.origin] = Belief(account, direct=False)


def forget(node: Node, origin: NodeId) -> None:
    known = node.engine._known
    known.hashes.swap(known.beliefs.pop(origin).record, None)


def hashes(nodes: list[Node]) -> set[bytes]:
    return {node.engine._known.hashes.state for node in nodes}


def sent(lan: Lan, kind: int) -> int:
    """How many frames of that kind there were."""
    messages = (line.split()[2] for line in lan.trace if len(line.split()) == 3 and "(" not in line)
    return sum(frame.__struct_config__.tag == kind for message in messages for frame in decode(bytes.fromhex(message)))


# Nodes on a simulated LAN


@pytest.mark.parametrize("size", [2, 3, 8])
def test_nodes_that_know_the_same_have_one_hash_and_send_nothing_to_repair(size: int) -> None:
    lan, nodes = mesh(size, seconds=20.0)

    assert len(hashes(nodes)) == 1
    assert [sent(lan, kind) for kind in (5, 6, 7)] == [0, 0, 0]


def test_a_record_that_one_node_lacks_reaches_it_within_four_seconds() -> None:
    lan, nodes = mesh(3)
    believe(nodes[0], record(STRANGER))
    lan.run(4.0)

    assert len(hashes(nodes)) == 1
    assert all(node.engine._known.record(STRANGER) == record(STRANGER) for node in nodes)


def test_a_record_that_all_others_have_is_pulled_by_the_one_that_lost_it() -> None:
    lan, nodes = mesh(3)
    for node in nodes:
        believe(node, record(STRANGER))
    forget(nodes[2], STRANGER)
    lan.run(4.0)

    assert len(hashes(nodes)) == 1
    assert nodes[2].engine._known.record(STRANGER) == record(STRANGER)


def test_the_newer_of_two_accounts_wins_everywhere() -> None:
    lan, nodes = mesh(3)
    believe(nodes[0], record(STRANGER, version=2))
    believe(nodes[1], record(STRANGER, version=5))
    believe(nodes[2], record(STRANGER, epoch=2, version=1))
    lan.run(6.0)

    assert [node.engine._known.record(STRANGER) for node in nodes] == [record(STRANGER, epoch=2, version=1)] * 3


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60), st.integers(1, 3), st.integers(1, 9)), max_size=30))
@settings(max_examples=25, deadline=None)
def test_whatever_three_nodes_know_of_others_they_end_up_knowing_the_same(accounts: list[tuple[int, int, int, int]]) -> None:
    lan, nodes = mesh(3)
    for holder, number, epoch, version in accounts:
        believe(nodes[holder], record(node_id(1000 + number), epoch=epoch, version=version))
    lan.run(12.0)

    assert len(hashes(nodes)) == 1


def test_a_thousand_records_are_repaired_in_pieces() -> None:
    lan, nodes = mesh(2)
    for number in range(1000):
        believe(nodes[0], record(node_id(5000 + number)))
    lan.run(30.0)

    assert len(hashes(nodes)) == 1


def test_a_difference_that_cannot_be_repaired_costs_a_digest_in_half_a_minute() -> None:
    """One node counts a record that it does not give: a member that lies about its hashes, say."""
    lan, nodes = mesh(2)
    nodes[0].engine._known.hashes.swap(None, record(STRANGER))
    lan.run(60.0)
    lan.trace.clear()
    lan.run(300.0)

    assert 18 <= sent(lan, 5) <= 24  # both ends send them


def test_what_others_say_of_a_linked_node_is_not_asked_for() -> None:
    lan, nodes = mesh(3)
    ahead = nodes[0].engine._known.beliefs[node_id(2)].record
    believe(nodes[0], msgspec.structs.replace(ahead, version=ahead.version + 5))
    lan.run(10.0)

    assert nodes[2].engine._known.record(node_id(2)) == ahead


# One link


def repair() -> Repair:
    return Repair(now=0.0)


def test_a_difference_counts_when_it_lasts_a_second_and_nothing_explains_it() -> None:
    link = repair()
    for now, equal, busy, due in [
        (0.0, False, False, False),
        (0.5, False, False, False),
        (0.9, True, False, False),
        (1.0, False, False, False),
        (2.1, False, True, False),
        (3.1, False, False, True),
    ]:
        link.compare(equal=equal, busy=busy, now=now)
        assert link.ready == due


def test_pulls_keep_half_a_second_apart() -> None:
    link = repair()
    link.want(STRANGER, epoch=1, from_version=0)
    link.advance(0.0)
    raw = link.next_frame(Hashes(), list, 0.0, MAX_BYTES)
    assert raw is not None
    assert decode(raw) == [Pull((Want(STRANGER, 1, 0),))]

    link.want(STRANGER, epoch=1, from_version=4)
    link.advance(0.1)
    assert not link.ready
    assert link.deadline() == PULL_GAP_S
    link.advance(PULL_GAP_S)
    assert link.ready


def test_an_answer_covers_the_buckets_that_fit() -> None:
    ours = [record(node_id(64 * number + bucket)) for bucket in range(3) for number in range(150)]
    table = Hashes()
    for each in ours:
        table.swap(None, each)
    link = repair()
    link.asked(Digest(bytes(8 * BUCKETS)), table, now=0.0)
    raw = link.next_frame(table, lambda: ours, 0.0, 64 * 1024)

    assert raw is not None
    assert len(raw) <= MAX_BYTES
    (answer,) = decode(raw)
    assert isinstance(answer, Versions)
    assert decode_buckets(answer.buckets) == {0, 1}
    assert len(answer.versions) == 300


def test_a_peer_that_asks_too_often_is_cut_off() -> None:
    link = repair()
    for _ in range(4):
        link.asked(Digest(bytes(8 * BUCKETS)), Hashes(), now=0.0)
    with pytest.raises(PeerError) as too_many:
        link.asked(Digest(bytes(8 * BUCKETS)), Hashes(), now=0.0)
    assert too_many.value.close_code == limits.TOO_MUCH

    for _ in range(8):
        link.pulled(now=0.0)
    with pytest.raises(PeerError):
        link.pulled(now=0.0)


def test_a_delta_with_a_gap_is_answered_by_a_pull_and_filled() -> None:
    lan, nodes = mesh(2)
    delta = RecordDelta(STRANGER, 1, 0, 3, 4, (Entry("k", 4, b""),))
    lan.send(nodes[0], nodes[1], Delta((delta,)))
    lan.run(0.1)

    assert sent(lan, 7) == 1
    assert nodes[1].engine._known.record(STRANGER) is None

    believe(nodes[0], record(STRANGER))
    lan.send(nodes[0], nodes[1], Delta((delta,)))
    lan.run(1.0)
    assert nodes[1].engine._known.record(STRANGER) == record(STRANGER)


# Hashes


def test_hashes_do_not_depend_on_order_and_a_swap_undoes_itself() -> None:
    records = [record(node_id(number), version=number) for number in range(1, 200)]
    forward, backward = Hashes(), Hashes()
    for each in records:
        forward.swap(None, each)
    for each in random.Random(1).sample(records, len(records)):
        backward.swap(None, each)

    assert forward.buckets == backward.buckets
    for each in records:
        forward.swap(each, None)
    assert forward.state == bytes(8)
    assert forward.buckets == Hashes().buckets


def test_who_left_and_who_said_nothing_yet_do_not_count() -> None:
    assert record_hash(record(STRANGER, left=True)) == record_hash(record(STRANGER, version=0)) == 0
    distinct = {record_hash(record(STRANGER, epoch=epoch, version=version)) for epoch in (1, 2) for version in (1, 2)}
    assert len(distinct) == 4
    assert digest.bucket_of(STRANGER) == 77 % 64


@given(st.sets(st.integers(0, BUCKETS - 1)))
def test_a_set_of_buckets_survives_its_bitmap(buckets: set[int]) -> None:
    assert decode_buckets(encode_buckets(buckets)) == buckets
