"""Members that say anything: the engine goes on, honest nodes keep each other, and nothing grows without bound."""

import random

import pytest
from gossip.small_lan import Lan, Node, make_engine, node_id
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import PeerError
from meshnode.gossip import limits
from meshnode.gossip.effects import Close, LinkId
from meshnode.gossip.engine import Engine
from meshnode.gossip.link import DELTA_BURST_S, DELTA_BYTES_PER_S, MAX_URGENT
from meshnode.gossip.repair import MAX_BYTES
from meshnode.names import ModelDigest
from meshnode.wire.codec import decode, encode
from meshnode.wire.messages import (
    BUCKETS,
    Accuse,
    Delta,
    Digest,
    Entry,
    Finding,
    Found,
    Gossip,
    Leave,
    ModelState,
    Ping,
    Pong,
    Probe,
    Pull,
    RecordDelta,
    Sketch,
    Standing,
    Version,
    Versions,
    Want,
)

LOAD = (ModelState("m", ModelDigest(b""), "ready", 1, 4),)
NODES = st.integers(1, 7).map(node_id)
SMALL = st.integers(0, 3)
LARGE = SMALL | st.sampled_from([65_534, 65_535, 65_536, 2**53])
STANDINGS = st.sampled_from(list(Standing))
HASHES = st.binary(min_size=8, max_size=8)
ENTRIES = st.lists(
    st.builds(Entry, st.sampled_from(["name", "addr", "model/0", "draining"]), SMALL, st.none() | st.binary(max_size=3)),
    max_size=3,
).map(tuple)
RECORDS = st.builds(RecordDelta, NODES, SMALL, LARGE, SMALL, SMALL, ENTRIES, STANDINGS)
FRAMES = st.one_of(
    st.builds(Ping, SMALL, st.booleans(), HASHES, st.sampled_from([(), LOAD]), st.sampled_from([0, 1, 60_000])),
    st.builds(Pong, SMALL),
    st.builds(Delta, st.lists(RECORDS, max_size=3).map(tuple)),
    st.builds(Leave, SMALL),
    st.builds(Digest, st.just(bytes(8 * BUCKETS)) | st.binary(min_size=8 * BUCKETS, max_size=8 * BUCKETS)),
    st.builds(Versions, HASHES, st.lists(st.builds(Version, NODES, SMALL, LARGE, LARGE, STANDINGS), max_size=4).map(tuple)),
    st.builds(Pull, st.lists(st.builds(Want, NODES, SMALL, LARGE), max_size=4).map(tuple)),
    st.builds(Probe, NODES),
    st.builds(Finding, NODES, st.sampled_from(list(Found))),
    st.builds(Accuse, NODES, SMALL, LARGE, st.booleans()),
    st.builds(Sketch, st.sampled_from("ab"), st.just(ModelDigest(b"")), st.just(bytes(16)), st.binary(max_size=8)),
)
STEPS = st.one_of(
    st.tuples(st.just("up"), st.integers(2, 5), SMALL, st.booleans()),
    st.tuples(st.just("down"), SMALL),
    st.tuples(st.just("receive"), SMALL, FRAMES),
    st.tuples(st.just("failed"), st.integers(2, 5), st.booleans()),
    st.tuples(st.just("discovered"), st.integers(1, 9)),
    st.tuples(st.just("advertise"), st.none() | st.binary(max_size=3)),
    st.tuples(st.just("load"), st.booleans()),
    st.tuples(st.just("stall")),
    st.tuples(st.just("move")),
    st.tuples(st.just("pull"), SMALL, st.integers(0, 300)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.5, 3.0, 61.0, 4000.0, 90_000.0])),
    st.tuples(st.just("due")),
)


