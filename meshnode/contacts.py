"""Whom a node would dial after a restart: kept in its data directory, for one mesh.

It is only ever a list of addresses to try. Who answers there has yet to prove that it is that node, so a file that is wrong, old
or lost costs some dials, and it never stops a start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from meshnode.datadir import DataDir
from meshnode.names import MeshId, NodeId

_FILE = "peers.json"
MAX_PEERS = 256
"""The latest met are kept: four times what a mesh can hold."""
MAX_SEEDS = 64
_ID_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """`peers` are nodes that were linked, the latest last; `seeds` what a person gave to `meshnode join`."""

    mesh: MeshId
    peers: Mapping[NodeId, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[str, ...] = ()

    def met(self, peers: Mapping[NodeId, tuple[str, ...]]) -> "Contacts":
        """With the addresses of `peers`."""
        every = {node: addrs for node, addrs in self.peers.items() if node not in peers} | dict(peers)
        return replace(self, peers=dict(list(every.items())[-MAX_PEERS:]))

    def with_seed(self, addr: str) -> "Contacts":
        return replace(self, seeds=(*(seed for seed in self.seeds if seed != addr), addr)[-MAX_SEEDS:])


class _Peer(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    addrs: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, kw_only=True):
    mesh: str
    peers: tuple[_Peer, ...] = ()
    seeds: tuple[str, ...] = ()


def load(data_dir: DataDir, mesh: MeshId) -> Contacts:
    """What was kept for `mesh`; nothing if the file is another mesh's, or no such file."""
    try:
        kept = msgspec.json.decode(data_dir.read(_FILE) or b"", type=_File)
        peers = {NodeId(bytes.fromhex(peer.id)): peer.addrs for peer in kept.peers if len(peer.id) == _ID_DIGITS}
    except (msgspec.MsgspecError, ValueError):
        return Contacts(mesh=mesh)
    return Contacts(mesh=mesh, peers=peers, seeds=kept.seeds) if kept.mesh == mesh.hex() else Contacts(mesh=mesh)


def save(data_dir: DataDir, contacts: Contacts) -> None:
    peers = tuple(_Peer(id=node.hex(), addrs=addrs) for node, addrs in contacts.peers.items())
    content = _File(mesh=contacts.mesh.hex(), peers=peers, seeds=contacts.seeds)
    data_dir.write(_FILE, msgspec.json.format(msgspec.json.encode(content), indent=1))
