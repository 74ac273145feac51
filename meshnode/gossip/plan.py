"""Which seeds and members need a dial, by what is known of them (pure; design D7)."""

from meshnode.gossip import view
from meshnode.gossip.dialling import Dialler, dialable
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.overlay import MAX_NODES, overlay
from meshnode.gossip.peer import Peer
from meshnode.gossip.record import Record
from meshnode.names import NodeId

HIGHER_ID_WAITS_S = 1.0
"""So that a pair mostly dials once. The higher id dials too: a firewall may let through only what comes from its side."""
PLAN_GAP_S = 0.05
"""A burst of news is worth one plan, which looks at every record."""
MESH_FULL = f"the mesh is full: {MAX_NODES} nodes; larger meshes are not possible yet"


class Planner:
    """Keeps the dialler's attempts in step with what is known; `soon` asks for that, and `run` does it when `due` has come."""

    def __init__(
        self,
        known: Knowledge,
        peers: dict[NodeId, Peer],
        dialler: Dialler,
        *,
        seeds: tuple[str, ...],
        listen: tuple[str, ...],
        now: float,
    ) -> None:
        self.due: float | None = now
        self._known = known
        self._peers = peers
        self._dialler = dialler
        self._listen = listen
        self._seeds = tuple(dict.fromkeys(seed for seed in seeds if dialable(seed, listen)))
        self._ran_at = float("-inf")
        self._wanted: frozenset[NodeId] = frozenset()

    def soon(self, now: float) -> None:
        if self.due is None:
            self.due = max(now, self._ran_at + PLAN_GAP_S)

    def run(self, now: float) -> None:
        self.due, self._ran_at = None, now
        me = self._known.me
        self._wanted = overlay(self._by_preference(), me)
        for seed in self._seeds:
            if self._is_linked(self._dialler.proven(seed)):
                self._dialler.rest(seed)
            else:
                self._dialler.want(seed, (seed,), expect=None, at=now)
        for node, belief in self._known.beliefs.items():
            if node != me:
                self._aim(node, belief.record, now)

    def lost(self, node: NodeId, *, short: bool, at: float) -> None:
        """The last link to `node` is gone, after a `short` life or a long one."""
        self._dialler.lost(node, short=short, at=at)
        for seed in self._seeds:
            if self._dialler.proven(seed) == node:
                self._dialler.lost(seed, short=short, at=at)

    def refusal(self, node: NodeId) -> str:
        """Why we want no link to `node`; empty if we do, or have not looked yet."""
        return "" if node in self._wanted or self.due is not None else f"not linked: {MESH_FULL}"

    def _by_preference(self) -> list[NodeId]:
        """Members, linked ones first, then those longest known."""
        here = [node for node, belief in self._known.beliefs.items() if not belief.record.left]
        return sorted(here, key=lambda node: not self._is_linked(node))

    def _is_linked(self, node: NodeId | None) -> bool:
        peer = self._peers.get(node) if node else None
        return bool(peer and peer.links)

    def _aim(self, node: NodeId, record: Record, now: float) -> None:
        if self._is_linked(node):
            self._dialler.rest(node)
            return
        peer = self._peers.get(node, Peer())
        said = (addr for addr in view.addresses(record, peer) if dialable(addr, self._listen))
        addrs = tuple(sorted(dict.fromkeys(said), key=lambda addr: self._dialler.proven(addr) != node))
        if record.left or node not in self._wanted or not addrs:
            self._dialler.forget(node)
            return
        start = now if self._known.me < node else now + HIGHER_ID_WAITS_S
        self._dialler.want(node, addrs, expect=node, at=max(start, peer.refused_until))
