"""What happens in the scenarios of the catalogue (pure). Times count from when all have joined."""

import random
from collections.abc import Iterable

from meshnode.simulation.faults import (
    Advertise,
    Block,
    Copy,
    Delay,
    Fault,
    Kill,
    Leave,
    Lose,
    Move,
    Narrow,
    Pause,
    Read,
    Resume,
    Slow,
    Start,
    Timed,
    Unblock,
    Unplug,
    between,
)
from meshnode.simulation.scenario import SETTLED_S, Plan, after_joining, joined
from meshnode.simulation.timeline import SECOND

Happening = list[tuple[float, Fault]]
HALF_A_MINUTE = 30.0
STALL_S, RUN_S = 8.19, 0.064
"""Lifeguard's experiment (2017, section V): a process is stopped for so long and then runs for so long, again and again."""


def one(*faults: tuple[float, type[Kill | Unplug | Leave | Pause | Resume]]) -> Plan:
    """Faults of one host that is not the seed."""
    return after_joining(lambda nodes, rng: of(rng.randrange(1, nodes), faults))


def of(host: int, faults: Iterable[tuple[float, type[Kill | Unplug | Leave | Pause | Resume]]]) -> Happening:
    return [(at, kind(host=host)) for at, kind in faults]


def join_at_once(nodes: int, rng: random.Random) -> list[Timed]:
    return [Timed(0.0, Start(host=0, seeds=()))] + [
        Timed(1.0 + rng.uniform(0, 0.05), Start(host=host, seeds=(0,))) for host in range(1, nodes)
    ]


def changes(nodes: int, rng: random.Random) -> Happening:
    """One at a time, so that what a node hears is that change."""
    return [(2.0 * turn + rng.random(), Advertise(host=rng.randrange(nodes), value=turn + 1)) for turn in range(20)]


