"""Several engines on a simulated LAN: ordered links with latency, simulated time, one generator for all chance."""

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from meshnode.errors import PeerError
from meshnode.gossip.effects import Close, Dial, LinkId, Notify
from meshnode.gossip.engine import Engine
from meshnode.gossip.member import Member
from meshnode.names import MeshId, NodeId
from meshnode.wire.codec import decode
from meshnode.wire.messages import Gossip

MESH = MeshId(b"one-mesh")
ROOM = 64 * 1024
ANY_HASH = bytes(8)


def node_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(16, "big"))


def make_engine(
    number: int,
    *,
    seeds: tuple[str, ...] = (),
    remembered: Mapping[NodeId, tuple[str, ...]] | None = None,
    epoch: int = 1,
    now: float = 0.0,
    rng: random.Random | None = None,
) -> Engine:
    return Engine(
        node=node_id(number),
        mesh=MESH,
        name=f"n{number:02}",
        version="0.1",
        epoch=epoch,
        instance=epoch.to_bytes(8, "big"),
        listen=(f"10.0.0.{number}:4850",),
        seeds=seeds,
        remembered=remembered or {},
        rng=rng or random.Random(number),
        now=now,
    )


@dataclass
class Node:
    number: int
    engine: Engine
    alive: bool = True
    frozen: bool = False
    links: dict[LinkId, "End"] = field(default_factory=dict)
    notes: list[Notify] = field(default_factory=list)
    sent_bytes: int = 0
    sent_messages: int = 0


@dataclass
class End:
    """One end of a link; what arrives there arrives in order."""

    node: Node
    link: LinkId
    other: "End | None" = None
    arrives: float = 0.0


