import random

import pytest

from meshnode.gossip.dialling import DIALS_PER_HOST, DIALS_PER_MINUTE, FLIGHT_S, Dialler, dialable
from meshnode.names import NodeId

NODE = NodeId(bytes(16))
SEED = "10.0.0.1:4850"


def dialler() -> Dialler:
    return Dialler(random.Random(1))


def dialled(table: Dialler, now: float) -> list[str]:
    return [dial.addr for dial in table.dials(now=now)]


@pytest.mark.parametrize("addr", ["10.0.0.7:4850", "[fe80::1%eth0]:4850", "box.local:4850", "127.0.0.1:4851", "[::1]:9"])
def test_addresses_of_other_nodes_can_be_dialled(addr: str) -> None:
    assert dialable(addr, ["10.0.0.9:4850"])


@pytest.mark.parametrize(
    "addr",
    [
        "10.0.0.9:4850",
        "127.0.0.1:4850",
        "[::1]:4850",
        "0.0.0.0:4851",
        "[::]:1",
        "224.0.0.251:5353",
        "[ff02::fb]:5353",
        "255.255.255.255:1",
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "10.0.0.7",
        "10.0.0.7:0",
        "10.0.0.7:99999",
        "a b:1",
        "\u202ehost:1",
        "",
    ],
)
def test_our_own_and_special_addresses_and_what_is_none_are_never_dialled(addr: str) -> None:
    assert not dialable(addr, ["10.0.0.9:4850"])


def test_a_seed_is_dialled_at_once_and_then_for_ever_with_doubling_pauses_up_to_half_a_minute() -> None:
    table = dialler()
    table.want(SEED, (SEED,), expect=None, at=0.0)
    now, pauses = 0.0, []
    for _ in range(12):
        assert dialled(table, now) == [SEED]
        assert dialled(table, now) == []
        table.failed(SEED, "connection refused", now=now)
        due = table.next_at()
        assert due is not None
        pauses.append(due - now)
        now = due

    assert 0.375 <= pauses[0] <= 0.5
    assert all(0.75 * bound <= pause <= bound for pause, bound in zip(pauses[1:5], [1, 2, 4, 8], strict=True))
    assert all(22.5 <= pause <= 30 for pause in pauses[7:])


def test_all_addresses_of_a_member_are_tried_before_it_backs_off() -> None:
    table = dialler()
    table.want(NODE, ("10.0.0.2:1", "10.0.0.3:1"), expect=NODE, at=0.0)
    assert dialled(table, 0.0) == ["10.0.0.2:1"]
    table.failed("10.0.0.2:1", "no route to host", now=0.1)
    assert dialled(table, 0.1) == ["10.0.0.3:1"]
    table.failed("10.0.0.3:1", "no route to host", now=0.2)
    assert dialled(table, 0.2) == []


def test_a_seed_and_a_member_at_one_address_are_dialled_once() -> None:
    table = dialler()
    table.want(SEED, (SEED,), expect=None, at=0.0)
    table.want(NODE, (SEED,), expect=NODE, at=0.0)

    assert dialled(table, 0.0) == [SEED]
    table.succeeded(SEED, NODE)
    assert dialled(table, 99.0) == []


def test_a_dial_without_an_outcome_is_given_up() -> None:
    table = dialler()
    table.want(SEED, (SEED,), expect=None, at=0.0)
    dialled(table, 0.0)
    assert table.next_at() == FLIGHT_S
    assert dialled(table, FLIGHT_S) == []
    assert table.attempts[SEED].reason == "no outcome"


def test_hints_are_limited_per_host_and_per_minute_and_proven_addresses_are_not() -> None:
    table = dialler()
    one_host = [f"10.0.0.1:{port}" for port in range(1, 20)]
    for number, addr in enumerate(one_host):
        table.want(NodeId(bytes([number]) * 16), (addr,), expect=NODE, at=0.0)
    assert dialled(table, 0.0) == one_host[:DIALS_PER_HOST]
    assert len(dialled(table, 60.0)) == DIALS_PER_HOST

    table = dialler()
    for number in range(100):
        table.want(NodeId(bytes([number]) * 16), (f"10.0.1.{number}:1",), expect=NODE, at=0.0)
    table.succeeded("10.0.1.99:1", NODE)
    table.want(NodeId(bytes([99]) * 16), ("10.0.1.99:1",), expect=NODE, at=0.0)
    assert len(dialled(table, 0.0)) == DIALS_PER_MINUTE + 1
    assert (table.next_at() or 0.0) > 0.0


def test_a_lost_link_is_redialled_soon_and_one_that_keeps_breaking_later_each_time() -> None:
    table = dialler()
    table.want(NODE, (SEED,), expect=NODE, at=0.0)
    dialled(table, 0.0)
    pauses = []
    for _ in range(4):
        table.succeeded(SEED, NODE)
        table.lost(NODE, short=True, at=100.3)
        pauses.append((table.next_at() or 0.0) - 100.3)
    table.lost(NODE, short=False, at=200.3)

    assert pauses[0] == 0.0
    assert 0.0 < pauses[1] < pauses[2] < pauses[3]
    assert table.next_at() == 200.3
