import msgspec
import pytest
from gossip.small_lan import ANY_HASH, MESH, Lan, Node, make_engine, node_id
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import PeerError
from meshnode.gossip.effects import Close, Dial, LinkId, Notify
from meshnode.gossip.engine import Engine
from meshnode.gossip.knowledge import MAX_AHEAD_MS
from meshnode.gossip.member import Member, Model, State
from meshnode.gossip.view import encode_model
from meshnode.names import MeshId, ModelDigest, NodeId
from meshnode.wire.codec import decode, encode_value
from meshnode.wire.messages import (
    Delta,
    Entry,
    Frame,
    Gossip,
    Hello,
    Leave,
    ModelState,
    Ping,
    Pong,
    RecordDelta,
    Sketch,
    Standing,
    Versions,
)

A, B, C = node_id(2), node_id(3), node_id(4)
ME = 3
MODEL = Model(name="tiny", digest=ModelDigest(bytes(32)), context_length=2048)


def mesh(size: int, *, seed: int = 0, seconds: float = 3.0) -> tuple[Lan, list[Node]]:
    """`size` nodes that all know the first by its address."""
    lan = Lan(seed)
    nodes = [lan.start(number, seeds=(1,) if number > 1 else ()) for number in range(1, size + 1)]
    lan.run(seconds)
    return lan, nodes


def said(lan: Lan, node: Node) -> dict[str, tuple[object, ...]]:
    """What every node should agree on of the members."""
    return {
        name: (member.name, member.version, member.epoch, member.models, member.state)
        for name, member in lan.members(node).items()
    }


def link(engine: Engine, number: int = 2, *, link_id: int = 1, epoch: int = 1, now: float = 0.0, dialled: bool = True) -> LinkId:
    """Bring up a link from `engine` to node `number`, which then is ours to speak for."""
    hello = make_engine(number, epoch=epoch).hello(node_id(ME))
    engine.link_up(LinkId(link_id), hello, addr=f"10.0.0.{number}:4850", dialled=dialled, now=now)
    return LinkId(link_id)


def pulled(engine: Engine, on: LinkId, now: float, room: int = 65536) -> list[Frame]:
    frames: list[Frame] = []
    while raw := engine.next_frame(on, now, room):
        assert len(raw) <= room
        frames += decode(raw)
    return frames


def told_on(engine: Engine, on: LinkId, now: float) -> list[tuple[NodeId, int, int]]:
    """Of which records the peer is told, of which epoch and from which version on."""
    deltas = [frame for frame in pulled(engine, on, now) if isinstance(frame, Delta)]
    return [(record.origin, record.epoch, record.from_version) for delta in deltas for record in delta.records]


def news(origin: NodeId, *entries: tuple[str, bytes | None], epoch: int = 1, start: int = 0, left: bool = False) -> Delta:
    items = tuple(Entry(key, start + position, value) for position, (key, value) in enumerate(entries, 1))
    return Delta((RecordDelta(origin, epoch, 0, start, start + len(items), items, Standing.LEFT if left else Standing.ALIVE),))


def member(engine: Engine, node: NodeId, now: float = 0.0) -> Member | None:
    return next((found for found in engine.members(now=now) if found.id == node), None)


def notes(engine: Engine, node: NodeId) -> list[str]:
    return [effect.what for effect in engine.effects() if isinstance(effect, Notify) and effect.node == node]


def closes(engine: Engine) -> list[tuple[LinkId, int]]:
    return [(effect.link, effect.code) for effect in engine.effects() if isinstance(effect, Close)]


# Several nodes


@pytest.mark.parametrize("size", [2, 3, 8])
def test_nodes_with_one_seed_become_a_full_mesh_within_half_a_second(size: int) -> None:
    lan, nodes = mesh(size, seconds=0.5)
    everyone = {f"n{number:02}" for number in range(1, size + 1)}

    assert all(lan.routable(node) == everyone for node in nodes)
    assert all(said(lan, node) == said(lan, nodes[0]) for node in nodes)
    assert all(len(node.links) == size - 1 for node in nodes)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_whoever_dials_first_each_pair_ends_with_one_link(seed: int) -> None:
    """Every node has every other one as its seed, so that all dial all at once."""
    lan = Lan(seed)
    nodes = [lan.start(number, seeds=(1, 2, 3, 4)) for number in range(1, 5)]
    lan.run(2.0)

    assert all(len(node.links) == 3 for node in nodes)
    assert all(len(lan.routable(node)) == 4 for node in nodes)