class Lan:
    def __init__(self, seed: int = 0, *, latency: float = 0.002) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.latency = latency
        self.nodes: dict[str, Node] = {}
        self.trace: list[str] = []
        self.walls: set[tuple[int, int]] = set()
        """Pairs (from, to) whose dials are refused."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count(1)

    def start(self, number: int, *, seeds: tuple[int, ...] = (), epoch: int = 1) -> Node:
        addrs = tuple(f"10.0.0.{seed}:4850" for seed in seeds)
        node = Node(number, make_engine(number, seeds=addrs, epoch=epoch, now=self.now, rng=self.rng))
        self.nodes[f"10.0.0.{number}:4850"] = node
        self.touch(node)
        return node

    def stop(self, node: Node, *, reset: bool = True) -> None:
        """The process is killed; without `reset` its machine loses power, and nobody is told."""
        node.alive, node.frozen = not reset, not reset
        if reset:
            for end in list(node.links.values()):
                self._drop(end, "connection reset")

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def touch(self, node: Node) -> None:
        """What a shell does after each call of the engine."""
        if not node.alive:
            return
        for effect in node.engine.effects():
            self.trace.append(f"{self.now:.4f} {node.number} {effect}")
            match effect:
                case Dial():
                    self._later(lambda effect=effect: self._dial(node, effect))  # type: ignore[misc] # binds the loop's value
                case Close():
                    if end := node.links.get(effect.link):
                        self._drop(end, effect.reason)
                case Notify():
                    node.notes.append(effect)
        for link in node.engine.ready():
            self._write(node, link)
        deadline = node.engine.next_deadline()
        if deadline < float("inf"):
            self._at(max(deadline, self.now), lambda: self._tick(node))

    def members(self, node: Node) -> dict[str, Member]:
        return {member.name: member for member in node.engine.members(now=self.now)}

    def routable(self, node: Node) -> set[str]:
        return {name for name, member in self.members(node).items() if member.routable}

    def send(self, node: Node, to: Node, frame: Gossip) -> None:
        """A frame that the engine of `node` would not send."""
        end = next(end for end in node.links.values() if end.other and end.other.node is to)
        self._carry(end, lambda other: self._receive(other, frame, 100))

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._count), event))

    def _later(self, event: Callable[[], None]) -> None:
        self._at(self.now + self.latency * self.rng.uniform(1, 2), event)

    def _tick(self, node: Node) -> None:
        if node.alive and not node.frozen and node.engine.next_deadline() <= self.now:
            node.engine.tick(now=self.now)
            assert node.engine.next_deadline() > self.now
            self.touch(node)

    def _dial(self, node: Node, dial: Dial) -> None:
        target = self.nodes.get(dial.addr)
        if target is None or not target.alive or target.frozen or (node.number, target.number) in self.walls:
            reason = "no answer" if target and target.frozen else "connection refused"
            self._later(lambda: self._dial_failed(node, dial.addr, reason))
            return
        near, far = End(node, LinkId(next(self._count))), End(target, LinkId(next(self._count)))
        refused = [self._judge(target, node, f"10.0.0.{node.number}:50000"), self._judge(node, target, dial.addr)]
        if reason := next(filter(None, refused), ""):
            self._later(lambda: self._dial_failed(node, dial.addr, reason))
            return
        near.other, far.other = far, near
        self._carry_to(near, lambda: self._up(near, far, dial.addr, dialled=True))
        self._up(far, near, f"10.0.0.{node.number}:50000", dialled=False)

    def _judge(self, node: Node, other: Node, addr: str) -> str:
        """Both ends have sent their HELLO before either judges."""
        hello = other.engine.hello(node_id(node.number))
        try:
            node.engine.judge(hello, proven=node_id(other.number), addr=addr, now=self.now)
        except PeerError as error:
            return error.message
        return ""

    def _up(self, end: End, other: End, addr: str, *, dialled: bool) -> None:
        node = end.node
        if not node.alive:
            self._drop(end, "connection reset")
        elif end.other is None:
            self._dial_failed(node, addr, "closed in the handshake")
        else:
            node.links[end.link] = end
            hello = other.node.engine.hello(node_id(node.number))
            node.engine.link_up(end.link, hello, addr=addr, dialled=dialled, now=self.now)
            self.touch(node)

    def _dial_failed(self, node: Node, addr: str, reason: str) -> None:
        node.engine.dial_failed(addr, reason, refused=reason == "connection refused", now=self.now)
        self.touch(node)

    def _drop(self, end: End, reason: str) -> None:
        """Both ends go: this one at once, the other when word of it gets there."""
        other, end.other = end.other, None
        self._down(end, reason)
        if other:
            self._carry_to(other, lambda: self._lose(other, reason))

    def _lose(self, end: End, reason: str) -> None:
        end.other = None
        self._down(end, reason)

    def _down(self, end: End, reason: str) -> None:
        if end.node.links.pop(end.link, None) and end.node.alive:
            end.node.engine.link_down(end.link, reason, now=self.now)
            self.touch(end.node)

    def _write(self, node: Node, link: LinkId) -> None:
        frames = []
        while frame := node.engine.next_frame(link, self.now, ROOM):
            frames.append(frame)
        end = node.links.get(link)
        if not frames or end is None:
            return
        message = b"".join(frames)
        node.sent_bytes += len(message)
        node.sent_messages += 1
        self.trace.append(f"{self.now:.4f} {node.number} {message.hex()}")
        self._carry(end, lambda other: self._deliver(other, message))

    def _carry(self, end: End, arrive: Callable[[End], None]) -> None:
        other = end.other
        if other and not end.node.frozen and not other.node.frozen:
            self._carry_to(other, lambda: arrive(other))

    def _carry_to(self, end: End, event: Callable[[], None]) -> None:
        end.arrives = max(end.arrives, self.now + self.latency * self.rng.uniform(1, 2))
        self._at(end.arrives, event)

    def _deliver(self, end: End, message: bytes) -> None:
        for frame in decode(message):
            assert isinstance(frame, Gossip)
            self._receive(end, frame, len(message))

    def _receive(self, end: End, frame: Gossip, size: int) -> None:
        if end.link not in end.node.links:
            return
        try:
            end.node.engine.receive(end.link, frame, now=self.now, size=size)
        except PeerError as error:
            self.trace.append(f"{self.now:.4f} {end.node.number} {error.message}")
            self._drop(end, error.message)
        self.touch(end.node)
