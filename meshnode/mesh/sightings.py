"""What mDNS told of nodes that we cannot be linked with: those of other meshes, and those of other protocol versions (pure).

All of it is strangers' word, kept to be shown: two meshes on one network are the usual cause when two nodes do not meet.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from meshnode.mesh.announcement import Found
from meshnode.names import MeshId, NodeId

MAX_SEEN = 256


@dataclass(frozen=True, kw_only=True)
class OtherMesh:
    mesh: MeshId
    addrs: tuple[str, ...]
    """One for each of its nodes that was seen."""
    at: float
    """When one was last seen, on trio's clock."""


class Sightings:
    """The last announcement of each node that was seen and is not for us."""

    def __init__(self, mesh: MeshId, protocol: tuple[int, int]) -> None:
        self._mesh = mesh
        self._protocol = protocol
        self._seen: OrderedDict[NodeId, tuple[Found, float]] = OrderedDict()

    def saw(self, found: Found, now: float) -> bool:
        """Whether it is somebody to be dialled; else it is noted."""
        self._seen.pop(found.node, None)
        if found.mesh == self._mesh and self._is_compatible(found):
            return True
        self._seen[found.node] = (found, now)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return found.mesh == self._mesh  # dialled all the same: only the handshake proves it, and tells a name and a version

    def gone(self, node: NodeId) -> None:
        self._seen.pop(node, None)

    def other_meshes(self) -> tuple[OtherMesh, ...]:
        """By fingerprint."""
        found: dict[MeshId, list[tuple[Found, float]]] = {}
        for each, at in self._seen.values():
            if each.mesh != self._mesh:
                found.setdefault(each.mesh, []).append((each, at))
        return tuple(_other(mesh, found[mesh]) for mesh in sorted(found))

    def other_versions(self) -> Iterator[Found]:
        """Nodes of our mesh, by their own account, that speak no version of the protocol that we do."""
        return (found for found, _ in self._seen.values() if found.mesh == self._mesh)

    def _is_compatible(self, found: Found) -> bool:
        low, high = self._protocol
        return found.protocol_min <= high and found.protocol_max >= low


def _other(mesh: MeshId, seen: list[tuple[Found, float]]) -> OtherMesh:
    return OtherMesh(mesh=mesh, addrs=tuple(sorted(found.addrs[0] for found, _ in seen)), at=max(at for _, at in seen))
