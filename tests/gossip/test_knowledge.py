"""Whose word counts for whom."""

from meshnode.gossip.knowledge import Knowledge
from meshnode.names import NodeId
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import Entry, RecordDelta

ME, OTHER = NodeId(b"a" * 16), NodeId(b"x" * 16)


def word(epoch: int, version: int) -> RecordDelta:
    """The write number `version` of the other's record, alone."""
    return RecordDelta(OTHER, epoch, 0, version - 1, version, (Entry(f"key{version}", version, encode_value("x")),))


def test_a_teller_that_knows_more_of_a_linked_nodes_new_life_is_not_to_blame() -> None:
    known = Knowledge(me=ME, epoch=1000, now=0.0)
    known.meet(OTHER, 10)
    known.hearsay(word(20, 1), linked=True, now=1.0)
    known.meet(OTHER, 20)

    assert not known.hearsay(word(20, 2), linked=True, now=1.1)  # would raise, and cost the teller its link

    assert known.own_word(word(20, 1), now=1.2)
    assert known.own_word(word(20, 2), now=1.3)
    assert known.beliefs[OTHER].record.version == 2
