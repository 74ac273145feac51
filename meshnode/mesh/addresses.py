"""Where other nodes can dial this one: what our record says, and what mDNS says to the neighbours."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import trio

from meshnode.address import Address
from meshnode.mesh.interfaces import MAX_TOLD, Interface, link_local, told
from meshnode.mesh.listen import local_address

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def advertised(
    listeners: Sequence[trio.SocketListener], given: Sequence[Address], interfaces: Sequence[Interface]
) -> tuple[str, ...]:
    """What to tell other nodes: what the operator gave, else where the listeners are bound, a wildcard replaced by our addresses.

    Call it again whenever `interfaces` have changed. A port that was given as the default, while another
    was bound, is the operator's wish: a forwarded port looks like that.
    """
    if given:
        return tuple(str(address) for address in given)
    found = _reachable(listeners, told(interfaces))
    return tuple(dict.fromkeys(str(address) for address in found if not _is_on_one_link(address.host)))[:MAX_TOLD]


def announced(
    listeners: Sequence[trio.SocketListener], given: Sequence[Address], interfaces: Sequence[Interface]
) -> tuple[int, tuple[str, ...]]:
    """The port and the hosts for mDNS, which has room for one port and for IP addresses only.

    IPv6 link-local addresses are among them, without scope: who hears them knows on which link. The port is 0 without any.
    """
    hosts = told(interfaces) + link_local(interfaces)
    found = [address for address in given or _reachable(listeners, hosts) if _version(address.host)]
    port = found[0].port if found else 0
    return port, tuple(dict.fromkeys(address.host.partition("%")[0] for address in found if address.port == port))


def _reachable(listeners: Sequence[trio.SocketListener], hosts: Sequence[str]) -> list[Address]:
    """A listener bound to one address means that one; wildcards mean `hosts`; loopback only if nothing else is left."""
    bound = [local_address(listener) for listener in listeners]
    wild = [address for address in bound if address.is_wildcard]
    fixed = [address for address in bound if not address.is_wildcard]
    loopback = [Address(_LOOPBACK[_version(address.host)], address.port) for address in wild]
    return fixed + list(_replaced(wild, hosts)) or loopback


def _replaced(wild: Sequence[Address], hosts: Sequence[str]) -> Iterator[Address]:
    for host in hosts:
        for address in wild:
            if _version(address.host) == _version(host):
                yield Address(host, address.port)


def _version(host: str) -> int:
    """4 or 6; 0 for a name."""
    try:
        return ip_address(host).version
    except ValueError:
        return 0


def _is_on_one_link(host: str) -> bool:
    return _version(host) == 6 and ip_address(host).is_link_local