def halves(seconds: float) -> Plan:
    def make(nodes: int, rng: random.Random) -> Happening:
        hosts = rng.sample(range(nodes), nodes)
        ways = between(hosts[: nodes // 2], hosts[nodes // 2 :])
        return [(0.0, Block(ways=ways)), (seconds, Unblock(ways=ways))]

    return after_joining(make)


def bridge(nodes: int, rng: random.Random) -> Happening:
    hosts = rng.sample(range(nodes), nodes)
    return [(0.0, Block(ways=between(hosts[1 : 1 + nodes // 2], hosts[1 + nodes // 2 :])))]


def pair(*, both: bool) -> Plan:
    def make(nodes: int, rng: random.Random) -> Happening:
        one, other = rng.sample(range(nodes), 2)
        ways = between([one], [other]) if both else ((one, other),)
        return [(0.0, Block(ways=ways)), (60.0, Unblock(ways=ways))]

    return after_joining(make)


def asymmetric(nodes: int, rng: random.Random) -> Happening:
    """A third of the hosts can send to nobody else, and hears all."""
    hosts = rng.sample(range(nodes), nodes)
    third = max(1, nodes // 3)
    ways = tuple((a, b) for a in hosts[:third] for b in hosts[third:])
    return [(0.0, Block(ways=ways)), (40.0, Unblock(ways=ways))]


def lossy(loss: float) -> Plan:
    return after_joining(lambda _nodes, _rng: [(0.0, Lose(loss=loss))])


def power_in_loss(loss: float) -> Plan:
    return after_joining(lambda nodes, rng: [(0.0, Lose(loss=loss)), (20.0, Unplug(host=rng.randrange(1, nodes)))])


def stalls(nodes: int, rng: random.Random) -> Happening:
    found: Happening = []
    for host in rng.sample(range(nodes), max(1, nodes // 5)):
        at = rng.uniform(0, 1)
        while at < 60.0:
            found += [(at, Pause(host=host)), (at + STALL_S, Resume(host=host))]
            at += STALL_S + RUN_S
    return found


def slow(nodes: int, rng: random.Random) -> Happening:
    """So slow that a tick takes a tenth of a second, and the node lags behind by seconds in a large mesh."""
    host = rng.randrange(1, nodes)
    return [(0.0, Slow(host=host, work_us=min(50_000, SECOND * 7 // 10 // nodes))), (60.0, Slow(host=host, work_us=0))]


def frozen_reader(nodes: int, rng: random.Random) -> Happening:
    host = rng.randrange(1, nodes)
    return [(0.0, Read(host=host, reads=False)), (HALF_A_MINUTE, Read(host=host, reads=True))]


def narrow(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Narrow(host=rng.randrange(1, nodes), bits_per_s=800_000))]


def half_leave(nodes: int, rng: random.Random) -> Happening:
    return [(rng.uniform(0, 0.1), Leave(host=host)) for host in rng.sample(range(1, nodes), nodes // 2)]


def half_vanish(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Unplug(host=host)) for host in rng.sample(range(1, nodes), nodes // 2)]


def restart(after: float, *, lost_epoch: bool = False) -> Plan:
    def make(nodes: int, rng: random.Random) -> Happening:
        host = rng.randrange(1, nodes)
        return [(0.0, Kill(host=host)), (after, Start(host=host, lost_epoch=lost_epoch))]

    return after_joining(make)


def mass_restart(nodes: int, rng: random.Random) -> Happening:
    found: Happening = []
    for host in range(nodes):
        at = rng.uniform(0, 0.5)
        found += [(at, Kill(host=host)), (at + rng.uniform(0.5, 3.0), Start(host=host))]
    return found


def rolling(nodes: int, rng: random.Random) -> Happening:
    found: Happening = []
    for turn, host in enumerate(rng.sample(range(nodes), nodes)):
        found += [(2.0 * turn, Leave(host=host)), (2.0 * turn + 1.0, Start(host=host))]
    return found


def flip_flop(nodes: int, rng: random.Random) -> Happening:
    """Rapid's experiment (2018, section 7): one node is cut off for 20 s, and back for 20 s."""
    host = rng.randrange(1, nodes)
    ways = between([host], [other for other in range(nodes) if other != host])
    return [(20.0 * turn, Unblock(ways=ways) if turn % 2 else Block(ways=ways)) for turn in range(6)]


def joining_late(nodes: int, rng: random.Random) -> list[Timed]:
    """One is killed; one joins while the others find that out, and one when they have. Neither has met it."""
    happening = joined(nodes - 2, rng)
    victim = rng.randrange(1, nodes - 2)
    return [
        *happening,
        Timed(SETTLED_S, Kill(host=victim)),
        Timed(SETTLED_S + 0.1, Start(host=nodes - 2, seeds=(0,))),
        Timed(SETTLED_S + 30.0, Start(host=nodes - 1, seeds=(0,))),
    ]


def forgotten(nodes: int, rng: random.Random) -> Happening:
    """One half of the mesh cannot hear a node's goodbye, and hears of nothing until the other half has forgotten it."""
    hosts = rng.sample(range(1, nodes), nodes - 1)
    ways = between([0, *hosts[: nodes // 2 - 1]], hosts[nodes // 2 - 1 :])
    return [(0.0, Block(ways=ways)), (1.0, Leave(host=hosts[-1])), (3700.0, Unblock(ways=ways))]


def copied(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Copy(host=rng.randrange(1, nodes)))]


def moved(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Move(host=rng.randrange(1, nodes)))]


def spike(_nodes: int, _rng: random.Random) -> Happening:
    return [(0.0, Delay(latency_us=500_000, jitter_us=500_000)), (20.0, Delay(latency_us=200, jitter_us=300))]


def chaos(nodes: int, rng: random.Random, *, lost_epochs: bool = False) -> Happening:
    """Some of everything in a minute, each over by its end."""
    found: Happening = []
    for _ in range(rng.randrange(3, 9)):
        at, length = rng.uniform(0, 45), rng.uniform(0.1, 15)
        host, other = rng.sample(range(nodes), 2)
        cut = between([host], [peer for peer in range(nodes) if peer != host])
        group = rng.sample(range(nodes), nodes // 2)
        halves = between(group, [peer for peer in range(nodes) if peer not in group])
        pairs: list[tuple[Fault, Fault]] = [
            (Kill(host=host), Start(host=host)),
            (Unplug(host=host), Start(host=host)),
            (Leave(host=host), Start(host=host)),
            (Kill(host=host), Start(host=host, lost_epoch=lost_epochs)),
            (Pause(host=host), Resume(host=host)),
            (Block(ways=cut), Unblock(ways=cut)),
            (Block(ways=halves), Unblock(ways=halves)),
            (Block(ways=((host, other),)), Unblock(ways=((host, other),))),
            (Lose(loss=rng.uniform(0.05, 0.3)), Lose(loss=0.0)),
            (Slow(host=host, work_us=5_000), Slow(host=host, work_us=0)),
            (Advertise(host=host, value=1), Advertise(host=other, value=2)),
        ]
        begin, end = rng.choice(pairs)
        found += [(at, begin), (at + length, end)]
    for host in rng.sample(range(1, nodes), rng.randrange(2)):
        found.append((55.0, Kill(host=host)))
    return found


def joined_only(nodes: int, rng: random.Random) -> list[Timed]:
    return joined(nodes, rng)


def chaos_of_epochs(nodes: int, rng: random.Random) -> Happening:
    """The same, and some come back with an epoch lower than before."""
    return chaos(nodes, rng, lost_epochs=True)
