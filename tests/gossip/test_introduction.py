"""Who is dialled on whose word: seeds, mDNS, an earlier life; and processes that share an identity or speak another protocol."""

from ipaddress import ip_network

import msgspec
import pytest
from gossip.small_lan import Lan, Node, make_engine, node_id

from meshnode.errors import PeerError
from meshnode.gossip.dialling import distance
from meshnode.gossip.effects import Dial, Effect, LinkId, Rekey
from meshnode.gossip.engine import Engine
from meshnode.gossip.hello import gives_way
from meshnode.gossip.member import State
from meshnode.gossip.outsiders import MAX_OUTSIDERS, SHOWN_S
from meshnode.gossip.plan import HIGHER_ID_WAITS_S, MAX_ANNOUNCED
from meshnode.wire.messages import Held, Hello

ME, LOWER, HIGHER = 5, 2, 9
ADDR = "10.0.0.2:4850"


def hello_of(number: int, *, epoch: int = 1, instance: bytes = b"instance", held: Held | None = None) -> Hello:
    hello = make_engine(number, epoch=epoch).hello(node_id(ME))
    return msgspec.structs.replace(hello, instance=instance, held=held)


def link(engine: Engine, hello: Hello, *, number: int = 1, now: float = 0.0, addr: str = ADDR) -> LinkId:
    engine.judge(hello, proven=hello.node, addr=addr, now=now)
    engine.link_up(LinkId(number), hello, addr=addr, dialled=True, now=now)
    return LinkId(number)


def ticked(engine: Engine, now: float) -> list[Effect]:
    engine.tick(now=now)
    return engine.effects()


def dials(engine: Engine, now: float) -> list[Dial]:
    return [effect for effect in ticked(engine, now) if isinstance(effect, Dial)]


# Hints


def test_a_node_that_mdns_announces_is_dialled_and_only_the_announced_one_will_do() -> None:
    engine = make_engine(ME)
    engine.discovered(node_id(LOWER), (ADDR,), now=0.0)

    assert dials(engine, 0.0) == [Dial(addr=ADDR, expect=node_id(LOWER))]
    assert [member.id for member in engine.members(now=0.0)] == [node_id(ME)]


def test_a_node_alone_dials_at_once_and_one_with_links_lets_the_lower_id_begin() -> None:
    engine = make_engine(ME)
    engine.discovered(node_id(HIGHER), ("10.0.0.9:4850",), now=0.0)
    assert len(dials(engine, 0.0)) == 1

    engine = make_engine(ME)
    link(engine, hello_of(HIGHER), addr="10.0.0.9:4850")
    engine.tick(now=0.0)
    engine.discovered(node_id(LOWER), (ADDR,), now=0.1)
    assert dials(engine, 0.2) == []
    assert len(dials(engine, 0.2 + HIGHER_ID_WAITS_S)) == 1


def test_a_node_that_is_announced_no_longer_is_not_dialled_any_more() -> None:
    engine = make_engine(ME)
    engine.discovered(node_id(LOWER), (ADDR,), now=0.0)
    dials(engine, 0.0)
    engine.dial_failed(ADDR, "connection refused", now=0.1)
    engine.discovered(node_id(LOWER), (), now=0.2)

    assert dials(engine, 60.0) == []


def test_announcements_without_end_cost_bounded_memory() -> None:
    engine = make_engine(ME)
    for number in range(10, 10 + 3 * MAX_ANNOUNCED):
        engine.discovered(node_id(number), (f"10.1.{number // 250}.{number % 250}:1",), now=0.0)
    ticked(engine, 0.0)

    assert len(engine._planner._announced) == MAX_ANNOUNCED
    assert len(list(engine.attempts())) <= MAX_ANNOUNCED


