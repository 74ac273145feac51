"""A simulated LAN with its hosts and the processes on them: what faults act on (pure).

Each host has a number, an address, and at most one process (`copy` makes a host with another's identity). Disks survive crashes
and losses of power: the epoch, and whom the node knew.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from meshnode.gossip.effects import Dial, Notify
from meshnode.names import NodeId
from meshnode.simulation.connection import Attempt
from meshnode.simulation.network import Network
from meshnode.simulation.process import Process
from meshnode.simulation.processor import Clock
from meshnode.simulation.timeline import SECOND, Timeline, fork
from meshnode.simulation.traffic import Traffic

BORN_MS = 1_700_000_000_000
"""The wall clock at the start of a simulation, from which epochs come."""
PORT = 4850
REKEY_US = SECOND // 2
LEFT, KILLED, UNPLUGGED = "left", "killed", "unplugged"


def node_id(seed: str) -> NodeId:
    """Ids are hashes, so they are in no order of numbers."""
    return NodeId(blake2b(seed.encode(), digest_size=16).digest())


@dataclass(kw_only=True)
class Host:
    """What stays when a process ends."""

    number: int
    addr: str
    node: NodeId
    rng: random.Random
    clock: Clock
    epoch: int = 0
    """The last one used."""
    process: Process | None = None
    seeds: tuple[str, ...] = ()
    contacts: dict[NodeId, tuple[str, ...]] = field(default_factory=dict)
    lives: int = 0
    traffic: list[Traffic] = field(default_factory=list)
    """Of each of its lives."""


@dataclass(frozen=True)
class Life:
    """One process, by what others know it by."""

    node: NodeId
    epoch: int


class World:
    """`on_notice` hears every Notify of every engine; `on_end` of every life that is over, and how."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.seed = seed
        self.timeline = Timeline()
        self.network = Network(self.timeline, fork(seed, "network"))
        self.hosts: list[Host] = []
        self.on_notice: Callable[[Process, Notify], None] = lambda _process, _notice: None
        self.on_end: Callable[[Process, str], None] = lambda _process, _how: None
        self.on_start: Callable[[Process], None] = lambda _process: None
        self._addresses: dict[str, int] = {}
        for number in range(nodes):
            self.add_host(f"node {number}")

    def add_host(self, identity: str) -> Host:
        number = len(self.hosts)
        rng = fork(self.seed, f"host {number}")
        addr = f"10.0.{number // 250}.{number % 250 + 1}:{PORT}"
        host = Host(number=number, addr=addr, node=node_id(identity), rng=rng, clock=Clock(offset=rng.uniform(0, 1e5)))
        self.hosts.append(host)
        self._addresses[addr] = number
        return host

    def living(self) -> list[Process]:
        return [host.process for host in self.hosts if host.process is not None and host.process.is_alive]

    # What happens to hosts and processes

    def start(self, number: int, *, seeds: tuple[int, ...] | None = None, lost_epoch: bool = False) -> None:
        """A process at that host, unless there is one. `lost_epoch`: its disk is empty but for its key, and its clock is late."""
        host = self.hosts[number]
        if host.process is not None and host.process.is_alive:
            return
        self.network.dead.discard(number)
        if seeds is not None:
            host.seeds = tuple(self.hosts[seed].addr for seed in seeds)
        wall = BORN_MS + self.timeline.now // 1000
        if lost_epoch:
            host.contacts, host.epoch = {}, max(1, host.epoch - 1_000_000)
        else:
            host.epoch = max(host.epoch + 1, wall)
        host.lives += 1
        host.process = Process(
            self,
            host=number,
            node=host.node,
            name=f"n{number:02}",
            epoch=host.epoch,
            instance=host.rng.randbytes(8),
            listen=(host.addr,),
            seeds=host.seeds,
            remembered=host.contacts,
            clock=host.clock,
            rng=fork(self.seed, f"node {number} life {host.lives}"),
        )
        host.traffic.append(host.process.traffic)
        self.on_start(host.process)

    def kill(self, number: int) -> None:
        """kill -9; the host is up."""
        if process := self._ending(number, KILLED):
            process.kill()

    def unplug(self, number: int) -> None:
        """The host loses its power."""
        process = self._ending(number, UNPLUGGED)
        self.network.dead.add(number)
        if process:
            process.lose_power()

    def leave(self, number: int) -> None:
        process = self.hosts[number].process
        if process is not None and process.is_healthy:
            self._ending(number, LEFT)
            process.leave()

    def move(self, number: int) -> None:
        """The host gets another address, and the old one is nobody's."""
        host = self.hosts[number]
        del self._addresses[host.addr]
        host.addr = f"10.1.{number // 250}.{number % 250 + 1}:{PORT}"
        self._addresses[host.addr] = number
        if host.process is not None and host.process.is_alive:
            host.process.move((host.addr,))

    def copy(self, number: int) -> None:
        """Another host begins to run a copy of the data directory of this one: the same key, contacts and last epoch."""
        original = self.hosts[number]
        twin = self.add_host(f"copy {len(self.hosts)}")
        twin.node, twin.seeds, twin.contacts, twin.epoch = original.node, original.seeds, dict(original.contacts), original.epoch
        self.start(twin.number)

    def _ending(self, number: int, how: str) -> Process | None:
        host = self.hosts[number]
        if host.process is None or not host.process.is_alive or host.process.is_leaving:
            return None
        host.contacts = host.process.engine.contacts()
        self.on_end(host.process, how)
        return host.process

    # What processes need (`process.World`)

    def connect(self, process: Process, dial: Dial) -> None:
        source = self.hosts[process.host].addr.partition(":")[0]
        Attempt(
            self.timeline,
            self.network,
            process,
            dial,
            target=self._addresses.get(dial.addr),
            listener=self._listener,
            source=f"{source}:50000",
        )

    def noticed(self, process: Process, what: Notify) -> None:
        self.timeline.note(process.host, what.what.encode() + what.node)
        self.on_notice(process, what)

    def rekeyed(self, process: Process, reason: str) -> None:
        """It takes a new key and starts anew."""
        host = self.hosts[process.host]
        if process is host.process and process.is_alive:
            host.node = node_id(f"rekeyed {host.number} {host.lives}")
            self.timeline.after(0, self._rekey, host.number)

    def _rekey(self, number: int) -> None:
        self.kill(number)
        self.timeline.after(REKEY_US, self._restart, number)

    def _restart(self, number: int) -> None:
        self.start(number)

    def _listener(self, number: int) -> Process | None:
        process = self.hosts[number].process
        return process if process is not None and process.is_alive and not process.is_leaving else None
