"""Everyone we know of as a `Member`, and why one of them is not routable (pure)."""

from meshnode.gossip import view
from meshnode.gossip.dialling import Dialler
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.member import Member, Model
from meshnode.gossip.outsiders import Outsiders
from meshnode.gossip.peer import Peer
from meshnode.gossip.plan import Planner
from meshnode.gossip.record import Record
from meshnode.names import NodeId, short


class Roster:
    """Reads what the other parts of the engine keep; has nothing of its own but the models that it has decoded."""

    def __init__(
        self, known: Knowledge, peers: dict[NodeId, Peer], dialler: Dialler, planner: Planner, *, ourselves: Peer
    ) -> None:
        self.outsiders = Outsiders()
        self._known = known
        self._peers = peers
        self._dialler = dialler
        self._planner = planner
        self._ourselves = ourselves
        self._models: dict[NodeId, tuple[Record, tuple[Model, ...]]] = {}

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
        return view.reason(record, peer, self._dialler.attempts.get(node), refused=self._planner.refusal(node), now=now)

    def forget(self, node: NodeId) -> None:
        self._models.pop(node, None)

    def _member(self, node: NodeId, now: float) -> Member:
        record = self._known.beliefs[node].record
        if node == self._known.me:
            why_not = "this node leaves" if record.left else ""
            return view.member(record, self._ourselves, why_not=why_not, read=self._read(record))
        peer = self._peers.get(node, Peer())
        return view.member(record, peer, why_not=self.why_not(node, peer, now), read=self._read(record))

    def _read(self, record: Record) -> tuple[Model, ...]:
        read = self._models.get(record.origin)
        if read is None or read[0] is not record:
            read = self._models[record.origin] = (record, view.models(record))
        return read[1]