def test_a_pair_links_when_only_one_of_the_two_can_dial() -> None:
    for walls in ((1, 2), (2, 1)):
        lan = Lan()
        lan.walls = {walls}
        nodes = [lan.start(1, seeds=(2,)), lan.start(2, seeds=(1,))]
        lan.run(2.0)
        assert all(len(lan.routable(node)) == 2 for node in nodes)


def test_a_change_reaches_everyone_in_a_batch() -> None:
    lan, nodes = mesh(8)
    nodes[3].engine.advertise("model/00", encode_model(MODEL), now=lan.now)
    lan.touch(nodes[3])
    lan.run(0.06)

    assert all(lan.members(node)["n04"].models == (MODEL,) for node in nodes)

    nodes[3].engine.advertise("model/00", None, now=lan.now)
    lan.touch(nodes[3])
    lan.run(0.06)

    assert all(lan.members(node)["n04"].models == () for node in nodes)


def test_a_node_without_a_link_to_the_origin_learns_a_change_from_the_others() -> None:
    lan, nodes = mesh(1)
    lan.walls = {(2, 3), (3, 2)}
    nodes += [lan.start(2, seeds=(1,)), lan.start(3, seeds=(1,))]
    lan.run(2.0)
    nodes[1].engine.advertise("model/00", encode_model(MODEL), now=lan.now)
    lan.touch(nodes[1])
    lan.run(0.3)

    far = lan.members(nodes[2])["n02"]
    assert far.models == (MODEL,)
    assert not far.routable
    assert far.reason.startswith("cannot reach 10.0.0.2:4850: connection refused (tried ")


def test_a_node_that_leaves_is_left_everywhere_and_is_not_dialled() -> None:
    lan, nodes = mesh(4)
    nodes[1].engine.leave(now=lan.now)
    lan.touch(nodes[1])
    lan.run(1.0)
    lan.nodes.pop("10.0.0.2:4850")
    lan.trace.clear()
    lan.run(30.0)

    others = [lan.members(node)["n02"] for node in nodes if node is not nodes[1]]
    assert [(other.state, other.routable, other.reason) for other in others] == [(State.LEFT, False, "left the mesh")] * 3
    assert not any("Dial" in line for line in lan.trace)
    assert [note.what for note in nodes[0].notes if note.node == node_id(2)][-2:] == ["left", "unroutable"]


def test_a_node_that_left_is_forgotten_after_an_hour_and_stays_so() -> None:
    lan, nodes = mesh(3)
    nodes[1].engine.leave(now=lan.now)
    lan.touch(nodes[1])
    lan.run(1.0)
    for node in (nodes[0], nodes[2]):
        node.engine.tick(now=lan.now + 3601)
        assert set(lan.members(node)) == {"n01", "n03"}
    gossip = news(node_id(2), ("name", encode_value("n02")))
    lan.send(nodes[0], nodes[2], gossip)
    lan.run(1.0)

    assert "n02" not in lan.members(nodes[2])


def test_a_killed_node_is_not_routable_at_once_and_then_down_with_reason_and_age() -> None:
    lan, nodes = mesh(3)
    lan.stop(nodes[1])
    lan.run(0.01)
    at_once = lan.members(nodes[0])["n02"]
    lan.run(20.0)
    later = lan.members(nodes[0])["n02"]

    assert (at_once.state, at_once.routable) == (State.ALIVE, False)
    assert at_once.reason == "link lost 0.0 s ago: connection reset"
    assert later.state is State.DOWN
    assert later.reason == (
        "link lost 20 s ago: connection reset; redial of 10.0.0.2:4850: connection refused; "
        "its host refuses connections; 1 of 1 probes silent; 1 other accuses it"
    )
    assert later.since is not None
    assert 18.5 < lan.now - later.since < 19.5
    assert "unroutable" in [note.what for note in nodes[0].notes]


def test_a_node_without_power_is_not_routable_after_three_seconds_of_silence_and_closed_after_ten() -> None:
    lan, nodes = mesh(2)
    lan.stop(nodes[1], reset=False)
    lan.run(3.1)
    silent = lan.members(nodes[0])["n02"]
    lan.run(8.0)
    closed = lan.members(nodes[0])["n02"]

    assert not silent.routable
    assert silent.reason.startswith("no frame for 3.")
    assert "no frame for 10" in closed.reason
    assert closed.reason.startswith("link lost")


