"""Where other nodes can dial this one."""

import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

import trio

from meshnode.address import Address
from meshnode.mesh.listen import local_address

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of the documentation ranges: only the route towards them is looked up, nothing is sent."""


def advertised(listeners: Sequence[trio.SocketListener], given: Sequence[Address]) -> tuple[str, ...]:
    """What to tell other nodes: what the operator gave, else where the listeners are bound, a wildcard replaced by our address.

    A port that was given as the default, while another was bound, is the operator's wish: a forwarded port looks like that.
    """
    if given:
        return tuple(str(address) for address in given)
    found = [Address(host, bound.port) for bound in map(local_address, listeners) for host in _reachable(bound.host)]
    return tuple(dict.fromkeys(str(address) for address in found))


def _reachable(host: str) -> list[str]:
    try:
        is_wildcard = ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        is_wildcard = False
    if not is_wildcard:
        return [host]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return [found] if (found := _own_address(family)) else ["127.0.0.1"] * (family == socket.AF_INET)


def _own_address(family: socket.AddressFamily) -> str:
    """The source address of the default route; empty without one, or when it is good on this link only."""
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((_ELSEWHERE[family], 9))
        found = str(probe.getsockname()[0])
        return "" if ip_address(found.partition("%")[0]).is_link_local else found
    return ""
