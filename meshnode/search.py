"""How this node looks for others and what came of it, for `status` and the log (pure).

What users of every LAN mesh complain of first is that machines do not see each other and nothing says why. This says what was
tried, in words that name the next thing to look at.
"""

from collections.abc import Iterator

import msgspec

from meshnode.names import printable

MAX_LINES = 8
"""Of one sort: a person reads no more."""


class Mdns(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    """starting, on or off"""
    reason: str = ""
    interfaces: tuple[str, ...] = ()
    """Where it listens and speaks: `eth0 192.168.1.5`."""
    heard: int = 0
    """Other machines of any kind that were heard: none at all means that multicast does not get through."""
    echo: bool = False
    """Our own announcement came back to us."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """An address that was dialled in vain, and will be again."""

    addr: str
    node: str
    """Whom we expect there (8 digits); empty for an address that a person gave."""
    reason: str
    age_s: float


class OtherMesh(msgspec.Struct, frozen=True, kw_only=True):
    """Another mesh on this network, by what its nodes announce: one address each."""

    id: str
    addrs: tuple[str, ...]
    age_s: float


class Search(msgspec.Struct, frozen=True, kw_only=True):
    alone_s: float | None
    """For how long no other node has been routable; None: one is."""
    mdns: Mdns
    advertised: tuple[str, ...]
    """Where others are told to reach this node."""
    tried: tuple[Tried, ...] = ()
    other_meshes: tuple[OtherMesh, ...] = ()
    other_versions: tuple[str, ...] = ()
    """Nodes of this mesh that announce a version of the protocol that we do not speak."""


def solitude(search: Search) -> list[str]:
    """What to show to somebody who wonders where the others are."""
    facts = [
        ("mDNS", _mdns(search.mdns, others=_knows_others(search))),
        ("reached at", ", ".join(search.advertised) or "no address: no network interface is up"),
        *(("tried", line) for line in map(_tried, search.tried[:MAX_LINES])),
        *(("version", f"{line}, which this node does not") for line in search.other_versions[:MAX_LINES]),
        *(("other mesh", _other(other)) for other in search.other_meshes[:MAX_LINES]),
    ]
    lines = [f"Alone: no other node has been linked for {search.alone_s or 0:.0f} s. What was tried:"]
    lines += [f"  {what:<10}  {printable(text)}" for what, text in facts]
    return [*lines, f"  {'next':<10}  {_next(search)}"]


def neighbours(search: Search) -> Iterator[str]:
    """Other meshes, for a node that is not alone."""
    for other in search.other_meshes[:MAX_LINES]:
        yield printable(f"Other mesh on this network: {_other(other)}")


def _knows_others(search: Search) -> bool:
    """Whether some node of this mesh, which was announced or is remembered, was dialled in vain."""
    return any(tried.node for tried in search.tried)


def _mdns(mdns: Mdns, *, others: bool) -> str:
    if mdns.state != "on":
        return f"{mdns.state}{': ' if mdns.reason else ''}{mdns.reason}"
    where = f"on, at {', '.join(mdns.interfaces)}"
    if not mdns.echo:
        return f"{where}; not even its own announcement is heard: does a firewall here drop UDP port 5353?"
    if not mdns.heard:
        return f"{where}; no other machine is heard: multicast may not get through this network"
    return f"{where}; {mdns.heard} other machine{'s' * (mdns.heard > 1)} heard{'' if others else ', none of this mesh'}"


def _tried(tried: Tried) -> str:
    return f"{tried.addr}{f' for node {tried.node}' if tried.node else ''}: {tried.reason} ({tried.age_s:.0f} s ago)"


def _other(other: OtherMesh) -> str:
    nodes = f"{len(other.addrs)} node{'s' * (len(other.addrs) > 1)}"
    return f"{other.id}, {nodes}: {', '.join(other.addrs[:3])}{', ...' * (len(other.addrs) > 3)}"


def _next(search: Search) -> str:
    if _knows_others(search):
        return "is the other node up, and does a firewall, there or here, let its mesh port through? One direction is enough"
    if search.other_meshes:
        return "to join that mesh: meshnode join, with the token that `meshnode token` prints on one of its nodes"
    return "give the address of another node: meshnode join HOST; on that node: is its mesh port open to this machine?"
