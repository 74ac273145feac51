"""A scenario as a value: how many nodes, what happens when, and how good the mesh has to be (pure)."""

import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from meshnode.simulation.faults import Fault, Start, Timed

BYTES_NODES = 20
SETTLED_S = 10.0
"""Nodes start in the first second, and faults begin then."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a run must not exceed; None: not asked for. Times in seconds."""

    converge: float | None = 5.0
    """From the last first start until all can send to all."""
    unroutable: float | None = None
    """From the end of a life, or a pause, until no neighbour would send to it."""
    down: float | None = None
    """From the end of a life until everybody knows that it is over."""
    spread: float | None = None
    """Of a change to all others, 95th percentile."""
    settle: float | None = None
    """From the last fault until all can send to all again."""
    false_down: int | None = 0
    """Verdicts of down on nodes that were well, and in reach, for the last 15 s."""
    unwell_down: int | None = None
    """Such verdicts on nodes that are there, but stopped or slow."""
    quiet: bool = True
    """At the end all have the true view."""
    equal: bool = True
    """And the same records."""
    transitions: int | None = 2
    """Routable or not: changes of one node's verdict on another, for each fault that touches the two."""
    bytes_per_s: float | None = None
    """Sent by a node in the last seconds, with WebSocket and TLS; in a mesh larger than 20, in proportion more."""
    urgent: float | None = 4.0
    """Probes, findings and accusations for each fault, divided by the square of the number of nodes."""


class Plan(Protocol):
    """Makes what happens: for so many nodes, with that chance."""

    def __call__(self, nodes: int, rng: random.Random) -> list[Timed]: ...


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    about: str
    duration: float
    plan: Plan
    bounds: Bounds = Bounds()
    nodes: int = 8
    """Unless told otherwise."""
    least: int = 3
    """With fewer nodes it makes no sense."""
    loss: float = 0.0
    load: bool = False
    """Every node's load changes each second."""
    skew: float = 0.0
    """Clocks run so much too fast or too slow, at most."""


def joined(nodes: int, rng: random.Random) -> list[Timed]:
    """How most scenarios begin: node 0, then the others by it, within a second."""
    first = [Timed(0.0, Start(host=0, seeds=()))]
    return first + [Timed(rng.uniform(0.1, 1.0), Start(host=host, seeds=(0,))) for host in range(1, nodes)]


def after_joining(make: Callable[[int, random.Random], list[tuple[float, Fault]]]) -> Plan:
    """A plan of what happens from `SETTLED_S` on; times in `make` count from there."""

    def plan(nodes: int, rng: random.Random) -> list[Timed]:
        return joined(nodes, rng) + [Timed(SETTLED_S + at, fault) for at, fault in make(nodes, rng)]

    return plan
