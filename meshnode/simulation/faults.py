"""What can go wrong, as values: a scenario is a list of them with times (pure).

`apply` does one to a world. `touches` names the hosts whose links it may break, None for all: what happens to others is not its
doing. Hosts are numbers; a fault of a host without a living process does nothing, so that a shrunk scenario is still one.
"""

from collections.abc import Iterable, Iterator
from typing import assert_never

import msgspec

from meshnode.gossip.view import MEMORY
from meshnode.names import ModelDigest
from meshnode.simulation.process import Process
from meshnode.simulation.timeline import SECOND
from meshnode.simulation.world import World
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import ModelState

WEIGHTS = ModelDigest(bytes(32))
Ways = tuple[tuple[int, int], ...]


class _Fault(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class _OfHost(_Fault, frozen=True, kw_only=True):
    host: int


class Start(_OfHost, frozen=True, kw_only=True):
    """A process starts, for the first time or again. No `seeds`: those of its earlier life."""

    seeds: tuple[int, ...] | None = None
    lost_epoch: bool = False


class Kill(_OfHost, frozen=True):
    """kill -9."""


class Unplug(_OfHost, frozen=True):
    """The host loses its power."""


class Leave(_OfHost, frozen=True):
    """SIGTERM."""


class Pause(_OfHost, frozen=True):
    """SIGSTOP."""


class Resume(_OfHost, frozen=True):
    """SIGCONT."""


class Slow(_OfHost, frozen=True, kw_only=True):
    """Each message and each tick takes so long from now on."""

    work_us: int


class Read(_OfHost, frozen=True, kw_only=True):
    """Whether it reads its sockets."""

    reads: bool


class Move(_OfHost, frozen=True):
    """It gets another address."""


class Copy(_OfHost, frozen=True):
    """Another host starts on a copy of its data."""


class Narrow(_OfHost, frozen=True, kw_only=True):
    """Its cable carries so much."""

    bits_per_s: int


class Block(_Fault, frozen=True, kw_only=True):
    """Nothing passes on these ways."""

    ways: Ways


class Unblock(_Fault, frozen=True, kw_only=True):
    ways: Ways


class Lose(_Fault, frozen=True, kw_only=True):
    """Each packet is lost with that probability."""

    loss: float


class Delay(_Fault, frozen=True, kw_only=True):
    latency_us: int
    jitter_us: int


class Advertise(_OfHost, frozen=True, kw_only=True):
    """No fault: its record changes."""

    value: int


Fault = (
    Start
    | Kill
    | Unplug
    | Leave
    | Pause
    | Resume
    | Slow
    | Read
    | Move
    | Copy
    | Narrow
    | Block
    | Unblock
    | Lose
    | Delay
    | Advertise
)


class Timed(msgspec.Struct, frozen=True):
    at: float
    """Seconds from the start."""
    fault: Fault


def between(one: Iterable[int], other: Iterable[int]) -> Ways:
    """All ways from one group to the other and back."""
    here, there = list(one), list(other)
    return tuple(way for a in here for b in there for way in ((a, b), (b, a)))


def touches(fault: Fault) -> frozenset[int] | None:
    match fault:
        case Block() | Unblock():
            return frozenset(host for way in fault.ways for host in way)
        case Lose() | Delay():
            return None
        case Advertise():
            return frozenset()
        case _:
            return frozenset((fault.host,))


def apply(world: World, fault: Fault) -> None:  # noqa: PLR0912 - a table in the form of a match
    match fault:
        case Start():
            world.start(fault.host, seeds=fault.seeds, lost_epoch=fault.lost_epoch)
        case Kill():
            world.kill(fault.host)
        case Unplug():
            world.unplug(fault.host)
        case Leave():
            world.leave(fault.host)
        case Move():
            world.move(fault.host)
        case Copy():
            world.copy(fault.host)
        case Narrow():
            world.network.slow_down(fault.host, fault.bits_per_s)
        case Block():
            world.network.block(fault.ways)
        case Unblock():
            world.network.unblock(fault.ways)
        case Lose():
            world.network.loss = fault.loss
        case Delay():
            world.network.latency, world.network.jitter = fault.latency_us, fault.jitter_us
        case Pause() | Resume() | Slow() | Read() | Advertise():
            for process in _process(world, fault.host):
                _apply(process, fault)
        case _:
            assert_never(fault)


def _process(world: World, host: int) -> Iterator[Process]:
    process = world.hosts[host].process
    if process is not None and process.is_alive:
        yield process


def _apply(process: Process, fault: Pause | Resume | Slow | Read | Advertise) -> None:
    match fault:
        case Pause():
            process.processor.stop()
        case Resume():
            process.processor.resume()
        case Slow():
            process.processor.work_us = fault.work_us
        case Read():
            process.read(fault.reads)
        case Advertise():
            if not process.is_leaving:
                process.engine.advertise(MEMORY, encode_value((2**40, fault.value)), now=process.now)
                process.touch()
        case _:
            assert_never(fault)


def give_load(world: World, host: int, every_us: int = SECOND) -> None:
    """From now on the node's load changes each second."""
    rng = world.hosts[host].rng

    def change() -> None:
        for process in _process(world, host):
            if process.is_healthy:
                load = ModelState("demo", WEIGHTS, "ready", active=rng.randrange(9), slots=8, queued=rng.randrange(3))
                process.engine.set_load((load,), now=process.now)
                process.touch()
        world.timeline.after(every_us, change)

    world.timeline.after(rng.randrange(every_us), change)