def test_a_node_that_was_stopped_for_a_while_does_not_blame_the_others() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.tick(now=0.0)
    engine.tick(now=60.0)
    excused = member(engine, A, 60.0)
    engine.tick(now=engine.next_deadline())
    for _ in range(3):
        engine.tick(now=engine.next_deadline())

    assert excused is not None
    assert excused.routable
    assert closes(engine) == []
    while (now := engine.next_deadline()) < 71.0:
        engine.tick(now=now)
    assert closes(engine) == [(on, 4408)]


def test_a_restart_replaces_the_node_and_its_models() -> None:
    lan, nodes = mesh(3)
    nodes[1].engine.advertise("model/00", encode_model(MODEL), now=lan.now)
    lan.touch(nodes[1])
    lan.run(1.0)
    lan.stop(nodes[1])
    lan.start(2, seeds=(1,), epoch=2)
    lan.run(2.0)

    for node in (nodes[0], nodes[2]):
        again = lan.members(node)["n02"]
        assert (again.epoch, again.models, again.routable) == (2, (), True)


def test_a_restart_is_accepted_when_the_old_link_is_silent_and_has_not_yet_failed() -> None:
    """After a power loss the old life's link looks alive for ten seconds, and the new life dials. For the first three it could as
    well be a copy of a node that is still there."""
    lan, nodes = mesh(2)
    lan.stop(nodes[1], reset=False)
    lan.run(0.5)
    again = lan.start(2, seeds=(1,), epoch=2)
    lan.run(5.5)

    assert lan.members(nodes[0])["n02"].epoch == 2
    assert lan.routable(nodes[0]) == lan.routable(again) == {"n01", "n02"}


def test_a_seed_that_comes_up_late_is_found() -> None:
    lan = Lan()
    early = lan.start(2, seeds=(1,))
    lan.run(100.0)
    lan.start(1)
    lan.run(31.0)

    assert lan.routable(early) == {"n01", "n02"}


def test_two_meshes_that_meet_through_one_node_become_one() -> None:
    lan = Lan()
    nodes = [lan.start(number, seeds=(1,) if number < 4 else (4,)) for number in (1, 2, 3, 4, 5, 6)]
    lan.run(5.0)
    assert len(lan.members(nodes[0])) == 3
    nodes.append(lan.start(7, seeds=(1, 4)))
    lan.run(2.0)

    assert all(len(lan.routable(node)) == 7 for node in nodes)


def test_the_same_seed_gives_the_same_trace() -> None:
    assert mesh(5, seed=7)[0].trace == mesh(5, seed=7)[0].trace
    assert mesh(5, seed=7)[0].trace != mesh(5, seed=8)[0].trace


def test_an_idle_node_sends_seventeen_bytes_a_second_to_each_peer() -> None:
    """Without load; 60 more for each model, and 58 for WebSocket, TLS and TCP around each message."""
    lan, nodes = mesh(8)
    before = nodes[0].sent_bytes
    lan.run(20.0)

    assert (nodes[0].sent_bytes - before) / 20 / 7 < 17


# One node, whose peers are ours


def test_hello_is_judged_by_identity_mesh_and_version() -> None:
    engine, hello = make_engine(ME), make_engine(2).hello(node_id(ME))
    cases: list[tuple[Hello, NodeId, int, str]] = [
        (hello, B, 4409, "this node itself"),
        (msgspec.structs.replace(hello, instance=b"another-"), B, 4409, "n02 has the identity 00000000 of this node"),
        (hello, C, 4403, "proved to be"),
        (msgspec.structs.replace(hello, mesh=MeshId(b"other---")), A, 4404, "6f746865"),
        (msgspec.structs.replace(hello, protocol_min=2, protocol_max=3), A, 4406, "protocol 2 to 3, this node 1 to 1"),
    ]
    engine.judge(hello, proven=A, addr="10.0.0.9:1", now=0.0)
    for wrong, proven, code, text in cases:
        with pytest.raises(PeerError, match=text) as error:
            engine.judge(wrong, proven=proven, addr="10.0.0.9:1", now=0.0)
        assert error.value.close_code == code
    assert hello.mesh == MESH


