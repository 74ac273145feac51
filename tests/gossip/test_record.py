import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import PeerError
from meshnode.gossip.record import (
    ENTRY_COST,
    RECORD_COST,
    Gap,
    Record,
    Stamp,
    apply,
    check,
    claim,
    delta_for,
    delta_size,
    join,
    write,
)
from meshnode.names import NodeId
from meshnode.wire.codec import encode
from meshnode.wire.messages import Delta, Entry, RecordDelta

NODE = NodeId(bytes(16))
KEYS = st.sampled_from(["name", "addr", "model/a", "model/b"])
ENTRIES = st.lists(st.tuples(KEYS, st.integers(1, 9), st.none() | st.binary(max_size=2)), max_size=6)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record at all, also such as no honest origin writes."""
    entries = {key: Entry(key, version, value) for key, version, value in draw(ENTRIES)}
    epoch, incarnation, version = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 9))
    left, down = draw(st.booleans()), draw(st.booleans())
    return Record(origin=NODE, epoch=epoch, incarnation=incarnation, version=version, entries=entries, left=left, down=down)


WRITES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=40)), max_size=12)


def written(writes: list[tuple[str, bytes | None]]) -> Record:
    record = Record(origin=NODE, epoch=1)
    for key, value in writes:
        record = write(record, key, value)
    return record


def whole(record: Record) -> RecordDelta:
    delta = delta_for(record, None, 1 << 20)
    assert delta is not None
    return delta


@given(records(), records(), records())
def test_a_join_does_not_care_who_said_what_first_or_how_often(one: Record, two: Record, three: Record) -> None:
    assert join(one, two) == join(two, one)
    assert join(one, join(two, three)) == join(join(one, two), three)
    assert join(one, one) == one
    assert join(one, two).stamp >= max(one.stamp, two.stamp)


def test_a_new_life_replaces_the_old_one_and_a_leave_is_final_for_its_epoch() -> None:
    old = write(Record(origin=NODE, epoch=1), "model/a", b"x")
    new = Record(origin=NODE, epoch=2)

    assert join(old, new) == new
    assert Stamp(1, True, 0, False, 1) > Stamp(1, False, 9, True, 99)
    assert Stamp(2, False, 0, False, 0) > Stamp(1, True, 9, True, 99)


def test_being_called_down_counts_until_the_next_incarnation() -> None:
    assert Stamp(1, False, 0, True, 1) > Stamp(1, False, 0, False, 99)
    assert Stamp(1, False, 1, False, 1) > Stamp(1, False, 0, True, 99)


@given(WRITES, st.integers(RECORD_COST + ENTRY_COST + 60, 400))
def test_pieces_that_fit_the_room_add_up_to_the_record(writes: list[tuple[str, bytes | None]], room: int) -> None:
    record = written(writes)
    have: Record | None = None
    known: Stamp | None = None
    while known is None or known < record.stamp:
        delta = delta_for(record, known, room)
        assert delta is not None
        check(delta)
        assert delta_size(delta) <= room
        assert len(encode(Delta((delta,)))) <= room + 8
        have, known = apply(have, delta), claim(delta)
    assert have == record


@given(WRITES, WRITES)
def test_only_what_is_lacking_is_sent(first: list[tuple[str, bytes | None]], then: list[tuple[str, bytes | None]]) -> None:
    before, after = written(first), written(first + then)
    delta = delta_for(after, before.stamp, 1 << 20)

    assert delta is not None
    assert {entry.key for entry in delta.entries} == {key for key, _ in then}
    assert apply(before, delta) == after


def test_nothing_is_said_when_not_even_one_entry_fits() -> None:
    assert delta_for(written([("name", bytes(500))]), None, 400) is None


def test_a_delta_that_leaves_a_hole_is_refused_and_one_that_overlaps_is_not() -> None:
    record = written([("name", b"a"), ("addr", b"b"), ("name", b"c")])
    late = RecordDelta(NODE, 1, 0, 2, 3, (Entry("name", 3, b"c"),))

    with pytest.raises(Gap):
        apply(None, late)
    with pytest.raises(Gap):
        apply(written([("name", b"a")]), late)
    with pytest.raises(Gap):
        apply(Record(origin=NODE, epoch=0, version=9), late)
    assert apply(written([("name", b"a"), ("addr", b"b")]), late) == record
    assert apply(record, late) == record


def test_a_delta_of_an_earlier_life_adds_nothing_wherever_it_starts() -> None:
    now = Record(origin=NODE, epoch=5, version=2)
    assert apply(now, RecordDelta(NODE, 4, 0, 7, 9, (Entry("name", 8, b"x"),))) == now


@pytest.mark.parametrize(
    "delta",
    [
        RecordDelta(NODE, 1, 65_536, 0, 0, ()),
        RecordDelta(NODE, 1, 0, 3, 2, ()),
        RecordDelta(NODE, 1, 0, 1, 2, (Entry("name", 1, b""),)),
        RecordDelta(NODE, 1, 0, 1, 2, (Entry("name", 3, b""),)),
    ],
)
def test_a_delta_that_contradicts_itself_is_refused(delta: RecordDelta) -> None:
    with pytest.raises(PeerError, match="Delta"):
        check(delta)
