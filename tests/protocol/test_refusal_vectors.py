"""The engine against the vectors of what only a receiver that remembers can refuse."""

from typing import Any

import ormsgpack
import pytest
from gossip.small_lan import make_engine

from meshnode.errors import PeerError
from meshnode.gossip.effects import LinkId
from meshnode.gossip.engine import Engine
from meshnode.names import NodeId
from meshnode.wire.codec import decode
from meshnode.wire.messages import Delta, Entry, Hello, RecordDelta
from protocol.vectors import Vector, load, readable

FILE: Any = load("refusals")
NOW = 1.0


def named(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", FILE[section], ids=lambda vector: vector["name"])


def identity(text: str) -> NodeId:
    return NodeId(bytes.fromhex(text))


class Receiver:
    """An engine in the state of `before`; everything that it had to say by then was said."""

    def __init__(self) -> None:
        before = FILE["before"]
        self.engine = receiving(before["receiver"])
        self.links = {identity(peer["node"]): LinkId(number) for number, peer in enumerate(before["linked"], 1)}
        for peer in before["linked"]:
            self._meet(peer)
        self.engine.tick(now=0.5)  # what one said is relayed to the other by now
        for link in self.links.values():
            self.said(link, 0.5)
        self.sender = self.links[identity(before["sender"])]

    def _meet(self, peer: Vector) -> None:
        node, link = identity(peer["node"]), self.links[identity(peer["node"])]
        hello = make_engine(int.from_bytes(node), epoch=peer["epoch"]).hello(self.engine._me)
        self.engine.link_up(link, hello, addr="10.0.0.1:4850", dialled=True, now=0.0)
        entry = Entry("k", peer["version"], b"\xc0")
        self.engine.receive(link, Delta((RecordDelta(node, peer["epoch"], 0, 0, peer["version"], (entry,)),)), now=0.0)

    def told(self, frame: Vector) -> None:
        raw = bytes.fromhex(frame["hex"])
        assert readable(ormsgpack.unpackb(raw)) == frame["value"]
        for _ in range(frame.get("times", 1)):
            (message,) = decode(raw)
            assert not isinstance(message, Hello)
            self.engine.receive(self.sender, message, now=NOW)  # type: ignore[arg-type] # no vector here is of a stream

    def said(self, link: LinkId, now: float) -> set[str]:
        found = set()
        while raw := self.engine.next_frame(link, now, 65_536):
            found.add(raw.hex())
        return found


def receiving(facts: Vector) -> Engine:
    engine = make_engine(int.from_bytes(identity(facts["node"])), epoch=facts["epoch"])
    record = engine._known.record(identity(facts["node"]))
    assert record is not None
    assert (record.incarnation, record.version) == (facts["incarnation"], facts["version"])
    return engine


@named("refused")
def test_the_last_frame_and_none_before_it_closes_the_link_with_the_code_of_the_vector(vector: Vector) -> None:
    receiver = Receiver()
    *before, last = vector["frames"]
    for frame in before:
        receiver.told(frame)
    if last.get("times", 1) > 1:
        receiver.told({**last, "times": last["times"] - 1})

    with pytest.raises(PeerError) as refusal:
        receiver.told({**last, "times": 1})

    assert refusal.value.close_code == vector["close_code"]
    assert vector["error"] in refusal.value.message


@named("accepted")
def test_what_is_accepted_leads_to_the_answers_of_the_vector(vector: Vector) -> None:
    receiver = Receiver()
    for frame in vector["frames"]:
        receiver.told(frame)
    receiver.engine.tick(now=NOW + 0.1)
    said = {node: receiver.said(link, NOW + 0.1) for node, link in receiver.links.items()}

    for answer in vector["answers"]:
        assert answer["hex"] in said[identity(answer["to"])]
    kinds = {raw[2:4] for raws in said.values() for raw in raws}
    assert kinds <= {"01", *(answer["hex"][2:4] for answer in vector["answers"])}
