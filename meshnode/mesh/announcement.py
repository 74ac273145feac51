"""What a node says of itself by mDNS, and how another's is read (pure). SPEC: discovery.

Whoever is on the LAN hears this, so it holds no more than a stranger may know (security rules 2 and 8): that a mesh exists, its
fingerprint, and where to knock. What is read is a stranger's word: it is checked for form, and proven only by the TLS handshake.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshnode.address import Address
from meshnode.names import MeshId, NodeId

SERVICE_TYPE = "_meshnode._tcp.local."
MAX_ADDRS = 16
_MAX_VALUE = 64
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MESH = re.compile(r"[0-9a-f]{16}", re.ASCII)
_PROTOCOL = re.compile(r"([0-9]{1,5})-([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What we say. Without `hosts` nothing is said, and we only listen."""

    node: NodeId
    mesh: MeshId
    protocol: tuple[int, int]
    port: int
    hosts: tuple[str, ...]
    """IP addresses, IPv6 link-local ones without scope."""

    def properties(self) -> dict[str, str]:
        low, high = self.protocol
        return {"mesh": self.mesh.hex(), "id": self.node.hex(), "proto": f"{low}-{high}"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What another node says, or somebody in its name."""

    node: NodeId
    mesh: MeshId
    protocol_min: int
    protocol_max: int
    addrs: tuple[str, ...]
    """HOST:PORT, IPv6 link-local ones with the scope of the interface that they were heard on."""


def instance(node: NodeId, service_type: str) -> str:
    """The name of a node's service. Made of the id, so that only a copy of the node can have the same."""
    return f"{node.hex()}.{service_type}"


def node_of(name: str, service_type: str) -> NodeId | None:
    """Whose the service `name` is; None if it is not named as ours are."""
    digits = name.removesuffix(f".{service_type}").lower()
    return NodeId(bytes.fromhex(digits)) if len(digits) < len(name) and _ID.fullmatch(digits) else None


def read(
    node: NodeId,
    properties: Mapping[bytes, bytes | None],
    places: Iterable[tuple[IPv4Address | IPv6Address, int]],
    *,
    loopback: bool,
) -> Found | None:
    """The announcement of `node`, which is at `places` (address and port); None if it is malformed or leads nowhere.

    `loopback`: whether this machine may be meant.
    """
    values = {key: _text(properties.get(key)) for key in (b"mesh", b"id", b"proto")}
    protocol = _PROTOCOL.fullmatch(values[b"proto"])
    if values[b"id"] != node.hex() or not _MESH.fullmatch(values[b"mesh"]) or not protocol:
        return None
    low, high = map(int, protocol.groups())
    usable = sorted(
        (place for place in places if _leads_somewhere(*place, loopback=loopback)), key=lambda place: place[0].is_link_local
    )
    addrs = tuple(dict.fromkeys(str(Address(str(ip), port)) for ip, port in usable))
    if low > high or not addrs:
        return None
    mesh = MeshId(bytes.fromhex(values[b"mesh"]))
    return Found(node=node, mesh=mesh, protocol_min=low, protocol_max=high, addrs=addrs[:MAX_ADDRS])


def _text(value: bytes | None) -> str:
    """Empty, which is never right, for what is missing, too long or not ASCII."""
    return value.decode("ascii", "replace") if value and len(value) <= _MAX_VALUE else ""


def _leads_somewhere(ip: IPv4Address | IPv6Address, port: int, *, loopback: bool) -> bool:
    """A stranger must not make us dial a service of our own machine, so loopback is for nodes that have nothing else."""
    if ip.version == 6 and ip.is_link_local and not getattr(ip, "scope_id", None):
        return False
    return port > 0 and not ip.is_multicast and not ip.is_unspecified and (loopback or not ip.is_loopback)
