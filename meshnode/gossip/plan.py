"""Which seeds and nodes need a dial, by what is known of them (pure; design D7).

A node's addresses come from what it says of itself, from mDNS (`announce`) and from an earlier life of ours (`remembered`). The
last two make nobody a member: they are hints that lead to a dial, and only who proves to be that node is linked.
"""

from collections import OrderedDict
from collections.abc import Mapping

from meshnode.gossip import view
from meshnode.gossip.dialling import Dialler, Network, dialable, distance
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.overlay import MAX_NODES, overlay
from meshnode.gossip.peer import Peer
from meshnode.names import NodeId

HIGHER_ID_WAITS_S = 1.0
"""So that a pair mostly dials once. The higher id dials too: a firewall may let through only what comes from its side."""
PLAN_GAP_S = 0.05
"""A burst of news is worth one plan, which looks at every record."""
MAX_ANNOUNCED = 256
"""Any stranger can announce nodes; four times what a mesh can hold leaves room for the true ones."""
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
        remembered: Mapping[NodeId, tuple[str, ...]],
        listen: tuple[str, ...],
        now: float,
    ) -> None:
        self.due: float | None = now
        self._remembered = {node: addrs for node, addrs in remembered.items() if node != known.me}
        self._known = known
        self._peers = peers
        self._dialler = dialler
        self._listen = listen
        self._networks: tuple[Network, ...] = ()
        self._seeds: dict[str, None] = {}
        self._announced: OrderedDict[NodeId, tuple[str, ...]] = OrderedDict()
        self._ran_at = float("-inf")
        self._wanted: frozenset[NodeId] = frozenset()
        for seed in seeds:
            self.add_seed(seed, now)

    def soon(self, now: float) -> None:
        if self.due is None:
            self.due = max(now, self._ran_at + PLAN_GAP_S)

    def add_seed(self, addr: str, now: float) -> None:
        """An address that a person gave: dialled whoever is there, until that node is linked."""
        if dialable(addr, self._listen):
            self._seeds[addr] = None
        self.soon(now)

    def announce(self, node: NodeId, addrs: tuple[str, ...], now: float) -> None:
        """Somebody said by mDNS that `node` is at `addrs`; none means that it is there no longer."""
        self._announced.pop(node, None)
        if addrs:
            self._announced[node] = addrs
        if len(self._announced) > MAX_ANNOUNCED:
            self._announced.popitem(last=False)
        self.soon(now)

    def move(self, listen: tuple[str, ...], networks: tuple[Network, ...], now: float) -> None:
        """We are at `listen` now, and directly on `networks`: what could not be reached before may be now."""
        self._listen, self._networks = listen, networks
        self._dialler.hurry(now)
        self.soon(now)

    def run(self, now: float) -> None:
        self.due, self._ran_at = None, now
        candidates = self._by_preference()
        self._wanted = overlay(candidates, self._known.me)
        for seed in self._seeds:
            if self._is_linked(self._dialler.proven(seed)):
                self._dialler.rest(seed)
            else:
                self._dialler.want(seed, (seed,), expect=None, at=now)
        first = self._known.me if any(map(self._is_linked, candidates)) else None
        for node in candidates:
            self._aim(node, now if first is None or first < node else now + HIGHER_ID_WAITS_S)
        for node in self._dialler.nodes().difference(candidates, (self._known.me,)):
            self._dialler.forget(node)  # it left, or is announced no longer

    def lost(self, node: NodeId, *, short: bool, at: float) -> None:
        """The last link to `node` is gone, after a `short` life or a long one."""
        self._dialler.lost(node, short=short, at=at)
        for seed in self._seeds:
            if self._dialler.proven(seed) == node:
                self._dialler.lost(seed, short=short, at=at)

    def refusal(self, node: NodeId) -> str:
        """Why we want no link to `node`; empty if we do, or have not looked yet."""
        return "" if node in self._wanted or self.due is not None else f"not linked: {MESH_FULL}"

    def verify(self, addrs: tuple[str, ...], now: float) -> None:
        """Somebody with our own identity may be at `addrs`: go and see, once."""
        if found := tuple(addr for addr in addrs if dialable(addr, self._listen)):
            self._dialler.want(self._known.me, found, expect=self._known.me, at=now)

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Where to dial `node`: what led there before, then the nearest; each source keeps its order, the best first."""
        record = self._known.record(node)
        said = view.addresses(record, self._peers.get(node, Peer())) if record else ()
        every = dict.fromkeys((*said, *self._announced.get(node, ()), *self._remembered.get(node, ())))
        usable = (addr for addr in every if dialable(addr, self._listen))
        return tuple(sorted(usable, key=lambda addr: (self._dialler.proven(addr) != node, distance(addr, self._networks))))

    def contacts(self) -> dict[NodeId, tuple[str, ...]]:
        """Everyone who was linked in this life or is remembered from an earlier one, the latest last."""
        met = sorted((peer.last_seen, node) for node, peer in self._peers.items() if peer.last_seen is not None)
        found = {node: self.addresses(node) for _, node in met}
        return {node: addrs for node, addrs in (self._remembered | found).items() if addrs}

    def _by_preference(self) -> list[NodeId]:
        """Whoever may be there: linked ones first, then members by how long they are known, then those only hinted at."""
        hinted = [node for node in (*self._announced, *self._remembered) if node not in self._known.beliefs]
        here = [node for node, belief in self._known.beliefs.items() if not belief.record.left]
        found = dict.fromkeys((*sorted(here, key=lambda node: not self._is_linked(node)), *hinted))
        return [node for node in found if node != self._known.me]

    def _is_linked(self, node: NodeId | None) -> bool:
        peer = self._peers.get(node) if node else None
        return bool(peer and peer.links)

    def _aim(self, node: NodeId, at: float) -> None:
        peer = self._peers.get(node, Peer())
        if peer.link and not peer.link.silent:
            self._dialler.rest(node)
            return
        addrs = self.addresses(node)
        if node not in self._wanted or not addrs:
            self._dialler.forget(node)
            return
        self._dialler.want(node, addrs, expect=node, at=max(at, peer.refused_until))