def test_the_65th_node_is_refused_with_the_reason() -> None:
    engine = make_engine(100)
    for number in range(1, 64):
        link(engine, number, link_id=number)
    engine.judge(make_engine(5).hello(node_id(ME)), proven=node_id(5), addr="10.0.0.9:1", now=0.0)
    with pytest.raises(PeerError, match="the mesh is full: 64 nodes"):
        engine.judge(make_engine(70).hello(node_id(ME)), proven=node_id(70), addr="10.0.0.9:1", now=0.0)

    name = ("name", encode_value("late")), ("addr", encode_value(("10.0.0.70:4850",)))
    engine.receive(LinkId(1), news(node_id(70), *name), now=1.0)
    engine.tick(now=1.1)
    late = member(engine, node_id(70), 1.2)
    assert late is not None
    assert late.reason == "not linked: the mesh is full: 64 nodes; larger meshes are not possible yet"
    assert not any(isinstance(effect, Dial) for effect in engine.effects())


def test_a_new_link_first_says_ping_and_our_own_record_and_the_rest_a_little_later() -> None:
    engine = make_engine(ME)
    link(engine, 4, link_id=9)
    engine.receive(LinkId(9), news(C, ("name", encode_value("n04"))), now=0.0)
    on = link(engine, 2)
    first = pulled(engine, on, 0.0)
    engine.tick(now=0.2)
    rest = pulled(engine, on, 0.2)

    assert [type(frame) for frame in first] == [Ping, Delta]
    assert isinstance(first[0], Ping)
    assert first[0].want_pong
    assert isinstance(first[1], Delta)
    assert [(record.origin, record.from_version) for record in first[1].records] == [(B, 0)]
    assert [[record.origin for record in frame.records] for frame in rest if isinstance(frame, Delta)] == [[C]]


def test_what_the_peer_has_shown_is_not_told_to_it() -> None:
    engine = make_engine(ME)
    link(engine, 4, link_id=9)
    engine.receive(LinkId(9), news(C, ("name", encode_value("n04"))), now=0.0)
    on = link(engine, 2)
    engine.receive(on, news(C, ("name", encode_value("n04"))), now=0.0)
    engine.tick(now=0.2)

    deltas = [frame for frame in pulled(engine, on, 0.2) if isinstance(frame, Delta)]
    assert [record.origin for delta in deltas for record in delta.records] == [B]


def test_a_large_record_goes_out_in_frames_of_16_kib_and_arrives_whole() -> None:
    sender, receiver = make_engine(2), make_engine(3)
    for number in range(7):
        sender.advertise(f"key/{number}", bytes([number]) * 4000, now=0.0)
    out, back = link(sender, 3), link(receiver, 2)
    sizes = []
    while raw := sender.next_frame(out, 0.0, 65536):
        sizes.append(len(raw))
        for frame in decode(raw):
            assert isinstance(frame, Ping | Delta)
            receiver.receive(back, frame, now=0.0)

    assert max(sizes) <= 16 * 1024
    assert len(sizes) >= 3
    far = make_engine(4)
    on = link(receiver, 4, link_id=2, now=1.0)
    receiver.tick(now=1.2)
    there = link(far, 3)
    for frame in pulled(receiver, on, 1.2):
        assert isinstance(frame, Ping | Delta)
        far.receive(there, frame, now=1.2)
    assert far._known.record(A) == receiver._known.record(A) == sender._known.record(A)


def test_nothing_larger_than_the_room_is_given_and_nothing_is_lost_by_it() -> None:
    engine = make_engine(ME)
    engine.advertise("key", bytes(3000), now=0.0)
    on = link(engine, 2)

    assert pulled(engine, on, 0.0, room=3) == []
    assert [type(frame) for frame in pulled(engine, on, 0.0, room=400)] == [Ping, Delta]
    assert engine.ready() == (on,)
    rest = pulled(engine, on, 0.0)
    assert isinstance(rest[0], Delta)
    assert [entry.key for entry in rest[0].records[0].entries] == ["key"]
    assert engine.ready() == ()


def test_a_slow_peer_gets_the_newest_state_and_not_the_history() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    pulled(engine, on, 0.0)
    for number in range(1000):
        engine.advertise("model/00", encode_value(str(number)), now=number / 1000)
    engine.tick(now=1.0)

    frames = pulled(engine, on, 1.0)
    assert [type(frame) for frame in frames] == [Ping, Delta]
    assert isinstance(frames[1], Delta)
    assert [entry.value for entry in frames[1].records[0].entries] == [encode_value("999")]


