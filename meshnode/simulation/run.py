"""Run a scenario once: the same scenario, number of nodes, seed and reductions give the same trace hash (pure)."""

import math
import statistics
from collections.abc import Callable, Iterable

import msgspec

from meshnode.gossip.effects import Notify
from meshnode.simulation.faults import Timed, apply, give_load
from meshnode.simulation.process import Process
from meshnode.simulation.processor import Clock
from meshnode.simulation.scenario import BYTES_NODES, Bounds, Scenario
from meshnode.simulation.timeline import SECOND, fork
from meshnode.simulation.watcher import Ending, Watcher, is_first_start
from meshnode.simulation.world import KILLED, LEFT, UNPLUGGED, World

OVER = (KILLED, UNPLUGGED, LEFT)
URGENT = (8, 9, 10)
"""PROBE, FINDING, ACCUSE."""
WINDOW_S = 4.0
"""Before the first fault: what the quiet mesh costs is measured then."""

Tell = Callable[[float, str, str], None]
"""When, who, what."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one run showed. Times in seconds; None: there was nothing of the kind; infinite: it never came to pass."""

    scenario: str
    nodes: int
    seed: int
    failures: tuple[str, ...]
    trace: str
    converge: float | None
    unroutable: float | None
    """The longest, from the end of a life or the start of a pause."""
    down: float | None
    spread_50: float | None
    spread: float | None
    settle: float | None
    false_down: int
    unwell_down: int
    detours: int
    """How often a node that was well became unroutable for another that was."""
    refuted: int
    """How often a node that was there was suspected, and heard of it."""
    bytes_per_s: float
    """Sent by a node, frames only, on the average of the whole run."""
    socket_bytes_per_s: float
    """With WebSocket and TLS, no TCP/IP."""
    quiet_bytes_per_s: float
    """The same in the last seconds."""
    frames_per_s: float
    urgent: float
    """Probes, findings and accusations, for each fault and each pair of nodes."""
    events: int


class Reduced(msgspec.Struct, frozen=True, kw_only=True):
    """A smaller version of a scenario: faults left out by their place in its plan, and hosts that never start."""

    faults: frozenset[int] = frozenset()
    hosts: frozenset[int] = frozenset()


def plan(scenario: Scenario, nodes: int, seed: int) -> list[Timed]:
    """What happens in that run, in order."""
    return sorted(scenario.plan(nodes, fork(seed, "faults")), key=lambda timed: timed.at)


def run(scenario: Scenario, *, nodes: int, seed: int, reduced: Reduced | None = None, tell: Tell | None = None) -> Result:
    """`tell` hears what happens, as it does."""
    world, watcher = _prepare(scenario, nodes, seed)
    if tell:
        _listen(world, tell)
    reduced = reduced or Reduced()
    kept = [timed for place, timed in enumerate(plan(scenario, nodes, seed)) if place not in reduced.faults]
    kept = [timed for timed in kept if getattr(timed.fault, "host", None) not in reduced.hosts]
    last_start = max((timed.at for timed in kept if is_first_start(timed.fault)), default=0.0)
    faults = [timed for timed in kept if not is_first_start(timed.fault)]
    converge: float | None = None
    quiet_from = scenario.duration - WINDOW_S
    for timed in kept:
        world.timeline.run(round(timed.at * SECOND))
        if timed.at > last_start and converge is None:
            converge = _since(watcher.converged_at, last_start)
        if timed.at <= last_start:
            watcher.converged_at = None
        if tell:
            tell(timed.at, "****", str(timed.fault))
        apply(world, timed.fault)
        watcher.fault(timed.fault)
    world.timeline.run(round(quiet_from * SECOND))
    before = _sent(world)
    world.timeline.run(round(scenario.duration * SECOND))
    watcher.finish(quiet=scenario.bounds.quiet, equal=scenario.bounds.equal)
    if converge is None:
        converge = _since(watcher.converged_at, last_start)
    last_fault = faults[-1].at if faults else None
    result = _measure(scenario, world, watcher, nodes=nodes, seed=seed, faults=len(faults))
    return _judged(
        scenario.bounds,
        msgspec.structs.replace(
            result,
            converge=converge,
            settle=None if last_fault is None else max(0.0, _since(watcher.complete_at, last_fault)),
            quiet_bytes_per_s=(_sent(world) - before) / WINDOW_S / max(1, len(world.living())),
        ),
        watcher,
    )