class Driver:
    """Carries out steps on one engine, as a shell with hostile peers would."""

    def __init__(self) -> None:
        self.engine = make_engine(1, seeds=("10.0.0.2:4850",), rng=random.Random(1))
        self.now = 0.0
        self.links: list[LinkId] = []
        self.count = 0

    def step(self, step: tuple[object, ...]) -> None:  # noqa: PLR0912 - one arm a step
        match step:
            case ("up", int(number), int(epoch), bool(dialled)):
                self.count += 1
                hello = make_engine(number, epoch=epoch).hello(node_id(1))
                self.links.append(LinkId(self.count))
                addr = f"10.0.0.{number}:4850"
                self.engine.link_up(LinkId(self.count), hello, addr=addr, dialled=dialled, now=self.now)
            case ("down", int(index)) if index < len(self.links):
                self.engine.link_down(self.links.pop(index), "gone", now=self.now)
            case ("receive", int(index), message) if index < len(self.links):
                assert isinstance(message, Gossip)
                try:
                    self.engine.receive(self.links[index], message, now=self.now, size=1000)
                except PeerError:
                    self.engine.link_down(self.links.pop(index), "cut off", now=self.now)
            case ("failed", int(number), bool(refused)):
                self.engine.dial_failed(f"10.0.0.{number}:4850", "refused", refused=refused, now=self.now)
            case ("discovered", int(number)):
                self.engine.discovered(node_id(number), (f"10.0.1.{number}:4850",), now=self.now)
            case ("advertise", bytes() | None as value):
                self.engine.advertise("key", value, now=self.now)
            case ("load", bool(busy)):
                self.engine.set_load(LOAD if busy else (), now=self.now)
            case ("stall",):
                self.engine.announce_stall(5.0, now=self.now)
            case ("move",):
                self.engine.move((f"10.0.{self.count % 250}.1:4850",), (), now=self.now)
            case ("pull", int(index), int(room)) if index < len(self.links):
                while self.engine.next_frame(self.links[index], self.now, room):
                    pass
            case ("wait", float(seconds)):
                self.now += seconds
            case ("due",):
                self.now = max(self.now, min(self.engine.next_deadline(), self.now + 1e6))

    def check(self) -> None:
        if self.engine.next_deadline() <= self.now:
            self.engine.tick(now=self.now)
        assert self.engine.next_deadline() > self.now
        for effect in self.engine.effects():
            if isinstance(effect, Close) and effect.link in self.links:
                self.links.remove(effect.link)
                self.engine.link_down(effect.link, effect.reason, now=self.now)
        for found in self.engine.members(now=self.now):
            assert found.routable == (found.reason == "")
            linked = found.id == node_id(1) or self.engine.link_of(found.id) in self.links
            assert linked or not found.routable


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=120, deadline=None)
def test_whatever_peers_do_the_engine_goes_on_and_its_deadline_moves(steps: list[tuple[object, ...]]) -> None:
    driver = Driver()
    for step in steps:
        driver.step(step)
        driver.check()