def test_remembered_nodes_are_dialled_for_ever_and_are_no_members() -> None:
    lan = Lan()
    nodes = [lan.start(1), lan.start(2)]
    nodes[1].engine = make_engine(2, remembered={node_id(1): ("10.9.9.9:1", "10.0.0.1:4850"), node_id(7): ("10.0.0.7:4850",)})
    lan.touch(nodes[1])
    lan.run(3.0)

    assert lan.routable(nodes[0]) == {"n01", "n02"}
    assert set(lan.members(nodes[1])) == {"n01", "n02"}
    lan.trace.clear()
    lan.run(120.0)
    assert sum("10.0.0.7" in line for line in lan.trace) >= 3
    assert nodes[1].engine.contacts() == {node_id(7): ("10.0.0.7:4850",), node_id(1): ("10.0.0.1:4850", "10.9.9.9:1")}


def test_addresses_on_our_own_networks_come_first_and_those_of_one_cable_last() -> None:
    networks = (ip_network("10.0.7.0/24"), ip_network("fd77::/64"))
    ranked = sorted(
        ["[fe80::1%eth0]:1", "169.254.7.7:1", "10.0.6.1:1", "box.local:1", "10.0.7.1:1", "[fd77::2]:1"],
        key=lambda addr: distance(addr, networks),
    )
    assert ranked == ["10.0.7.1:1", "[fd77::2]:1", "10.0.6.1:1", "box.local:1", "[fe80::1%eth0]:1", "169.254.7.7:1"]


def test_a_change_of_our_addresses_is_told_to_others_and_brings_forward_what_waits() -> None:
    lan = Lan()
    nodes = [lan.start(1), lan.start(2, seeds=(1,))]
    nodes[1].engine.add_seed("10.0.0.3:4850", now=0.0)
    lan.run(40.0)
    lan.trace.clear()
    nodes[1].engine.move(("10.0.8.2:4850",), (ip_network("10.0.8.0/24"),), now=lan.now)
    lan.touch(nodes[1])
    lan.run(0.1)

    assert lan.members(nodes[0])["n02"].addr == "10.0.8.2:4850"
    assert sum("Dial" in line and "10.0.0.3" in line for line in lan.trace) == 1


def test_an_address_given_by_hand_is_dialled_at_once() -> None:
    engine = make_engine(ME)
    engine.tick(now=0.0)
    engine.add_seed(ADDR, now=1.0)

    assert dials(engine, 1.0) == [Dial(addr=ADDR)]


# Two processes with one identity


def test_who_is_linked_with_one_refuses_the_other_and_says_where_the_first_is() -> None:
    engine = make_engine(ME)
    link(engine, hello_of(LOWER))
    with pytest.raises(PeerError, match="another process with this identity is linked from") as error:
        link(engine, hello_of(LOWER, instance=b"the-copy"), number=2, now=2.9)

    assert error.value.close_code == 4409
    assert engine.hello(node_id(LOWER)).held == Held(1, (ADDR,))
    assert engine.hello(node_id(HIGHER)).held is None


def test_a_life_that_has_fallen_silent_gives_way_to_the_next() -> None:
    engine = make_engine(ME)
    link(engine, hello_of(LOWER))
    again = link(engine, hello_of(LOWER, epoch=2, instance=b"restarts"), number=2, now=3.1)

    assert engine.link_of(node_id(LOWER)) == again


def test_who_was_refused_goes_to_see_the_other_once() -> None:
    engine = make_engine(ME)
    refusing = link(engine, hello_of(LOWER, held=Held(1, ("10.0.0.50:4850", "10.0.0.5:4850"))))
    engine.tick(now=0.0)
    engine.link_down(refusing, "closed with 4409: another process", code=4409, now=0.1)

    assert [dial for dial in dials(engine, 0.2) if dial.expect == node_id(ME)] == [
        Dial(addr="10.0.0.50:4850", expect=node_id(ME))  # 10.0.0.5 is our own
    ]
    engine.dial_failed("10.0.0.50:4850", "connection refused", now=0.3)
    assert not any(dial.expect == node_id(ME) for second in range(1, 60) for dial in dials(engine, float(second)))