def _prepare(scenario: Scenario, nodes: int, seed: int) -> tuple[World, Watcher]:
    world = World(seed, nodes)
    world.network.loss = scenario.loss
    chance = fork(seed, "clocks")
    for host in world.hosts:
        host.clock = Clock(offset=host.clock.offset, rate=1.0 + chance.uniform(-scenario.skew, scenario.skew))
        if scenario.load:
            give_load(world, host.number)
    return world, Watcher(world, transitions=scenario.bounds.transitions)


def _listen(world: World, tell: Tell) -> None:
    noticed = world.on_notice

    def notice(process: Process, what: Notify) -> None:
        tell(world.timeline.seconds, process.name, f"{what.what}: {what.text}")
        noticed(process, what)

    world.on_notice = notice


def _since(at: int | None, start: float) -> float:
    return math.inf if at is None else at / SECOND - start


def _sent(world: World) -> float:
    return sum(traffic.socket_bytes for host in world.hosts for traffic in host.traffic)


def _measure(scenario: Scenario, world: World, watcher: Watcher, *, nodes: int, seed: int, faults: int) -> Result:
    spent = [traffic for host in world.hosts for traffic in host.traffic]
    node_seconds = nodes * scenario.duration
    spreads = list(_spreads(watcher))
    urgent = sum(traffic.kinds.get(kind, 0) for traffic in spent for kind in URGENT)
    return Result(
        scenario=scenario.name,
        nodes=nodes,
        seed=seed,
        failures=tuple(watcher.failures),
        trace=world.timeline.trace,
        converge=None,
        unroutable=_longest(_unroutable(ending) for ending in watcher.endings),
        down=_longest(_down(ending) for ending in watcher.endings if ending.how in OVER),
        spread_50=statistics.median(spreads) if spreads else None,
        spread=sorted(spreads)[math.ceil(0.95 * len(spreads)) - 1] if spreads else None,
        settle=None,
        false_down=len(watcher.false_down),
        unwell_down=watcher.unwell_down,
        detours=watcher.detours,
        refuted=watcher.refuted,
        bytes_per_s=sum(traffic.frame_bytes for traffic in spent) / node_seconds,
        socket_bytes_per_s=_sent(world) / node_seconds,
        quiet_bytes_per_s=0.0,
        frames_per_s=sum(traffic.frames for traffic in spent) / node_seconds,
        urgent=urgent / max(1, faults) / nodes**2,
        events=world.timeline.events,
    )


def _longest(times: Iterable[float | None]) -> float | None:
    return max((time for time in times if time is not None), default=None)


def _unroutable(ending: Ending) -> float | None:
    """None if it was over before all noticed it: a short pause."""
    if ending.how in OVER:
        unaware = ending.replaced - ending.unroutable.keys()  # the next life took over before the silence was noticed
        late = [ending.unroutable.get(host, math.inf) - ending.at for host in ending.witnesses - unaware]
    else:
        late = [at - ending.at for at in ending.unroutable.values()]
    return max(late) / SECOND if late else None


def _down(ending: Ending) -> float | None:
    """Until the last of those that could send to it knew that this life is over. Who has met a later one does not count."""
    late = [ending.gone.get(host, math.inf) - ending.at for host in ending.witnesses - ending.replaced]
    return max(late) / SECOND if late else None


def _spreads(watcher: Watcher) -> Iterable[float]:
    """Of each change, until the last node had it."""
    for change in watcher.changes:
        if change.seen:
            yield (max(change.seen.values()) - change.at) / SECOND


def _judged(bounds: Bounds, result: Result, watcher: Watcher) -> Result:
    """With a failure for each bound that does not hold."""
    failures = list(result.failures)
    for name in ("converge", "unroutable", "down", "spread", "settle", "unwell_down", "urgent"):
        bound, value = getattr(bounds, name), getattr(result, name)
        if bound is not None and value is not None and value > bound:
            failures.append(f"{name} is {value:.3f}, and may be {bound:g}")
    allowed = None if bounds.bytes_per_s is None else bounds.bytes_per_s * max(1.0, result.nodes / BYTES_NODES)
    if allowed is not None and result.quiet_bytes_per_s > allowed:
        failures.append(f"a node sends {result.quiet_bytes_per_s:.0f} bytes a second, and may send {allowed:.0f}")
    if bounds.false_down is not None and result.false_down > bounds.false_down:
        failures.append(f"{result.false_down} false verdicts of down, the first at {watcher.false_down[0]}")
    return msgspec.structs.replace(result, failures=tuple(failures))
