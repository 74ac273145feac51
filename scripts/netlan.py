"""A LAN on one machine: hosts are network namespaces, joined by veth pairs to a bridge in a namespace of its own.

Nothing of the machine's own network is touched. All namespaces of a LAN carry the maker's process id in their names, so
that what a killed process leaves behind is found and removed by the next one. Hosts share the machine's files, clock and
processes: only the network is theirs. Linux and root only; `available` says what is missing.

    with lan() as made:
        alpha, beta = made.host("alpha"), made.host("beta")
        alpha.popen("meshnode", "up")
        beta.block_multicast()
"""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv6Address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PREFIX = "meshlan"
INSTALL = "Debian, Ubuntu: sudo apt install iproute2 iptables; Fedora: sudo dnf install iproute iptables-nft."
_NAMESPACES = Path("/run/netns")
_IPV6 = Path("/proc/sys/net/ipv6").exists()
_SETTINGS = {
    "ipv4/ip_forward": "0",  # a host with two interfaces is no router, whatever the machine is
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/default/accept_dad": "0",  # an IPv6 address is else of no use for its first second
}
_CLONE_NEWNET = 0x40000000
_BRIDGE = "br0"
_GATEWAY = 254


def _tool(*command: str) -> str:
    """What the command prints. Raises OSError with its complaint."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _bare(address: str) -> str:
    return str(ip_interface(address).ip)


def _call_in(namespace: str, function: Callable[[], T]) -> T:
    def call() -> T:
        with (_NAMESPACES / namespace).open() as entrance:
            if ctypes.CDLL(None, use_errno=True).setns(entrance.fileno(), _CLONE_NEWNET):  # os.setns came with Python 3.12
                raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        return function()

    with ThreadPoolExecutor(1) as thread:  # never one that is used again: it has left the machine's own network
        return thread.submit(call).result()


def _make_namespace(namespace: str) -> None:
    def settle() -> None:
        for setting, value in _SETTINGS.items():
            if _IPV6 or not setting.startswith("ipv6"):
                Path("/proc/sys/net", setting).write_text(value)

    _tool("ip", "netns", "add", namespace)
    _call_in(namespace, settle)


def _remove_namespaces(prefix: str) -> None:
    """Kill what runs in them first: a namespace lives on, without a name, as long as a process is in it."""
    for namespace in sorted(path.name for path in _NAMESPACES.glob(f"{prefix}*")):
        with suppress(OSError):  # somebody else may be removing it
            for process in _tool("ip", "netns", "pids", namespace).split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            _tool("ip", "netns", "delete", namespace)


def _sweep() -> None:
    """Remove what processes that are no more have left behind."""
    for makers in {path.name.split("-")[1] for path in _NAMESPACES.glob(f"{PREFIX}-*-*")}:
        if not Path("/proc", makers).exists():
            _remove_namespaces(f"{PREFIX}-{makers}-")


@dataclass
class Network:
    """One wire: a bridge that floods multicast. Number n has the addresses 10.77.n.0/24 and fd77:0:0:n::/64."""

    namespace: str
    number: int
    taken: int = 0

    def ipv4(self, number: int) -> str:
        return f"10.77.{self.number}.{number}/24"

    def ipv6(self, number: int) -> str:
        return f"{IPv6Address(f'fd77:0:0:{self.number:x}::{number:x}')}/64"


@dataclass(frozen=True)
class Port:
    """Where an interface of a host is plugged in."""

    network: Network
    name: str

    def set(self, *state: str) -> None:
        _tool("ip", "-n", self.network.namespace, "link", "set", "dev", self.name, *state)


@dataclass
class Host:
    """One machine on the LAN. `address` and `address6` are those of eth0, the latter empty where the machine has no IPv6."""

    name: str
    namespace: str
    address: str = ""
    address6: str = ""
    ports: dict[str, Port] = field(default_factory=dict)
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    # Processes and sockets

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` on this host; what was printed is kept, as text, unless `options` say otherwise."""
        chosen = {"capture_output": True, "text": True, "input": "", **options}
        return subprocess.run(self._within(command), check=check, **chosen)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process on this host. It is killed when the LAN is taken down, and so is all that it started."""
        self.processes.append(subprocess.Popen(self._within(command), **options))
        return self.processes[-1]

    def inside(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in a thread on this host: the sockets it makes stay on the host for good."""
        return _call_in(self.namespace, function)

    def connect(self, port: int, to: str = "127.0.0.1", *, timeout: float = 10.0) -> socket.socket:
        """A TCP connection dialled from this host, by default to itself."""
        return self.inside(lambda: socket.create_connection((to, port), timeout))

    def _within(self, command: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]

    # Interfaces and addresses

    def attach(self, network: Network, *, interface: str = "eth1", address: str = "") -> str:
        """Plug a new interface into `network`; returns its IPv4 address: `address`, given with a prefix, or the next free one."""
        network.taken += 1
        number = network.taken
        address = address or network.ipv4(number)
        port = Port(network, f"{self.name}-{interface}")
        self._ip("link", "add", interface, "type", "veth", "peer", "name", port.name, "netns", network.namespace)
        port.set("master", _BRIDGE, "up")
        self.ports[interface] = port
        self._ip("address", "add", address, "dev", interface)
        if _IPV6:
            self._ip("address", "add", network.ipv6(number), "dev", interface, "nodad")
        self._ip("link", "set", "dev", interface, "up")
        if interface == "eth0":
            self.address, self.address6 = _bare(address), _bare(network.ipv6(number)) if _IPV6 else ""
            self._set_default_route()
        return _bare(address)

    def add_dummy(self, name: str, address: str) -> None:
        """An interface that is up and leads nowhere, such as docker0 with its 172.17.0.1/16.

        It is a bridge with one port, as docker0 is: the dummy device that would do is missing from some kernels.
        """
        outside = Port(self.ports["eth0"].network, f"{self.name}-{name}"[:15])
        port = f"veth-{name}"[:15]
        self._ip("link", "add", port, "type", "veth", "peer", "name", outside.name, "netns", outside.network.namespace)
        outside.set("up")
        self._ip("link", "add", name, "type", "bridge")
        self._ip("link", "set", "dev", port, "master", name, "up")
        self._ip("address", "add", address, "dev", name)
        self._ip("link", "set", "dev", name, "up")

    def change_address(self, new: str) -> None:
        """Give eth0 another IPv4 address (without a prefix: /24), as a new lease does; nobody is told."""
        self._ip("-4", "address", "flush", "dev", "eth0")
        self._ip("address", "add", new if "/" in new else f"{new}/24", "dev", "eth0")
        self.address = _bare(new)
        self._set_default_route()

    def _set_default_route(self) -> None:
        """Multicast needs a route as all else does; without one, sending it fails at once."""
        gateway = _bare(self.ports["eth0"].network.ipv4(_GATEWAY))
        self._ip("route", "replace", "default", "via", gateway, "dev", "eth0")

    def _ip(self, *arguments: str) -> str:
        return _tool("ip", "-n", self.namespace, *arguments)

    # Faults

    def cut(self, interface: str = "eth0") -> None:
        """Nothing gets in or out any more. The host's interface stays up: as if a switch further off had died."""
        self.ports[interface].set("nomaster")

    def mend(self, interface: str = "eth0") -> None:
        self.ports[interface].set("master", _BRIDGE)

    def block_multicast(self) -> None:
        """No mDNS in or out, and nobody is told, as on many a wireless network."""
        self._firewall("-A", "INPUT", "-p", "udp", "--dport", "5353", "-j", "DROP")
        # DROP on the way out would make sendto fail with EPERM; a queue that nobody reads loses the packet in silence.
        self._firewall("-A", "OUTPUT", "-p", "udp", "--dport", "5353", "-j", "NFQUEUE", "--queue-num", "5353")

    def block_incoming_from(self, other: "Host", port: int) -> None:
        """`other` cannot dial `port` here, by any of its present interfaces; what this host dials itself still works."""
        for mac in other._macs():
            rule = ("-m", "mac", "--mac-source", mac, "-p", "tcp", "--dport", str(port), "--syn", "-j", "DROP")
            self._firewall("-A", "INPUT", *rule)

    def drop_loss(self, probability: float) -> None:
        """Lose this share of what comes in, save from the host itself."""
        rule = ("-m", "statistic", "--mode", "random", "--probability", str(probability), "-j", "DROP")
        self._firewall("-A", "INPUT", "!", "-i", "lo", *rule)

    def unblock(self) -> None:
        """Undo all but `cut`."""
        self._firewall("-F")

    def _firewall(self, *rule: str) -> None:
        for tool in ("iptables", "ip6tables") if _IPV6 else ("iptables",):
            _tool(*self._within((tool, "-w", *rule)))

    def _macs(self) -> list[str]:
        return [link["address"] for link in json.loads(self._ip("-j", "link")) if link["ifname"] in self.ports]


