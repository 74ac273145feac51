from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import PeerError
from meshnode.mesh.credit import WINDOW, Incoming, Outgoing
from meshnode.mesh.gate import SLOTS, SLOTS_FOR_STRANGERS, SLOTS_PER_ADDRESS, Gate, address_group
from meshnode.mesh.refusals import LOG_EVERY_S, Refusals


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_host_counts_by_its_64(host: str, group: str) -> None:
    assert address_group(host) == group


def test_one_address_gets_four_slots_and_gets_them_back() -> None:
    gate = Gate()
    with ExitStack() as held:
        for _ in range(SLOTS_PER_ADDRESS):
            held.enter_context(gate.slot("10.0.0.7", 0))
        with pytest.raises(PeerError, match="more than 4 handshakes"), gate.slot("10.0.0.7", 0):
            pass
        with gate.slot("10.0.0.8", 0):
            pass
    with gate.slot("10.0.0.7", 0):
        pass


def test_half_of_the_slots_are_kept_for_members() -> None:
    gate = Gate()
    gate.known = frozenset(f"10.0.1.{index}" for index in range(SLOTS))
    with ExitStack() as held:
        for index in range(SLOTS_FOR_STRANGERS):
            held.enter_context(gate.slot(f"10.0.0.{index}", 0))
        with pytest.raises(PeerError, match="all addresses"), gate.slot("10.0.0.99", 0):
            pass
        for index in range(SLOTS - SLOTS_FOR_STRANGERS):
            held.enter_context(gate.slot(f"10.0.1.{index}", 0))
        with pytest.raises(PeerError, match="all addresses"), gate.slot("10.0.1.31", 0):
            pass


def test_members_cannot_take_more_than_all_slots_and_strangers_then_wait() -> None:
    gate = Gate()
    gate.known = frozenset(f"10.0.1.{index}" for index in range(SLOTS))
    with ExitStack() as held:
        for index in range(SLOTS):
            held.enter_context(gate.slot(f"10.0.1.{index}", 0))
        with pytest.raises(PeerError), gate.slot("10.0.0.1", 0):
            pass


def test_twenty_attempts_a_second_and_no_more() -> None:
    gate = Gate()
    for _ in range(20):
        with gate.slot("10.0.0.7", 5.1):
            pass
    with pytest.raises(PeerError, match="20 connections a second"), gate.slot("10.0.0.7", 5.9):
        pass
    with gate.slot("10.0.0.8", 5.9):
        pass
    with gate.slot("10.0.0.7", 6.0):
        pass


def test_the_memory_for_addresses_is_bounded() -> None:
    gate = Gate()
    for index in range(5000):
        with gate.slot(f"10.{index // 250}.0.{index % 250}", 0):
            pass

    assert len(gate._attempts) <= 1024
    assert not gate._pending


def test_a_refusal_is_logged_once_a_minute_and_counted_always() -> None:
    refusals = Refusals()

    assert refusals.add("10.0.0.7", "a node with another token", 0, dialled=False)
    assert not refusals.add("10.0.0.7", "a node with another token", LOG_EVERY_S - 1, dialled=False)
    assert refusals.add("10.0.0.8", "plain HTTP", 1, dialled=False)
    assert refusals.add("10.0.0.7", "something else", LOG_EVERY_S, dialled=False)
    eight, seven = refusals.all()
    assert (eight.addr, eight.count) == ("10.0.0.8", 1)
    assert (seven.reason, seven.at, seven.count, seven.dialled) == ("something else", LOG_EVERY_S, 3, False)


def test_refusals_are_forgotten_when_it_works_and_when_there_are_too_many() -> None:
    refusals = Refusals()
    for index in range(1000):
        refusals.add(f"10.0.{index // 250}.{index % 250}", "x", 0, dialled=False)
    refusals.add("10.0.0.7:4850", "connection refused", 0, dialled=True)
    refusals.forget("10.0.0.7:4850", dialled=True)

    assert len(refusals.all()) <= 64
    assert len(refusals._logged_at) <= 64
    assert all(not refusal.dialled for refusal in refusals.all())


@given(costs=st.lists(st.integers(16, WINDOW // 2), max_size=60))
def test_credit_never_deadlocks_and_never_overruns_with_honest_ends(costs: list[int]) -> None:
    """A sender that waits for credit, and a receiver that takes what came: every frame gets through."""
    ours, theirs = Outgoing(), Incoming()
    for cost in costs:
        assert ours.take(cost)
        theirs.arrived(cost)
        ours.give(theirs.taken(cost))


def test_a_slow_reader_stops_the_sender_at_the_window() -> None:
    ours, theirs = Outgoing(), Incoming()
    sent = 0
    while ours.take(1000):
        theirs.arrived(1000)
        sent += 1000

    assert WINDOW - 1000 < sent <= WINDOW
    ours.give(theirs.taken(sent))
    assert ours.take(1000)


def test_more_than_the_window_is_against_the_protocol() -> None:
    theirs = Incoming()
    theirs.arrived(WINDOW)
    with pytest.raises(PeerError) as caught:
        theirs.arrived(1)
    assert caught.value.close_code == 4429
    with pytest.raises(PeerError, match="credit for more than"):
        Outgoing().give(1)
