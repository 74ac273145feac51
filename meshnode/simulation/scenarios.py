"""The catalogue of scenarios (pure).

Bounds are those of the issue's table and of gossip.md, section 8; where those say nothing they are guesses, rounded up from what
the engine showed.
"""

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
from meshnode.simulation.scenario import Bounds, Plan, Scenario, after_joining, joined
from meshnode.simulation.timeline import SECOND

Happening = list[tuple[float, Fault]]
HALF_A_MINUTE = 30.0
STALL_S, RUN_S = 8.19, 0.064
"""Lifeguard's experiment (2017, section V): a process is stopped for so long and then runs for so long, again and again."""


def _one(*faults: tuple[float, type[Kill | Unplug | Leave | Pause | Resume]]) -> Plan:
    """Faults of one host that is not the seed."""
    return after_joining(lambda nodes, rng: _of(rng.randrange(1, nodes), faults))


def _of(host: int, faults: Iterable[tuple[float, type[Kill | Unplug | Leave | Pause | Resume]]]) -> Happening:
    return [(at, kind(host=host)) for at, kind in faults]


def _join_at_once(nodes: int, rng: random.Random) -> list[Timed]:
    return [Timed(0.0, Start(host=0, seeds=()))] + [
        Timed(1.0 + rng.uniform(0, 0.05), Start(host=host, seeds=(0,))) for host in range(1, nodes)
    ]


def _changes(nodes: int, rng: random.Random) -> Happening:
    """One at a time, so that what a node hears is that change."""
    return [(2.0 * turn + rng.random(), Advertise(host=rng.randrange(nodes), value=turn + 1)) for turn in range(20)]