def test_an_announcement_of_our_own_identity_elsewhere_is_looked_into() -> None:
    engine = make_engine(ME)
    engine.discovered(node_id(ME), ("10.0.0.5:4850", "10.0.0.50:4850"), now=0.0)

    assert dials(engine, 0.0) == [Dial(addr="10.0.0.50:4850", expect=node_id(ME))]


@pytest.mark.parametrize(
    ("epoch", "instance", "ours_goes"), [(2, b"aaaaaaaa", False), (0, b"aaaaaaaa", True), (1, b"zzzzzzzz", False)]
)
def test_only_a_process_that_proves_our_key_makes_us_give_it_up_and_only_the_later_start_does(
    epoch: int, instance: bytes, ours_goes: bool
) -> None:
    engine = make_engine(ME)
    ours, theirs = engine.hello(node_id(ME)), hello_of(ME, epoch=epoch, instance=instance)
    with pytest.raises(PeerError) as error:
        engine.judge(theirs, proven=node_id(ME), addr=ADDR, now=0.0)

    assert error.value.close_code == 4409
    assert [effect.reason for effect in engine.effects() if isinstance(effect, Rekey)] == [
        f"n05 has the identity 00000000 of this node: one of the two runs on a copy of the other's data (the other is at {ADDR})"
    ] * ours_goes
    assert gives_way(ours, theirs) != gives_way(theirs, ours)


def test_a_liar_who_only_names_our_identity_changes_nothing() -> None:
    engine = make_engine(ME)
    with pytest.raises(PeerError) as error:
        engine.judge(hello_of(ME, epoch=0), proven=node_id(LOWER), addr=ADDR, now=0.0)

    assert error.value.close_code == 4403
    assert engine.effects() == []


# Other versions


def newer(number: int) -> Hello:
    return msgspec.structs.replace(hello_of(number), protocol_min=2, protocol_max=3, version="9.0")


def test_a_member_of_another_protocol_version_is_shown_with_the_reason() -> None:
    engine = make_engine(ME)
    with pytest.raises(PeerError):
        engine.judge(newer(LOWER), proven=node_id(LOWER), addr="10.0.0.2:50000", now=1.0)
    (shown,) = [member for member in engine.members(now=2.0) if member.id == node_id(LOWER)]

    assert (shown.name, shown.version, shown.state, shown.routable) == ("n02", "9.0", State.ALIVE, False)
    assert shown.reason == "speaks protocol 2 to 3, this node 1 to 1: no version in common"
    assert (shown.addr, shown.last_seen) == ("10.0.0.2:4850", 1.0)
    assert len(engine.members(now=1.1 + SHOWN_S)) == 1


def test_a_member_that_was_updated_is_shown_as_the_member_that_it_is() -> None:
    engine = make_engine(ME)
    with pytest.raises(PeerError):
        engine.judge(newer(LOWER), proven=node_id(LOWER), addr=ADDR, now=1.0)
    link(engine, hello_of(LOWER), now=2.0)

    assert [(member.name, member.routable) for member in engine.members(now=2.0)] == [("n02", True), ("n05", True)]


def test_outsiders_without_end_cost_bounded_memory() -> None:
    engine = make_engine(ME)
    for number in range(10, 10 + 2 * MAX_OUTSIDERS):
        with pytest.raises(PeerError):
            engine.judge(newer(number), proven=node_id(number), addr=ADDR, now=1.0)

    assert len(engine.members(now=1.0)) == MAX_OUTSIDERS + 1


def test_two_halves_of_an_update_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    lan = Lan()
    nodes: list[Node] = [lan.start(1), lan.start(2, seeds=(1,))]
    for node in nodes:
        monkeypatch.setattr(node.engine, "_hello", msgspec.structs.replace(node.engine._hello, protocol_min=2, protocol_max=2))
    lan.run(61.0)

    assert [set(lan.members(node)) for node in nodes] == [{"n01", "n02"}] * 2
    assert all(not lan.members(node)[other].routable for node, other in zip(nodes, ("n02", "n01"), strict=True))
