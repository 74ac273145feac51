"""From our own silence to a verdict that all share; the simulator's scenarios are in tests/simulation."""

import random

import msgspec
import pytest
from gossip.small_lan import ANY_HASH, Lan, Node, make_engine, node_id

from meshnode.errors import PeerError
from meshnode.gossip.detector import RECHECK_S, SUSPICION_MAX_S, SUSPICION_MIN_S, Detector
from meshnode.gossip.effects import Dial, LinkId
from meshnode.gossip.engine import Engine
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.lag import MAX_SCORE, Lag
from meshnode.gossip.limits import SUDDEN
from meshnode.gossip.member import Member, State
from meshnode.names import NodeId
from meshnode.wire.codec import decode, encode_value
from meshnode.wire.messages import Accuse, Delta, Entry, Finding, Found, Frame, Ping, Probe, RecordDelta, Standing

ME, SUSPECT = node_id(1), node_id(9)
OTHERS = [node_id(number) for number in range(2, 9)]


# The detector alone


class Court:
    """A detector with `size` members, of whom all but the suspect are heard."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.known = Knowledge(me=ME, epoch=1, now=0.0)
        self.known.meet(SUSPECT, 1)
        self.known.own_word(RecordDelta(SUSPECT, 1, 0, 0, 1, (Entry("name", 1, encode_value("x")),)), now=0.0)
        self.lag = Lag()
        self.size = size
        self.detector = Detector(
            self.known, self.lag, random.Random(seed), helpers=lambda _: OTHERS[: self.size - 2], size=lambda: self.size
        )
        self.down_at: float | None = None

    def run(self, until: float, found: Found | None = Found.SILENT) -> None:
        """Serve every deadline; probes are answered at once, or never."""
        while (now := self.detector.deadline()) <= until:
            if self.detector.tick(now) == [SUSPECT]:
                self.known.mark_down(SUSPECT, now=now)
                self.down_at = now
            for helper in self.probed():
                if found:
                    self.detector.found(helper, SUSPECT, found, now)

    def probed(self) -> list[NodeId]:
        asked = [to for to, what in self.detector.outbox if what == SUSPECT]
        self.detector.outbox = [(to, what) for to, what in self.detector.outbox if what != SUSPECT]
        return asked

    def accuse(self, *accusers: NodeId, now: float, incarnation: int = 0, refused: bool = False) -> None:
        for accuser in accusers:
            self.detector.accused(accuser, Accuse(SUSPECT, 1, incarnation, refused), now)


def test_three_others_are_asked_and_everyone_is_told_when_they_do_not_hear_it_either() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.detector.tick(3.0)
    assert len(set(court.probed())) == 3
    assert not court.detector.is_suspect(SUSPECT)

    court.run(4.5)
    assert court.detector.is_suspect(SUSPECT)
    assert court.detector.outbox == [(other, Accuse(SUSPECT, 1, 0)) for other in OTHERS[:6]]
    assert court.detector.evidence(SUSPECT) == "3 of 3 probes silent"


def test_one_who_hears_it_ends_the_matter_for_five_seconds() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.run(3.0, Found.HEARD)

    assert court.detector.outbox == []
    assert not court.detector.is_suspect(SUSPECT)
    assert court.detector.evidence(SUSPECT) == "3 of 3 others hear it"
    assert court.detector.deadline() == 3.0 + RECHECK_S
    court.run(60.0, Found.HEARD)
    assert court.down_at is None


@pytest.mark.parametrize(
    ("size", "accusers", "wait"),
    [(2, 0, SUSPICION_MIN_S), (3, 1, SUSPICION_MIN_S), (3, 0, SUSPICION_MAX_S), (8, 3, SUSPICION_MIN_S), (8, 1, 10.15)],
)
def test_the_wait_is_short_when_many_accuse(size: int, accusers: int, wait: float) -> None:
    court = Court(size)
    court.detector.unheard(SUSPECT, at=3.0)
    court.accuse(*OTHERS[:accusers], now=3.0)
    court.run(60.0, None)

    assert court.down_at is not None
    assert wait <= court.down_at - 3.0 <= wait + 1.3


@pytest.mark.parametrize("found", [Found.SILENT, Found.REFUSED])
def test_who_answers_that_he_does_not_hear_it_counts_as_an_accuser(found: Found) -> None:
    court = Court(3)
    court.detector.unheard(SUSPECT, at=3.0)
    court.run(60.0, found)

    assert court.down_at == pytest.approx(3.0 + SUSPICION_MIN_S)


def test_who_does_not_know_it_does_not_count() -> None:
    court = Court(3)
    court.detector.unheard(SUSPECT, at=3.0)
    court.run(60.0, Found.UNKNOWN)

    assert court.down_at == pytest.approx(3.0 + SUSPICION_MAX_S)


def test_answers_that_are_held_up_do_not_put_off_the_verdict() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.accuse(*OTHERS[:3], now=3.0)
    court.run(60.0, None)

    assert court.down_at == pytest.approx(3.0 + SUSPICION_MIN_S)


def test_in_a_mesh_of_four_or_more_nobody_is_down_by_one_nodes_word() -> None:
    court = Court(4)
    court.detector.unheard(SUSPECT, at=3.0)
    court.run(120.0)

    assert court.down_at is None


def test_a_fourth_accuser_keeps_it_to_himself() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.accuse(*OTHERS[:3], now=3.0)
    court.run(4.5)

    assert court.detector.is_suspect(SUSPECT)
    assert court.detector.outbox == []


@pytest.mark.parametrize(("size", "others"), [(3, 1), (4, 2), (8, 2)])
def test_a_host_that_refuses_connections_is_proof_when_others_find_the_same(size: int, others: int) -> None:
    court = Court(size)
    court.detector.refused(SUSPECT, 0.3)
    court.accuse(*OTHERS[: others - 1], now=0.4, refused=True)
    court.run(1.0)
    assert court.down_at is None

    court.accuse(OTHERS[others - 1], now=1.0, refused=True)
    court.run(1.0)
    assert court.down_at == 1.0
    assert court.detector.evidence(SUSPECT).startswith("its host refuses connections")


def test_a_refusal_is_no_proof_while_somebody_hears_it() -> None:
    court = Court(8)
    court.detector.refused(SUSPECT, 0.3)
    for helper in court.probed():
        court.detector.found(helper, SUSPECT, Found.HEARD, 0.3)
    court.accuse(*OTHERS[:3], now=0.4, refused=True)
    court.run(60.0, Found.HEARD)

    assert court.down_at is None


def test_alone_with_it_three_refusals_are_proof() -> None:
    court = Court(2)
    for number, now in enumerate((0.3, 0.65, 1.0), 1):
        assert court.down_at is None
        assert court.detector.refused(SUSPECT, now) == number
        court.run(now)

    assert court.down_at == 1.0


def test_an_accusation_of_another_stage_of_its_life_does_not_count() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.accuse(*OTHERS[:3], now=3.0, incarnation=1)
    court.run(4.5)
    assert "accuse" not in court.detector.evidence(SUSPECT)

    court.known.own_word(RecordDelta(SUSPECT, 1, 1, 0, 1, ()), now=4.6)
    court.run(5.0)
    assert not court.detector.is_suspect(SUSPECT)


def test_who_was_stopped_begins_again() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.accuse(*OTHERS[:3], now=3.0)
    court.run(4.5)
    court.detector.excuse(100.0)

    assert not court.detector.is_suspect(SUSPECT)
    assert court.detector.deadline() > 100.0


def test_while_it_suspects_it_asks_somebody_each_second_what_he_knows() -> None:
    court = Court(8)
    court.detector.unheard(SUSPECT, at=3.0)
    court.run(8.0)

    assert 3 <= len(court.detector.questions) <= 5
    assert {about for _, about in court.detector.questions} == {SUSPECT}


def test_who_is_slow_himself_waits_longer() -> None:
    lag = Lag()
    assert not lag.served(0.4, now=0.0)
    assert lag.factor == 1
    assert not lag.served(0.6, now=1.0)
    assert lag.factor == 2
    assert lag.served(3.0, now=2.0)
    for _ in range(20):
        lag.served(1.0, now=3.0)
    assert lag.factor == 1 + MAX_SCORE
    lag.served(0.0, now=7.9)
    assert lag.factor == 1 + MAX_SCORE
    for second in range(8, 80):
        lag.served(0.0, now=float(second))
    assert lag.factor == 1


# Engines


def mesh(size: int, *, seed: int = 0) -> tuple[Lan, list[Node]]:
    lan = Lan(seed)
    nodes = [lan.start(number, seeds=(1,) if number > 1 else ()) for number in range(1, size + 1)]
    lan.run(3.0)
    return lan, nodes


def view(lan: Lan, node: Node, name: str) -> Member:
    return lan.members(node)[name]


def states(lan: Lan, nodes: list[Node], name: str) -> set[State]:
    return {view(lan, node, name).state for node in nodes}


@pytest.mark.parametrize("size", [2, 3, 5, 12])
@pytest.mark.parametrize("reset", [True, False])
def test_a_node_that_is_gone_is_down_everywhere(size: int, reset: bool) -> None:
    """Killed, its host tells; without power nobody does."""
    lan, nodes = mesh(size)
    lan.stop(nodes[1], reset=reset)
    others = [node for node in nodes if node is not nodes[1]]
    lan.run(1.5 if reset else 10.0)

    assert states(lan, others, "n02") == {State.DOWN}
    assert all(view(lan, node, "n02").reason for node in others)
    assert all(view(lan, node, other.engine._hello.name).state is State.ALIVE for node in others for other in others)


def test_a_node_that_is_started_again_at_once_is_itself_again() -> None:
    lan, nodes = mesh(5)
    lan.stop(nodes[1])
    lan.run(0.2)
    again = lan.start(2, seeds=(1,), epoch=2)
    lan.run(5.0)

    everyone = [node for node in nodes if node is not nodes[1]]
    assert states(lan, everyone, "n02") == {State.ALIVE}
    assert {view(lan, node, "n02").epoch for node in everyone} == {2}
    assert len(lan.routable(again)) == 5


def test_a_node_that_was_called_down_refutes_it_when_it_is_back() -> None:
    lan, nodes = mesh(5)
    nodes[1].frozen = True  # its machine is cut off: silence both ways
    lan.run(10.0)
    others = [node for node in nodes if node is not nodes[1]]
    assert states(lan, others, "n02") == {State.DOWN}

    nodes[1].frozen = False
    lan.touch(nodes[1])
    lan.run(40.0)
    assert states(lan, nodes, "n02") == {State.ALIVE}
    assert all(len(lan.routable(node)) == 5 for node in nodes)
    assert {node.engine._known.record(node_id(2)).incarnation for node in nodes} != {0}  # type: ignore[union-attr]


def test_a_pair_that_cannot_reach_each_other_is_no_case_for_the_others() -> None:
    lan = Lan()
    lan.walls = {(2, 3), (3, 2)}
    nodes = [lan.start(1), lan.start(2, seeds=(1,)), lan.start(3, seeds=(1,)), lan.start(4, seeds=(1,))]
    lan.run(60.0)

    assert all(states(lan, nodes, f"n{number:02}") == {State.ALIVE} for number in range(1, 5))
    assert not view(lan, nodes[1], "n03").routable


def test_an_operator_can_have_a_node_that_is_down_forgotten_everywhere() -> None:
    lan, nodes = mesh(4)
    lan.stop(nodes[1])
    lan.run(3.0)
    assert nodes[0].engine.forget(node_id(2), now=lan.now)
    assert not nodes[0].engine.forget(node_id(3), now=lan.now)
    lan.touch(nodes[0])
    lan.run(1.0)

    assert states(lan, [nodes[0], nodes[2], nodes[3]], "n02") == {State.LEFT}


def test_a_node_that_drains_says_so() -> None:
    lan, nodes = mesh(3)
    nodes[1].engine.drain(True, now=lan.now)
    lan.touch(nodes[1])
    lan.run(0.2)
    assert all(view(lan, node, "n02").draining for node in nodes)

    nodes[1].engine.drain(False, now=lan.now)
    lan.touch(nodes[1])
    lan.run(0.2)
    assert not any(view(lan, node, "n02").draining for node in nodes)


def test_a_node_that_announces_a_stall_is_not_routable_and_not_suspected() -> None:
    lan, nodes = mesh(4)
    nodes[1].engine.announce_stall(30.0, now=lan.now)
    lan.touch(nodes[1])
    lan.run(0.1)
    nodes[1].frozen = True
    lan.run(1.0)
    assert view(lan, nodes[0], "n02").reason.startswith("announced that it is busy for 2")

    lan.run(20.0)
    assert states(lan, [nodes[0], nodes[2], nodes[3]], "n02") == {State.ALIVE}
    lan.run(25.0)
    assert states(lan, [nodes[0], nodes[2], nodes[3]], "n02") == {State.DOWN}


# One engine, and what members may say


def link(engine: Engine, number: int, *, link_id: int) -> LinkId:
    engine.link_up(LinkId(link_id), make_engine(number).hello(node_id(3)), addr=f"10.0.0.{number}:1", dialled=True, now=0.0)
    return LinkId(link_id)


def pulled(engine: Engine, on: LinkId, now: float) -> list[Frame]:
    frames: list[Frame] = []
    while raw := engine.next_frame(on, now, 65536):
        frames += decode(raw)
    return frames


@pytest.fixture
def engine() -> Engine:
    """Node 3, linked with 2 on link 1 and with 4 on link 2; both have introduced themselves."""
    engine = make_engine(3)
    for number, link_id in ((2, 1), (4, 2)):
        on = link(engine, number, link_id=link_id)
        engine.receive(on, Delta((RecordDelta(node_id(number), 1, 0, 0, 1, (Entry("k", 1, b""),)),)), now=0.0)
        engine.receive(on, Ping(0, False, ANY_HASH), now=0.0)
        pulled(engine, on, 0.0)
    return engine


@pytest.mark.parametrize(
    ("target", "now", "found"),
    [(4, 1.0, Found.HEARD), (4, 1.6, Found.SILENT), (77, 1.0, Found.UNKNOWN)],
)
def test_a_probe_is_answered_by_what_is_known(engine: Engine, target: int, now: float, found: Found) -> None:
    engine.receive(LinkId(1), Probe(node_id(target)), now=now)

    assert Finding(node_id(target), found) in pulled(engine, LinkId(1), now)


def test_an_accusation_of_a_node_that_we_hear_is_passed_on_to_it(engine: Engine) -> None:
    accusation = Accuse(node_id(4), 1, 0)
    engine.receive(LinkId(1), accusation, now=1.0)

    assert accusation in pulled(engine, LinkId(2), 1.0)
    assert all(member.state is State.ALIVE for member in engine.members(now=1.0))


def test_that_a_node_which_we_hear_is_down_is_not_believed_and_is_passed_on_to_it(engine: Engine) -> None:
    engine.receive(LinkId(1), Delta((RecordDelta(node_id(4), 1, 0, 1, 1, (), Standing.DOWN),)), now=1.0)

    assert Accuse(node_id(4), 1, 0) in pulled(engine, LinkId(2), 1.0)
    assert all(member.state is State.ALIVE for member in engine.members(now=1.0))


def test_what_was_said_of_a_node_while_it_was_heard_is_no_verdict_when_its_link_breaks(engine: Engine) -> None:
    engine.receive(LinkId(1), Delta((RecordDelta(node_id(4), 1, 0, 1, 1, (), Standing.DOWN),)), now=1.0)
    engine.link_down(LinkId(2), "connection reset", now=1.1)

    (gone,) = [member for member in engine.members(now=1.1) if member.id == node_id(4)]
    assert (gone.state, gone.routable) == (State.ALIVE, False)


def test_who_was_called_down_in_its_silence_learns_it_with_its_first_frame(engine: Engine) -> None:
    """Its link is still there, so no greeting of a new link tells it."""
    for tenth in range(1, 32):
        engine.heard(LinkId(1), now=tenth / 10)
        engine.tick(now=tenth / 10)
    engine.receive(LinkId(1), Delta((RecordDelta(node_id(4), 1, 0, 1, 1, (), Standing.DOWN),)), now=3.2)
    assert [member.state for member in engine.members(now=3.2) if member.id == node_id(4)] == [State.DOWN]
    pulled(engine, LinkId(2), 3.2)

    engine.receive(LinkId(2), Ping(1, False, ANY_HASH), now=5.0)
    assert Accuse(node_id(4), 1, 0) in pulled(engine, LinkId(2), 5.0)


def test_what_is_passed_on_does_not_make_us_the_one_who_accuses_too_often(engine: Engine) -> None:
    passed = []
    for now in (1.0, 1.1, 1.15, 1.3):
        engine.receive(LinkId(1), Accuse(node_id(4), 1, 0), now=now)
        passed.append(Accuse(node_id(4), 1, 0) in pulled(engine, LinkId(2), now))

    assert passed == [True, False, False, True]


@pytest.mark.parametrize(("announced", "proof"), [("10.0.0.99:1", False), ("10.0.0.4:1", True)])
def test_a_closed_port_where_others_say_that_a_node_is_proves_nothing(engine: Engine, announced: str, proof: bool) -> None:
    """The address at which it was linked does; what anybody announces by mDNS does not."""
    engine.link_down(LinkId(2), "connection reset", now=1.0)
    engine.discovered(node_id(4), (announced,), now=1.0)
    for tenth in range(10, 18):
        engine.tick(now=tenth / 10)
        for effect in engine.effects():
            if isinstance(effect, Dial):
                engine.dial_failed(effect.addr, "failed", refused=effect.addr == announced, now=tenth / 10)
    engine.heard(LinkId(1), now=1.7)

    assert (Accuse(node_id(4), 1, 0, True) in pulled(engine, LinkId(1), 1.8)) == proof


@pytest.mark.parametrize("as_delta", [True, False])
def test_we_refute_what_is_said_of_us(engine: Engine, as_delta: bool) -> None:
    delta = Delta((RecordDelta(node_id(3), 1, 0, 1, 1, (), Standing.DOWN),))
    engine.receive(LinkId(1), delta if as_delta else Accuse(node_id(3), 1, 0), now=1.0)
    engine.tick(now=1.1)

    for on in (LinkId(1), LinkId(2)):
        told = [record for frame in pulled(engine, on, 1.1) if isinstance(frame, Delta) for record in frame.records]
        assert [(record.incarnation, record.standing) for record in told if record.origin == node_id(3)] == [(1, Standing.ALIVE)]


@pytest.mark.parametrize("accusation", [Accuse(node_id(3), 0, 0), Accuse(node_id(3), 2, 0), Accuse(node_id(3), 1, 1)])
def test_what_is_not_about_this_life_or_cannot_be_meant_is_not_refuted(engine: Engine, accusation: Accuse) -> None:
    engine.receive(LinkId(1), accusation, now=1.0)

    me = engine._known.record(node_id(3))
    assert me is not None
    assert me.incarnation == 0


def test_a_node_cannot_call_itself_down(engine: Engine) -> None:
    with pytest.raises(PeerError, match="itself down"):
        engine.receive(LinkId(1), Delta((RecordDelta(node_id(2), 1, 0, 1, 1, (), Standing.DOWN),)), now=1.0)


def test_a_node_that_nobody_here_has_met_is_not_shown_because_somebody_calls_it_down(engine: Engine) -> None:
    engine.receive(LinkId(1), Delta((RecordDelta(node_id(77), 1, 0, 0, 1, (), Standing.DOWN),)), now=1.0)

    assert node_id(77) not in {member.id for member in engine.members(now=1.0)}


@pytest.mark.parametrize("frame", [Probe(node_id(4)), Accuse(node_id(4), 1, 0)])
def test_who_probes_or_accuses_without_end_is_cut_off(engine: Engine, frame: Probe | Accuse) -> None:
    for _ in range(int(SUDDEN)):
        engine.receive(LinkId(1), frame, now=1.0)
    with pytest.raises(PeerError) as error:
        engine.receive(LinkId(1), frame, now=1.0)

    assert error.value.close_code == 4429
    assert len(pulled(engine, LinkId(2), 1.0)) < 10


def test_other_traffic_than_gossip_is_a_sign_of_life_too(engine: Engine) -> None:
    for tenth in range(10, 50):
        engine.heard(LinkId(1), now=tenth / 10)
        engine.tick(now=tenth / 10)

    assert [(member.name, member.routable) for member in engine.members(now=4.9) if member.id != node_id(3)] == [
        ("n02", True),
        ("n04", False),
    ]


def test_the_heartbeat_carries_the_stall(engine: Engine) -> None:
    engine.announce_stall(600.0, now=1.0)
    (ping,) = [frame for frame in pulled(engine, LinkId(1), 1.0) if isinstance(frame, Ping)]

    assert ping.grace_ms == 60_000
    assert msgspec.structs.replace(ping, grace_ms=0) != ping