def test_changes_within_fifty_milliseconds_share_a_delta() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.tick(now=0.0)
    pulled(engine, on, 0.0)
    engine.advertise("one", b"1", now=0.01)
    engine.advertise("two", b"2", now=0.02)
    assert engine.ready() == ()
    assert engine.next_deadline() == pytest.approx(0.05)
    engine.tick(now=0.05)
    (frame,) = pulled(engine, on, 0.05)

    assert isinstance(frame, Delta)
    assert [entry.key for entry in frame.records[0].entries] == ["one", "two"]


def test_a_ping_that_asks_is_answered_once_and_a_pong_gives_the_round_trip() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    pulled(engine, on, 0.0)
    engine.receive(on, Ping(7, True, ANY_HASH), now=0.01)
    engine.receive(on, Ping(8, True, ANY_HASH), now=0.01)
    engine.receive(on, Ping(9, False, ANY_HASH), now=0.01)
    assert pulled(engine, on, 0.01) == [Pong(8)]
    engine.receive(on, Pong(0), now=0.02)
    engine.receive(on, Pong(0), now=9.0)

    peer = member(engine, A)
    assert peer is not None
    assert peer.rtt_ms == pytest.approx(20.0)


def test_every_fifth_ping_asks_for_a_pong() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    asked = []
    for second in range(11):
        engine.receive(on, Ping(second, False, ANY_HASH), now=float(second))
        engine.tick(now=float(second))
        asked += [frame.want_pong for frame in pulled(engine, on, float(second)) if isinstance(frame, Ping)]
    assert asked == [number % 5 == 0 for number in range(11)]


def busy(active: int) -> tuple[ModelState, ...]:
    return (ModelState(name="tiny", digest=MODEL.digest, state="ready", active=active, slots=8),)


def test_a_large_change_of_load_is_told_at_once_and_not_more_than_ten_times_a_second() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.tick(now=0.0)
    pulled(engine, on, 0.0)
    engine.set_load(busy(1), now=0.2)
    (first,) = pulled(engine, on, 0.2)
    engine.set_load(busy(4), now=0.21)
    assert engine.ready() == ()
    assert engine.next_deadline() == pytest.approx(0.3)
    engine.tick(now=engine.next_deadline())
    (second,) = pulled(engine, on, 0.31)
    engine.set_load(busy(5), now=0.5)

    assert isinstance(first, Ping)
    assert isinstance(second, Ping)
    assert (first.load, second.load) == (busy(1), busy(4))
    assert engine.ready() == ()


def test_load_comes_with_pings_and_replies_and_goes_with_the_link() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.receive(on, Ping(1, False, ANY_HASH, busy(1)), now=1.0)
    pinged = member(engine, A, 1.0)
    engine.observe_load(A, busy(2), now=1.5)
    replied = member(engine, A, 1.5)
    engine.link_down(on, "gone", now=2.0)
    engine.observe_load(A, busy(3), now=2.1)
    gone = member(engine, A, 2.1)

    assert pinged is not None
    assert replied is not None
    assert gone is not None
    assert (pinged.load, pinged.load_at) == (busy(1), 1.0)
    assert (replied.load, replied.load_at) == (busy(2), 1.5)
    assert gone.load == ()


def sketch(name: str, marks: bytes = bytes(4)) -> Sketch:
    return Sketch(name, MODEL.digest, bytes(16), marks)


def sketches(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if isinstance(frame, Sketch)]


def test_a_sketch_is_told_to_direct_peers_when_it_changes_and_to_new_ones() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.set_sketches([sketch("m"), sketch("empty", b"")], now=0.0)
    first = sketches(pulled(engine, on, 0.0))
    engine.set_sketches([sketch("m"), sketch("empty", b"")], now=5.0)
    unchanged = sketches(pulled(engine, on, 5.0))
    engine.set_sketches([sketch("m", b""), sketch("empty", b"")], now=10.0)
    emptied = sketches(pulled(engine, on, 10.0))
    later = link(engine, 3, link_id=2, now=11.0)

    assert (first, unchanged, emptied) == ([sketch("m")], [], [sketch("m", b"")])
    assert sketches(pulled(engine, later, 11.0)) == [sketch("m", b"")]


def test_a_slow_peer_is_told_the_newest_sketch_alone() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    for number in range(5):
        engine.set_sketches([sketch("m", bytes([number] * 4))], now=float(number))
    small = sketches(pulled(engine, on, 5.0, room=20))

    assert small == []
    assert sketches(pulled(engine, on, 5.0)) == [sketch("m", bytes([4] * 4))]


