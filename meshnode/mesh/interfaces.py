"""The network interfaces of this machine, and which of their addresses are of use to other nodes.

`scan` looks; the rest is a function of what it saw. What a LAN is cannot be known, so names decide: bridges of containers and of
virtual machines lead nowhere for others and are left out; a plain `br0` is how many people's LAN looks and stays; VPNs come after
the LAN. This is the only module that knows `ifaddr`.
"""

import fcntl
import re
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface

import ifaddr

MAX_TOLD = 8
"""A dialler tries them in turn, each for seconds; more than this many LANs are not on one machine."""
_MAX_IPV6 = 2
"""Of one interface: with privacy extensions there are a dozen, all alike."""
_VIRTUAL = re.compile(
    r"(docker|br-|virbr|cni|podman|lxcbr|lxdbr|veth|vboxnet|vmnet|flannel|cali|kube).*"
    r"|(awdl|llw|vmenet)\d+|bridge1\d\d"  # macOS: AirDrop; virtual machines and shared internet. bridge0 is Thunderbolt's, a LAN
)
_VPN = re.compile(r"(tun|tap|wg|tailscale|zt|utun|ppp|ipsec|nordlynx).*")
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of the documentation ranges: only the route towards them is looked up, nothing is sent."""
_SIOCGIFFLAGS = 0x8913
_IFF_UP_AND_RUNNING = 0x41
"""Running: with a carrier, so that a cable that is pulled out and put in again is two changes."""

Network = IPv4Interface | IPv6Interface


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One that is up and has addresses."""

    name: str
    index: int
    networks: tuple[Network, ...]
    """Its addresses, each with the subnet that it is in; IPv6 link-local ones with a numeric scope."""
    has_default_route: bool = False

    @property
    def is_loopback(self) -> bool:
        return any(network.ip.is_loopback for network in self.networks)


def scan() -> tuple[Interface, ...]:
    """What is up now, in the system's order; empty if it cannot be known. Takes a millisecond or two."""
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return ()
    routed = set(filter(None, map(_source_address, _ELSEWHERE)))
    found = []
    for adapter in adapters:
        networks = tuple(_networks(adapter.ips))
        if networks and _is_up(adapter.name):
            is_routed = any(str(network.ip) in routed for network in networks)
            index = adapter.index or 0
            found.append(Interface(name=adapter.name, index=index, networks=networks, has_default_route=is_routed))
    return tuple(found)


def told(interfaces: Sequence[Interface]) -> tuple[str, ...]:
    """The addresses to tell other nodes, best first: LAN (IPv4, then IPv6), VPN, IPv4 link-local; no loopback.

    IPv6 link-local ones are never told: their scope means nothing elsewhere. mDNS gives them to neighbours.
    """
    ranked = [(_rank(interface, network), str(network.ip)) for interface, network in _useful(interfaces)]
    return tuple(dict.fromkeys(host for _, host in sorted(ranked, key=lambda pair: pair[0])))[:MAX_TOLD]


def link_local(interfaces: Sequence[Interface]) -> tuple[str, ...]:
    """The IPv6 link-local addresses, without scope: all that two machines on one cable may have."""
    networks = (network for interface in interfaces if _is_lan(interface) for network in interface.networks)
    return tuple(dict.fromkeys(_bare(network) for network in networks if network.version == 6 and network.is_link_local))


def listening(hosts: Iterable[str], interfaces: Sequence[Interface]) -> tuple[Interface, ...]:
    """The interfaces that have one of `hosts`; none has, for instance behind a forwarded port: those that others may be at."""
    wanted = {host.partition("%")[0] for host in hosts}
    having = tuple(each for each in interfaces if any(_bare(network) in wanted for network in each.networks))
    return having or tuple(each for each in interfaces if not each.is_loopback and not _VIRTUAL.fullmatch(each.name))


def subnets(interfaces: Sequence[Interface]) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks on which other machines may be our neighbours."""
    return tuple(network.network for interface in interfaces if _is_lan(interface) for network in interface.networks)


def _useful(interfaces: Sequence[Interface]) -> Iterator[tuple[Interface, Network]]:
    for interface in filter(_is_lan, interfaces):
        routable = [network for network in interface.networks if network.version == 4 or not network.is_link_local]
        few = [network for network in routable if network.version == 6][:_MAX_IPV6]
        yield from ((interface, network) for network in routable if network.version == 4 or network in few)


def _rank(interface: Interface, network: Network) -> tuple[int, bool]:
    if network.version == 4 and network.is_link_local:
        place = 3
    elif _VPN.fullmatch(interface.name):
        place = 2
    else:
        place = 0 if network.version == 4 else 1
    return place, not interface.has_default_route


def _is_lan(interface: Interface) -> bool:
    """Whether other machines may be there: a VPN's may."""
    return not interface.is_loopback and not _VIRTUAL.fullmatch(interface.name)


def _bare(network: Network) -> str:
    return str(network.ip).partition("%")[0]


def _networks(ips: Iterable[ifaddr.IP]) -> Iterator[Network]:
    for ip in ips:
        with suppress(ValueError):  # a netmask with holes, say
            if isinstance(ip.ip, str):
                yield ip_interface(f"{ip.ip}/{ip.network_prefix}")
            else:
                host, _, scope = ip.ip
                scoped = f"{host.partition('%')[0]}%{scope}" if scope else host
                yield ip_interface(f"{scoped}/{ip.network_prefix}")


def _source_address(family: socket.AddressFamily) -> str:
    """Our end of the default route; empty without one."""
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((_ELSEWHERE[family], 9))
        return str(probe.getsockname()[0])
    return ""


def _is_up(name: str) -> bool:
    """Addresses stay on an interface that is down. Only Linux is asked; elsewhere what has addresses counts as up."""
    if sys.platform != "linux":
        return True
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode()[:15], 0))
    except OSError:
        return True
    flags: int = struct.unpack("16xH14x", answer)[0]
    return flags & _IFF_UP_AND_RUNNING == _IFF_UP_AND_RUNNING