@given(st.lists(st.tuples(st.integers(1, 2), FRAMES, st.sampled_from([0.0, 0.05, 1.0])), max_size=25), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_no_member_can_part_two_honest_nodes_that_are_linked(said: list[tuple[int, Gossip, float]], seed: int) -> None:
    """Node 3 has the token and says anything to the other two, and comes back when it is cut off."""
    lan = Lan(seed)
    honest = [lan.start(1), lan.start(2, seeds=(1,))]
    liar = lan.start(3, seeds=(1, 2))
    lan.run(2.0)
    links = [link_to(node, other) for node, other in (honest, honest[::-1])]
    for to, frame, pause in said:
        if link_to(liar, honest[to - 1]) is not None:
            lan.send(liar, honest[to - 1], frame)
        lan.run(pause)
    lan.run(12.0)

    assert [link_to(node, other) for node, other in (honest, honest[::-1])] == links
    for node in honest:
        assert {"n01", "n02"} <= lan.routable(node)
        assert all(lan.members(node)[name].state.value == "alive" for name in ("n01", "n02"))


def link_to(node: Node, other: Node) -> LinkId | None:
    return next((end.link for end in node.links.values() if end.other and end.other.node is other), None)


# One member against our memory and our line


def linked(engine: Engine, *numbers: int) -> None:
    for number in numbers:
        engine.link_up(LinkId(number), make_engine(number).hello(node_id(1)), addr="10.0.0.9:1", dialled=True, now=0.0)


def told(engine: Engine, frame: Gossip, *, now: float, on: int = 2) -> bool:
    """Whether the peer may say that."""
    try:
        engine.receive(LinkId(on), frame, now=now, size=len(encode(frame)))
    except PeerError:
        return False
    return True


def drained(engine: Engine, now: float, on: int = 2) -> int:
    total = 0
    while raw := engine.next_frame(LinkId(on), now, 64 * 1024):
        total += len(raw)
    return total


def full(engine: Engine, records: int, size: int) -> None:
    """Give the engine `records` records of `size` bytes, told by node 3 within its limits."""
    linked(engine, 2, 3)
    for number in range(records):
        value = Entry("key", 1, bytes(min(size, 8000)))
        delta = RecordDelta(node_id(1000 + number), 1, 0, 0, 1, (value,))
        assert told(engine, Delta((delta,)), now=number / 40, on=3)


def test_no_pull_makes_us_send_more_than_the_line_allows() -> None:
    engine = make_engine(1)
    full(engine, 800, 8000)
    begin = now = 30.0
    everything = Pull(tuple(Want(node_id(1000 + number), 1, 0) for number in range(800)))
    sent = 0
    while now < begin + 30.0:
        if engine.next_deadline() <= now:
            engine.tick(now=now)
        told(engine, Ping(1, True, bytes(8)), now=now)
        told(engine, Ping(1, True, bytes(8)), now=now, on=3)
        assert told(engine, everything, now=now)
        sent += drained(engine, now)
        now += 0.25

    assert sent <= DELTA_BYTES_PER_S * (30.0 + DELTA_BURST_S) + 100_000


def test_an_honest_sender_of_many_records_stays_within_what_an_honest_receiver_takes() -> None:
    sender, receiver = make_engine(1), make_engine(2)
    full(sender, 1000, 8000)
    receiver.link_up(LinkId(1), sender.hello(node_id(2)), addr="10.0.0.1:1", dialled=False, now=30.0)
    now = 30.0
    while now < 60.0:
        for engine in (sender, receiver):
            if engine.next_deadline() <= now:
                engine.tick(now=now)
        while raw := sender.next_frame(LinkId(2), now, 64 * 1024):
            for frame in decode(raw):
                assert isinstance(frame, Gossip)
                receiver.receive(LinkId(1), frame, now=now, size=len(raw))
        told(sender, Ping(1, False, bytes(8)), now=now)
        now += 0.1

    assert len(receiver.members(now=now)) > 900


def test_answers_that_the_peer_does_not_read_are_bounded() -> None:
    engine = make_engine(1)
    linked(engine, 2)
    for number in range(5000):
        told(engine, Probe(node_id(number)), now=1.0 + number / 15)
        if engine.next_deadline() <= 1.0 + number / 15:
            engine.tick(now=1.0 + number / 15)
    link = engine._links[LinkId(2)]

    assert len(link._urgent) <= MAX_URGENT
    assert drained(engine, 400.0) < MAX_URGENT * 40 + MAX_BYTES


@pytest.mark.parametrize("frame_of", ["delta", "versions", "accuse", "finding"])
def test_names_without_end_take_bounded_memory(frame_of: str) -> None:
    engine = make_engine(1)
    linked(engine, 2)
    for number in range(20_000):
        node, now = node_id(100 + number), 1.0 + number / 40
        frames: dict[str, Gossip] = {
            "delta": Delta((RecordDelta(node, 1, 0, 0, 1, (Entry("k", 1, b""),)),)),
            "versions": Versions(bytes([255] * 8), (Version(node, 1, 0, 1),)),
            "accuse": Accuse(node, 1, 0),
            "finding": Finding(node, Found.SILENT),
        }
        if not told(engine, frames[frame_of], now=now):
            break
        if number % 40 == 0:
            engine.tick(now=now)
            drained(engine, now)
    link = engine._links[LinkId(2)]

    assert len(engine._known.beliefs) <= limits.MAX_RECORDS + 1
    assert len(link._has) <= limits.MAX_RECORDS + 1
    assert len(link._lacks) <= limits.MAX_RECORDS + 1
    assert len(engine._detector._cases) == 0
    assert len(link.repair._wants) <= 1024
