import random

import pytest
from gossip.small_lan import make_engine, node_id
from hypothesis import given
from hypothesis import strategies as st

from meshnode.gossip.agenda import HEARTBEAT_S, Agenda
from meshnode.gossip.effects import LinkId
from meshnode.gossip.limits import Bucket
from meshnode.gossip.link import SILENCE_S, Link, is_large_change
from meshnode.gossip.peer import surplus
from meshnode.gossip.repair import Repair
from meshnode.names import ModelDigest
from meshnode.wire.messages import ModelState


def make_link(
    number: int, *, dialled: bool = True, peer: int = 2, epoch: int = 1, agenda: Agenda | None = None, up_at: float = 0.0
) -> Link:
    return Link(
        id=LinkId(number),
        peer=node_id(peer),
        hello=make_engine(peer, epoch=epoch).hello(node_id(1)),
        addr="10.0.0.2:4850",
        dialled=dialled,
        bucket=Bucket(1, 1, now=0.0),
        probes=Bucket(1, 1, now=0.0),
        accusations=Bucket(1, 1, now=0.0),
        repair=Repair(now=0.0),
        agenda=agenda or Agenda(random.Random(1)),
        up_at=up_at,
    )


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_both_ends_together_leave_one_link_in_whatever_order_they_came_up(by_lower: list[bool], rng: random.Random) -> None:
    """The two ends may see the links come up in different orders, and neither knows what the other closes."""
    closed: set[int] = set()
    for me, peer in ((1, 2), (2, 1)):
        links = [make_link(number, dialled=lower == (me < peer), peer=peer) for number, lower in enumerate(by_lower)]
        rng.shuffle(links)
        closed |= {link.id for link, _ in surplus(links, me=node_id(me), peer=node_id(peer), now=0.0)}

    assert len(by_lower) - len(closed) == 1
    assert not any(by_lower) or all(by_lower[kept] for kept in set(range(len(by_lower))) - closed)


def test_a_link_of_an_earlier_life_gives_way_to_the_new_one() -> None:
    old, new = make_link(1, dialled=True), make_link(2, dialled=False, epoch=2)
    assert surplus([old, new], me=node_id(1), peer=node_id(2), now=0.0) == [(old, "superseded by the peer's new start")]


def test_a_silent_link_gives_way_to_a_new_one_whichever_end_dialled_it() -> None:
    """The peer has another address and knows that the old link is dead; we would learn it only after ten seconds."""
    old, new = make_link(1, dialled=True), make_link(2, dialled=False)
    new.heard(SILENCE_S)

    assert surplus([old, new], me=node_id(1), peer=node_id(2), now=SILENCE_S - 0.1) == [(new, "duplicate link")]
    ((closed, _),) = surplus([old, new], me=node_id(1), peer=node_id(2), now=SILENCE_S)
    assert closed is old


def load(active: int = 0, queued: int = 0, state: str = "ready", name: str = "m") -> tuple[ModelState, ...]:
    return (ModelState(name=name, digest=ModelDigest(bytes(32)), state=state, active=active, queued=queued, slots=8),)


@pytest.mark.parametrize(
    ("old", "new", "large"),
    [
        (load(), load(), False),
        (load(), load(active=1), True),
        (load(active=1), load(), True),
        (load(active=4), load(active=5), False),
        (load(active=4), load(active=6), True),
        (load(queued=8), load(queued=11), True),
        (load(), load(state="draining"), True),
        (load(), (), True),
        (load(), load(name="other"), True),
    ],
)
def test_a_change_is_large_when_a_router_would_choose_otherwise(
    old: tuple[ModelState, ...], new: tuple[ModelState, ...], large: bool
) -> None:
    assert is_large_change(old, new) == large


def test_a_bucket_refills_and_never_beyond_its_size() -> None:
    bucket = Bucket(10, 20, now=0.0)
    assert bucket.take(20, now=0.0)
    assert not bucket.take(1, now=0.0)
    assert bucket.take(10, now=1.0)
    assert not bucket.take(21, now=100.0)
    assert bucket.take(20, now=100.0)


def test_the_heartbeats_of_all_links_of_a_node_come_to_go_out_together() -> None:
    agenda = Agenda(random.Random(1))
    early, late = make_link(1, agenda=agenda), make_link(2, agenda=agenda, up_at=0.3)
    for _ in range(3):
        for link in (early, late):
            link.advance(link.next_ping)

    assert early.next_ping == late.next_ping


def test_nodes_that_start_at_one_moment_do_not_say_their_heartbeats_at_one_moment() -> None:
    assert len({Agenda(random.Random(seed)).next_beat(0.0) for seed in range(10)}) == 10


def test_after_a_heartbeat_out_of_turn_the_next_is_a_whole_period_later() -> None:
    link = make_link(1)
    link.advance(0.0)
    link.hurry(load(active=1), 0.4)
    link.advance(0.4)

    assert link.next_ping == 0.4 + HEARTBEAT_S
