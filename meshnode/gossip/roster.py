"""Everyone we know of as a `Member`, and why one of them is not routable (pure)."""

from meshnode.gossip import view
from meshnode.gossip.detector import Detector
from meshnode.gossip.dialling import Dialler
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.member import Member, State
from meshnode.gossip.outsiders import Outsiders
from meshnode.gossip.peer import Peer
from meshnode.gossip.plan import Planner
from meshnode.gossip.record import Record
from meshnode.names import NodeId, short


class Roster:
    """Reads what the other parts of the engine keep; has nothing of its own but what it has decoded of records."""

    def __init__(
        self,
        *,
        known: Knowledge,
        peers: dict[NodeId, Peer],
        dialler: Dialler,
        planner: Planner,
        detector: Detector,
        ourselves: Peer,
    ) -> None:
        self.outsiders = Outsiders()
        self._known = known
        self._peers = peers
        self._dialler = dialler
        self._planner = planner
        self._detector = detector
        self._ourselves = ourselves
        self._decoded: dict[NodeId, tuple[Record, view.Read]] = {}

    def members(self, *, now: float) -> tuple[Member, ...]:
        """By name and id."""
        found = self.outsiders.members(now=now) | {node: self._member(node, now) for node in self._known.beliefs}
        return tuple(sorted(found.values(), key=lambda member: (member.name, member.id)))

    def name(self, node: NodeId) -> str:
        record = self._known.record(node)
        return view.name(record, self._peers.get(node, Peer())) if record else short(node)

    def why_not(self, node: NodeId, peer: Peer, now: float) -> str:
        """Why `node` is not routable; empty if it is."""
        record = self._known.beliefs[node].record
        own = view.reason(record, peer, self._dialler.attempts.get(node), refused=self._planner.refusal(node), now=now)
        evidence = self._detector.evidence(node) if own and not record.left else ""
        return f"{own}; {evidence}" if evidence else own

    def evidence(self, node: NodeId) -> str:
        """What others have to do with it, in words."""
        return self._detector.evidence(node)

    def forget(self, node: NodeId) -> None:
        self._decoded.pop(node, None)

    def _member(self, node: NodeId, now: float) -> Member:
        record = self._known.beliefs[node].record
        peer = self._ourselves if node == self._known.me else self._peers.get(node, Peer())
        own = node == self._known.me
        why_not = ("this node leaves" if record.left else "") if own else self.why_not(node, peer, now)
        since = self._known.left.get(node) if record.left else self._known.down.get(node)
        return view.member(
            record, peer, state=self._state(record, peer, now), since=since, why_not=why_not, read=self._read(record)
        )

    def _state(self, record: Record, peer: Peer, now: float) -> State:
        """While we hear it, it is alive, whatever others say."""
        if record.left:
            return State.LEFT
        if peer.link and not peer.link.is_silent(now):
            return State.ALIVE
        if record.down:
            return State.DOWN
        return State.SUSPECT if self._detector.is_suspect(record.origin) else State.ALIVE

    def _read(self, record: Record) -> view.Read:
        decoded = self._decoded.get(record.origin)
        if decoded is None or decoded[0] is not record:
            decoded = self._decoded[record.origin] = (record, view.read(record))
        return decoded[1]