@dataclass
class Lan:
    """Hosts and networks by name, made when they are first asked for."""

    prefix: str
    networks: dict[str, Network] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)

    def network(self, name: str = "a") -> Network:
        if name not in self.networks:
            network = self.networks[name] = Network(f"{self.prefix}.{name}", len(self.networks))
            _make_namespace(network.namespace)
            # Snooping would hold multicast back from a host until its membership report was seen.
            _tool("ip", "-n", network.namespace, "link", "add", _BRIDGE, "type", "bridge", "mcast_snooping", "0")
            _tool("ip", "-n", network.namespace, "address", "add", network.ipv4(_GATEWAY), "dev", _BRIDGE)
            _tool("ip", "-n", network.namespace, "link", "set", "dev", _BRIDGE, "up")
        return self.networks[name]

    def host(self, name: str, *, network: Network | None = None) -> Host:
        """The host of this name; a new one has its eth0 in `network`, by default the first. At most ten letters."""
        assert len(f"{name}-eth0") <= 15, f"{name}: the kernel allows the name of an interface 15 bytes"
        if name not in self.hosts:
            host = self.hosts[name] = Host(name, f"{self.prefix}-{name}")
            _make_namespace(host.namespace)
            host._ip("link", "set", "dev", "lo", "up")
            host.attach(network or self.network(), interface="eth0")
        return self.hosts[name]

    def remove(self) -> None:
        """Kill what runs on the hosts and remove everything; what cannot be removed is left to the next sweep."""
        _remove_namespaces(self.prefix)
        for process in (process for host in self.hosts.values() for process in host.processes):
            process.kill()
            process.wait()


@contextmanager
def lan() -> Iterator[Lan]:
    """A LAN without hosts; taken down with all that runs on it, also after an error or Ctrl-C. Its methods raise OSError."""
    _sweep()
    made = Lan(f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}")
    try:
        yield made
    finally:
        made.remove()


@cache
def available() -> str:
    """Why no LAN can be made here, or nothing. Found out by making one."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if missing := [tool for tool in ("ip", "iptables", "ip6tables") if not shutil.which(tool)]:
        return f"not installed: {', '.join(missing)}"
    try:
        with lan() as made:
            first, second = made.host("first"), made.host("second")
            first.block_multicast()
            first.block_incoming_from(second, 1)
            first.drop_loss(0.5)
    except OSError as problem:
        return f"this system does not let us make a LAN of network namespaces: {problem}"
    return ""