def test_a_peers_sketch_is_kept_with_its_time_passed_on_to_nobody_and_goes_with_the_link() -> None:
    engine = make_engine(ME)
    on, other = link(engine, 2), link(engine, 3, link_id=2)
    engine.receive(on, sketch("m"), now=1.0)
    heard = member(engine, A, 1.0)
    told = sketches(pulled(engine, other, 2.0))
    for number in range(100):
        engine.receive(on, sketch(f"m{number}"), now=3.0)
    many = member(engine, A, 3.0)
    engine.link_down(on, "gone", now=4.0)
    gone = member(engine, A, 4.0)

    assert heard is not None
    assert many is not None
    assert gone is not None
    assert heard.sketches == ((sketch("m"), 1.0),)
    assert told == []
    assert len(many.sketches) == 64
    assert gone.sketches == ()


def test_hearsay_never_overrides_a_live_link() -> None:
    engine = make_engine(ME)
    own = link(engine, 2, link_id=1)
    other = link(engine, 4, link_id=2)
    engine.receive(own, news(A, ("name", encode_value("true"))), now=0.0)
    for lie in (
        news(A, ("name", encode_value("lie")), ("x", b""), ("y", b"")),
        news(A, ("name", encode_value("lie")), epoch=1000),
        news(A, ("name", encode_value("lie")), left=True),
    ):
        engine.receive(other, lie, now=0.1)

        seen = member(engine, A, 0.1)
        assert seen is not None
        assert (seen.name, seen.state, seen.epoch, seen.routable) == ("true", State.ALIVE, 1, True)


def test_a_new_link_overrides_whatever_was_said_before() -> None:
    engine = make_engine(ME)
    other = link(engine, 4, link_id=2)
    engine.receive(other, news(A, ("name", encode_value("lie")), ("x", b""), ("y", b"")), now=0.1)
    own = link(engine, 2, link_id=1)
    engine.receive(own, news(A, ("name", encode_value("true"))), now=0.2)
    record = engine._known.record(A)

    assert record is not None
    assert set(record.entries) == {"name"}
    for lie in (news(A, epoch=1000), news(A, left=True)):
        engine.link_down(own, "cut", now=0.3)
        engine.receive(other, lie, now=0.4)
        own = link(engine, 2, link_id=own + 10, now=0.5)
        seen = member(engine, A, 0.5)
        assert seen is not None
        assert (seen.state, seen.epoch, seen.routable) == (State.ALIVE, 1, True)


def test_a_node_whose_epoch_fell_back_is_told_of_anew_to_those_that_had_its_former_life() -> None:
    engine = make_engine(ME)
    other = link(engine, 4, link_id=1)
    engine.receive(other, news(A, ("name", encode_value("n02")), epoch=10), now=0.0)
    own = link(engine, 2, link_id=2, epoch=5, now=1.0)
    engine.receive(own, news(A, ("name", encode_value("n02")), epoch=5), now=1.0)
    engine.tick(now=1.5)

    assert (A, 5, 0) in told_on(engine, other, 1.5)


def test_a_peer_that_fell_back_with_a_nodes_epoch_is_told_of_a_higher_one_from_the_start() -> None:
    engine = make_engine(ME)
    other, third = link(engine, 4, link_id=1), link(engine, 5, link_id=2)
    engine.receive(other, news(A, ("name", encode_value("n02")), epoch=10), now=0.0)
    engine.receive(other, news(A, ("name", encode_value("n02")), epoch=5), now=1.0)
    engine.receive(third, news(A, ("more", b""), epoch=10, start=1), now=2.0)
    engine.tick(now=2.5)

    assert (A, 10, 0) in told_on(engine, other, 2.5)  # from version 1 on would be a gap there


def test_a_link_that_was_silent_for_a_while_still_tells_which_life_its_peer_lives() -> None:
    engine = make_engine(ME)
    own, other = link(engine, 2, link_id=1, epoch=5), link(engine, 4, link_id=2)
    engine.receive(own, news(A, ("name", encode_value("true")), epoch=5), now=0.0)
    engine.receive(other, news(A, ("name", encode_value("former")), epoch=10), now=4.0)
    engine.receive(own, Ping(1, False, ANY_HASH, ()), now=5.0)

    seen = member(engine, A, 5.0)
    assert seen is not None
    assert (seen.name, seen.epoch, seen.routable) == ("true", 5, True)


