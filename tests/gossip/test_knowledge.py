"""Whose word counts for whom."""

import pytest

from meshnode.errors import PeerError
from meshnode.gossip import limits
from meshnode.gossip.knowledge import Knowledge
from meshnode.names import NodeId
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import Entry, RecordDelta

ME, OTHER, PEER, LIAR = (NodeId(letter * 16) for letter in (b"a", b"x", b"p", b"l"))


def invented(number: int) -> RecordDelta:
    return RecordDelta(NodeId(number.to_bytes(16, "big")), 10, 0, 0, 1, (Entry("key", 1, b""),))


def word(epoch: int, version: int) -> RecordDelta:
    """The write number `version` of the other's record, alone."""
    return RecordDelta(OTHER, epoch, 0, version - 1, version, (Entry(f"key{version}", version, encode_value("x")),))


def test_a_teller_that_knows_more_of_a_linked_nodes_new_life_is_not_to_blame() -> None:
    known = Knowledge(me=ME, epoch=1000, now=0.0)
    known.meet(OTHER, 10)
    known.hearsay(word(20, 1), teller=PEER, speaking=True, now=1.0)
    known.meet(OTHER, 20)

    assert not known.hearsay(word(20, 2), teller=PEER, speaking=True, now=1.1)  # would raise, and cost the teller its link

    assert known.own_word(word(20, 1), now=1.2)
    assert known.own_word(word(20, 2), now=1.3)
    assert known.beliefs[OTHER].record.version == 2


def test_the_life_before_a_fall_of_the_epoch_does_not_come_back_by_hearsay_and_the_present_one_is_spoken_of() -> None:
    known = Knowledge(me=ME, epoch=1000, now=0.0)
    known.meet(OTHER, 20)
    known.own_word(word(20, 1), now=0.0)
    known.mark_down(OTHER, now=1.0)
    for _ in range(2):  # it may lose its link in between
        known.meet(OTHER, 10)
        known.own_word(word(10, 1), now=2.0)
        assert not known.hearsay(word(20, 1), teller=PEER, speaking=False, now=3.0)

    assert known.beliefs[OTHER].record.epoch == 10
    assert known.hearsay(word(10, 2), teller=PEER, speaking=False, now=4.0)
    assert known.hearsay(word(21, 1), teller=PEER, speaking=False, now=5.0)
    assert known.beliefs[OTHER].record.epoch == 21


def test_a_teller_of_too_many_nodes_costs_no_other_teller_its_link() -> None:
    known = Knowledge(me=ME, epoch=1000, now=0.0)
    for number in range(int(limits.NEW_IDS_BURST)):
        known.hearsay(invented(number), teller=LIAR, speaking=False, now=1.0)
    with pytest.raises(PeerError, match="new nodes"):
        known.hearsay(invented(5000), teller=LIAR, speaking=False, now=1.0)

    assert known.hearsay(invented(10**6), teller=PEER, speaking=False, now=1.0)


def test_invented_nodes_leave_room_for_one_that_is_really_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS", 10)
    known = Knowledge(me=ME, epoch=1000, now=0.0)
    told = [known.hearsay(invented(number), teller=LIAR, speaking=False, now=1.0) for number in range(20)]

    assert told.count(True) == 9
    assert not known.hearsay(invented(99), teller=PEER, speaking=False, now=1.0)  # without a fault of the honest teller
    assert known.meet(OTHER, 20)