def _halves(seconds: float) -> Plan:
    def make(nodes: int, rng: random.Random) -> Happening:
        hosts = rng.sample(range(nodes), nodes)
        ways = between(hosts[: nodes // 2], hosts[nodes // 2 :])
        return [(0.0, Block(ways=ways)), (seconds, Unblock(ways=ways))]

    return after_joining(make)


def _bridge(nodes: int, rng: random.Random) -> Happening:
    hosts = rng.sample(range(nodes), nodes)
    return [(0.0, Block(ways=between(hosts[1 : 1 + nodes // 2], hosts[1 + nodes // 2 :])))]


def _pair(*, both: bool) -> Plan:
    def make(nodes: int, rng: random.Random) -> Happening:
        one, other = rng.sample(range(nodes), 2)
        ways = between([one], [other]) if both else ((one, other),)
        return [(0.0, Block(ways=ways)), (60.0, Unblock(ways=ways))]

    return after_joining(make)


def _asymmetric(nodes: int, rng: random.Random) -> Happening:
    """A third of the hosts can send to nobody else, and hears all."""
    hosts = rng.sample(range(nodes), nodes)
    third = max(1, nodes // 3)
    ways = tuple((a, b) for a in hosts[:third] for b in hosts[third:])
    return [(0.0, Block(ways=ways)), (40.0, Unblock(ways=ways))]


def _lossy(loss: float) -> Plan:
    return after_joining(lambda _nodes, _rng: [(0.0, Lose(loss=loss))])


def _power_in_loss(loss: float) -> Plan:
    return after_joining(lambda nodes, rng: [(0.0, Lose(loss=loss)), (20.0, Unplug(host=rng.randrange(1, nodes)))])


def _stalls(nodes: int, rng: random.Random) -> Happening:
    found: Happening = []
    for host in rng.sample(range(nodes), max(1, nodes // 5)):
        at = rng.uniform(0, 1)
        while at < 60.0:
            found += [(at, Pause(host=host)), (at + STALL_S, Resume(host=host))]
            at += STALL_S + RUN_S
    return found


def _slow(nodes: int, rng: random.Random) -> Happening:
    """So slow that a tick takes a tenth of a second, and the node lags behind by seconds in a large mesh."""
    host = rng.randrange(1, nodes)
    return [(0.0, Slow(host=host, work_us=min(50_000, SECOND * 7 // 10 // nodes))), (60.0, Slow(host=host, work_us=0))]


def _frozen_reader(nodes: int, rng: random.Random) -> Happening:
    host = rng.randrange(1, nodes)
    return [(0.0, Read(host=host, reads=False)), (HALF_A_MINUTE, Read(host=host, reads=True))]


def _narrow(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Narrow(host=rng.randrange(1, nodes), bits_per_s=800_000))]


def _half_leave(nodes: int, rng: random.Random) -> Happening:
    return [(rng.uniform(0, 0.1), Leave(host=host)) for host in rng.sample(range(1, nodes), nodes // 2)]


def _half_vanish(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Unplug(host=host)) for host in rng.sample(range(1, nodes), nodes // 2)]


def _restart(after: float, *, lost_epoch: bool = False) -> Plan:
    def make(nodes: int, rng: random.Random) -> Happening:
        host = rng.randrange(1, nodes)
        return [(0.0, Kill(host=host)), (after, Start(host=host, lost_epoch=lost_epoch))]

    return after_joining(make)


def _mass_restart(nodes: int, rng: random.Random) -> Happening:
    found: Happening = []
    for host in range(nodes):
        at = rng.uniform(0, 0.5)
        found += [(at, Kill(host=host)), (at + rng.uniform(0.5, 3.0), Start(host=host))]
    return found


def _rolling(nodes: int, rng: random.Random) -> Happening:
    found: Happening = []
    for turn, host in enumerate(rng.sample(range(nodes), nodes)):
        found += [(2.0 * turn, Leave(host=host)), (2.0 * turn + 1.0, Start(host=host))]
    return found


def _flip_flop(nodes: int, rng: random.Random) -> Happening:
    """Rapid's experiment (2018, section 7): one node is cut off for 20 s, and back for 20 s."""
    host = rng.randrange(1, nodes)
    ways = between([host], [other for other in range(nodes) if other != host])
    return [(20.0 * turn, Unblock(ways=ways) if turn % 2 else Block(ways=ways)) for turn in range(6)]


def _copied(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Copy(host=rng.randrange(1, nodes)))]


def _moved(nodes: int, rng: random.Random) -> Happening:
    return [(0.0, Move(host=rng.randrange(1, nodes)))]


def _spike(_nodes: int, _rng: random.Random) -> Happening:
    return [(0.0, Delay(latency_us=500_000, jitter_us=500_000)), (20.0, Delay(latency_us=200, jitter_us=300))]


def _chaos(nodes: int, rng: random.Random) -> Happening:
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
            (Kill(host=host), Start(host=host, lost_epoch=True)),
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


def _joined_only(nodes: int, rng: random.Random) -> list[Timed]:
    return joined(nodes, rng)


HEALED = Bounds(settle=40.0, down=None)
DISTURBED = Bounds(transitions=None, urgent=None)

CATALOGUE: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="idle",
            about="nothing happens but changing load",
            duration=60.0,
            plan=_joined_only,
            load=True,
            bounds=Bounds(bytes_per_s=4096.0),
        ),
        Scenario(name="join-burst", about="all but one join by its address at once", duration=30.0, plan=_join_at_once),
        Scenario(
            name="change-spread",
            about="records change, one every 2 s",
            duration=60.0,
            plan=after_joining(_changes),
            bounds=Bounds(spread=0.1),
        ),
        Scenario(
            name="kill",
            about="kill -9 of one node; its host refuses",
            duration=40.0,
            plan=_one((0.0, Kill)),
            bounds=Bounds(unroutable=0.1, down=1.5),
        ),
        Scenario(
            name="power-loss",
            about="one host falls silent",
            duration=45.0,
            plan=_one((0.0, Unplug)),
            bounds=Bounds(unroutable=4.0, down=10.0),
            least=2,
        ),
        Scenario(
            name="power-loss-30",
            about="one host falls silent while 30 % of all packets are lost",
            duration=80.0,
            plan=_power_in_loss(0.3),
            bounds=Bounds(converge=15.0, down=10.0, transitions=None, urgent=None, quiet=False),
            least=2,
        ),
        Scenario(
            name="half-vanishes",
            about="half of the hosts fall silent at once",
            duration=60.0,
            plan=after_joining(_half_vanish),
            bounds=Bounds(unroutable=4.0, down=10.0, urgent=None),
            least=4,
        ),
        Scenario(
            name="pause-8",
            about="one process is stopped for 8 s",
            duration=50.0,
            plan=_one((0.0, Pause), (8.0, Resume)),
            bounds=Bounds(unroutable=4.0, unwell_down=0, settle=2.0),
        ),
        Scenario(
            name="pause-12",
            about="one process is stopped for 12 s",
            duration=60.0,
            plan=_one((0.0, Pause), (12.0, Resume)),
            bounds=Bounds(unroutable=4.0, settle=10.0),
        ),
        Scenario(
            name="leave",
            about="one node says goodbye",
            duration=40.0,
            plan=_one((0.0, Leave)),
            bounds=Bounds(unroutable=0.1, down=0.5),
        ),
        Scenario(
            name="restart-at-once",
            about="killed, and started again 0.1 s later",
            duration=40.0,
            plan=_restart(0.1),
            bounds=Bounds(unroutable=0.1, settle=2.0, unwell_down=0),
        ),
        Scenario(
            name="lost-epoch",
            about="killed, and back in 2 s with an epoch lower than before",
            duration=60.0,
            plan=_restart(2.0, lost_epoch=True),
            bounds=Bounds(unroutable=0.1, settle=5.0),
        ),
        *(
            Scenario(
                name=f"partition-heal-{name}",
                about=f"two halves cannot hear each other for {name}",
                duration=70.0 + seconds,
                plan=_halves(seconds),
                bounds=HEALED,
                least=4,
            )
            for name, seconds in (("5s", 5.0), ("60s", 60.0), ("10min", 600.0))
        ),
        Scenario(
            name="bridge-partition",
            about="two halves cannot hear each other, and one node hears both",
            duration=100.0,
            plan=after_joining(_bridge),
            least=5,
        ),
        Scenario(
            name="one-way-pair",
            about="for a minute one node's packets do not reach one other",
            duration=110.0,
            plan=_pair(both=False),
            bounds=HEALED,
        ),
        Scenario(
            name="two-way-pair",
            about="for a minute two nodes do not reach each other",
            duration=110.0,
            plan=_pair(both=True),
            bounds=HEALED,
        ),
        Scenario(
            name="asymmetric-partition",
            about="a third of the nodes hears all, and reaches nobody else",
            duration=110.0,
            plan=after_joining(_asymmetric),
            bounds=HEALED,
        ),
        Scenario(
            name="loss-10",
            about="10 % of all packets are lost for 10 minutes",
            duration=610.0,
            plan=_lossy(0.1),
            bounds=Bounds(transitions=None, urgent=None, quiet=False),
        ),
        Scenario(
            name="loss-30",
            about="30 % of all packets are lost for 10 minutes",
            duration=610.0,
            plan=_lossy(0.3),
            bounds=Bounds(transitions=None, urgent=None, quiet=False),
        ),
        Scenario(
            name="stall",
            about="a fifth of the nodes is stopped for 8.19 s, runs for 64 ms, and so on (Lifeguard)",
            duration=110.0,
            plan=after_joining(_stalls),
            bounds=Bounds(transitions=None, settle=20.0),
            nodes=20,
            least=5,
        ),
        Scenario(name="slow-cpu", about="one node is 20 times too slow", duration=110.0, plan=after_joining(_slow), bounds=DISTURBED),
        Scenario(
            name="frozen-reader",
            about="one node writes and does not read for 30 s",
            duration=90.0,
            plan=after_joining(_frozen_reader),
            load=True,
            bounds=DISTURBED,
        ),
        Scenario(name="narrow", about="one cable carries 100 kB/s", duration=40.0, plan=after_joining(_narrow), load=True),
        Scenario(
            name="latency-spike",
            about="for 20 s packets take 0.5 to 2 s",
            duration=70.0,
            plan=after_joining(_spike),
            bounds=DISTURBED,
        ),
        Scenario(
            name="clock-skew",
            about="clocks run up to 2 % wrong, and one host falls silent",
            duration=60.0,
            plan=_one((0.0, Unplug)),
            bounds=Bounds(unroutable=4.1, down=10.2),
            skew=0.02,
        ),
        Scenario(
            name="flash-leave",
            about="half of the nodes say goodbye at once",
            duration=40.0,
            plan=after_joining(_half_leave),
            bounds=Bounds(unroutable=0.1, down=1.0),
        ),
        Scenario(
            name="mass-restart",
            about="all are killed within half a second, and are back in 3 s",
            duration=60.0,
            plan=after_joining(_mass_restart),
            bounds=Bounds(settle=10.0, transitions=None),
        ),
        Scenario(
            name="rolling-restart",
            about="one after the other leaves and starts again",
            duration=200.0,
            plan=after_joining(_rolling),
            bounds=Bounds(settle=5.0, transitions=None),
        ),
        Scenario(
            name="flip-flop",
            about="one node is cut off for 20 s, and back for 20 s, three times (Rapid)",
            duration=170.0,
            plan=after_joining(_flip_flop),
            bounds=HEALED,
        ),
        Scenario(
            name="address-change",
            about="one host gets another address",
            duration=50.0,
            plan=after_joining(_moved),
            bounds=Bounds(settle=5.0),
        ),
        Scenario(
            name="copied-identity",
            about="another host starts on a copy of one node's data",
            duration=60.0,
            plan=after_joining(_copied),
            bounds=Bounds(settle=20.0, transitions=None),
        ),
        Scenario(
            name="chaos",
            about="some of everything, chosen by the seed",
            duration=150.0,
            plan=after_joining(_chaos),
            bounds=Bounds(settle=40.0, transitions=None, urgent=None),
        ),
    )
}