def test_a_leave_that_only_the_others_heard_counts_when_the_link_is_gone() -> None:
    engine = make_engine(ME)
    own, other = link(engine, 2, link_id=1), link(engine, 4, link_id=2)
    engine.receive(own, news(A, ("name", encode_value("n02"))), now=0.0)
    engine.receive(other, news(A, ("name", encode_value("n02")), ("bye", b""), left=True), now=1.0)
    engine.effects()
    engine.link_down(own, "reset", now=2.0)

    gone = member(engine, A, 2.0)
    assert gone is not None
    assert gone.state is State.LEFT
    assert "left" in notes(engine, A)


def test_a_leave_by_hearsay_counts_without_a_link_and_of_a_stranger_is_not_worth_a_row() -> None:
    engine = make_engine(ME)
    other = link(engine, 4)
    engine.receive(other, news(A, ("name", encode_value("n02"))), now=0.0)
    engine.receive(other, news(A, start=1, left=True), now=0.0)
    engine.receive(other, news(node_id(9), ("name", encode_value("n09")), left=True), now=0.0)

    gone = member(engine, A)
    assert gone is not None
    assert gone.state is State.LEFT
    assert member(engine, node_id(9)) is None


def test_an_epoch_far_ahead_of_our_clock_is_refused_by_hearsay_and_taken_from_its_own_link() -> None:
    engine = make_engine(ME)
    other = link(engine, 4)
    engine.receive(other, news(A, ("name", b""), epoch=MAX_AHEAD_MS + 1002), now=1.0)
    assert member(engine, A) is None
    engine.receive(other, news(A, ("name", b""), epoch=MAX_AHEAD_MS + 1001), now=1.0)
    assert member(engine, A) is not None
    link(engine, 2, link_id=2, epoch=MAX_AHEAD_MS * 2, now=2.0)

    seen = member(engine, A, 2.0)
    assert seen is not None
    assert (seen.epoch, seen.routable) == (MAX_AHEAD_MS * 2, True)


def test_what_others_say_of_us_is_ignored() -> None:
    engine = make_engine(ME)
    other = link(engine, 4)
    engine.receive(other, news(B, ("name", encode_value("lie")), epoch=50, left=True), now=0.0)

    me = member(engine, B)
    assert me is not None
    assert (me.name, me.state, me.epoch) == ("n03", State.ALIVE, 1)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (news(A, ("k", b""), epoch=2), 4400),
        (Leave(7), 4400),
        (Versions(bytes(8), ()), 4400),
        (Delta((RecordDelta(C, 1, 0, 5, 1, ()),)), 4400),
        (news(C, ("k", bytes(8193))), 4429),
        (news(C, *((f"k{number}", bytes(200)) for number in range(250))), 4429),
        (news(A, *((f"k{number}", b"") for number in range(257))), 4429),
        (Delta(tuple(news(node_id(1000 + n), ("k", b"")).records[0] for n in range(1025))), 4429),
    ],
)
def test_a_peer_that_breaks_the_rules_is_cut_off(message: Gossip, code: int) -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    with pytest.raises(PeerError) as error:
        engine.receive(on, message, now=0.0)
    assert error.value.close_code == code
    assert engine.link_of(A) is None
    engine.receive(on, Ping(1, True, ANY_HASH), now=0.0)
    engine.link_down(on, error.value.message, now=0.1)

    engine.effects()
    link(engine, 2, link_id=2, now=30.0)
    assert closes(engine) == ([(LinkId(2), 4429)] if code == 4429 else [])
    engine.link_down(LinkId(2), "closed", now=30.1)
    link(engine, 2, link_id=3, now=61.0)
    assert closes(engine) == []


def test_more_than_a_mebibyte_a_second_of_gossip_is_too_much() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    for _ in range(16):
        engine.receive(on, Ping(1, False, ANY_HASH), now=0.0, size=256 * 1024)
    with pytest.raises(PeerError, match="1024 KiB") as error:
        engine.receive(on, Ping(1, False, ANY_HASH), now=0.1, size=256 * 1024)
    assert error.value.close_code == 4429


def test_a_flood_of_tiny_frames_is_too_much_before_it_is_a_mebibyte() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    for _ in range(16 * 1024):
        engine.receive(on, Ping(1, False, ANY_HASH), now=0.0, size=4)
    with pytest.raises(PeerError, match="1024 KiB"):
        engine.receive(on, Ping(1, False, ANY_HASH), now=0.0, size=4)


def test_an_unreadable_model_is_left_out_and_reported_and_the_rest_counts() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.effects()
    bad_name = msgspec.structs.replace(MODEL, name="a\nb")
    values = (("model/0", encode_model(MODEL)), ("model/1", b"\xc1"), ("model/2", encode_model(bad_name)), ("addr", b"\xc1"))
    engine.receive(on, news(A, *values, ("name", encode_value("\x1b[31m")), ("new/kind", b"?")), now=0.0)

    seen = member(engine, A)
    assert seen is not None
    assert seen.models == (MODEL,)
    assert seen.name == "n02"
    assert "unreadable record: model/1, model/2" in [effect.text for effect in engine.effects() if isinstance(effect, Notify)]


def test_of_two_links_to_one_peer_the_one_dialled_by_the_lower_id_stays() -> None:
    engine = make_engine(ME)
    by_me = link(engine, 2, link_id=1, dialled=True)
    by_lower = link(engine, 2, link_id=2, dialled=False)
    assert closes(engine) == [(by_me, 4410)]
    assert engine.link_of(A) == by_lower
    engine.link_down(by_me, "duplicate link", now=0.1)

    seen = member(engine, A, 0.1)
    assert seen is not None
    assert seen.routable
    engine.tick(now=5.0)
    assert not any(isinstance(effect, Dial) for effect in engine.effects())


def test_the_next_link_takes_over_when_the_first_breaks_before_the_duplicate_was_closed() -> None:
    engine = make_engine(ME)
    first, second = link(engine, 2, link_id=1, dialled=False), link(engine, 2, link_id=2, dialled=False)
    assert closes(engine) == []
    engine.link_down(first, "reset", now=0.1)
    assert engine.link_of(A) == second


def test_our_leave_is_the_last_frame_and_nothing_is_dialled_or_judged_after_it() -> None:
    engine = make_engine(ME, seeds=("10.0.0.9:4850",))
    on = link(engine, 2)
    engine.leave(now=0.0)
    assert engine.ready() == (on,)
    assert pulled(engine, on, 0.0) == [Leave(1)]
    assert engine.next_deadline() == float("inf")
    with pytest.raises(PeerError, match="leaving"):
        engine.judge(make_engine(4).hello(node_id(ME)), proven=C, addr="10.0.0.9:1", now=0.0)
    engine.effects()
    link(engine, 4, link_id=7)
    assert closes(engine) == [(LinkId(7), 4411)]


def test_a_node_that_left_is_not_linked_again_before_it_starts_anew() -> None:
    engine = make_engine(ME)
    on = link(engine, 2)
    engine.receive(on, Leave(1), now=0.0)
    assert closes(engine) == [(on, 1000)]
    engine.link_down(on, "left the mesh", now=0.1)
    late, anew = link(engine, 2, link_id=2, now=0.2), link(engine, 2, link_id=3, epoch=2, now=0.3)

    assert closes(engine) == [(late, 4411)]
    assert engine.link_of(A) == anew


def test_advertising_what_the_others_would_refuse_is_an_error_here() -> None:
    engine = make_engine(ME)
    with pytest.raises(ValueError, match="8192 bytes"):
        engine.advertise("key", bytes(8193), now=0.0)
    for number in range(253):
        engine.advertise(f"key/{number}", b"", now=0.0)
    with pytest.raises(ValueError, match="256 keys"):
        engine.advertise("one/more", b"", now=0.0)


def test_members_come_by_name_with_us_among_them() -> None:
    engine = make_engine(ME)
    link(engine, 4, link_id=1)
    link(engine, 2, link_id=2)
    found = engine.members(now=0.0)

    assert [found_member.name for found_member in found] == ["n02", "n03", "n04"]
    assert [found_member.routable for found_member in found] == [True, True, True]
    assert found[1].addr == "10.0.0.3:4850"


def test_a_member_known_by_hearsay_says_what_is_being_done_about_it() -> None:
    engine = make_engine(1)
    other = link(engine, 4)
    engine.receive(other, news(A, ("name", encode_value("n02")), ("addr", encode_value(("10.0.0.2:4850",)))), now=0.0)
    engine.receive(other, news(B, ("name", encode_value("n03"))), now=0.0)
    engine.tick(now=0.1)
    dials = [effect for effect in engine.effects() if isinstance(effect, Dial)]
    first, second = member(engine, A, 0.1), member(engine, B, 0.1)

    assert dials == [Dial(addr="10.0.0.2:4850", expect=A)]
    assert first is not None
    assert second is not None
    assert first.reason == "no link yet: dialling 10.0.0.2:4850"
    assert second.reason == "no link yet: it gives no address that can be dialled from here"
