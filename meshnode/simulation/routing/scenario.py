"""What a run is made of, as a value, with the bounds that it must keep (pure)."""

from collections.abc import Iterable, Sequence

import msgspec

from meshnode.simulation.routing.measure import WARM_UP, Outcome, capacity, outcome
from meshnode.simulation.routing.mesh import Mesh, Request, Way
from meshnode.simulation.routing.server import Machine
from meshnode.simulation.routing.workload import Job, jobs


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """From `at`, a share of the run, node `node` goes on at `pace`, for `for_s` seconds; at pace 0 it is frozen. None: it
    crashes, and comes back with nothing cached and nothing loaded."""

    node: int
    at: float
    for_s: float
    pace: float | None


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Of the policy `estimate`, over all seeds together: times the figure of the reference, or plain shares."""

    finish_mean: float | None = None
    finish_p99: float | None = None
    first_mean: float | None = None
    bounced: float | None = None
    most: float | None = None


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """`reference`: what its runs are compared with, in the same trouble or, with `calm_reference`, without any."""

    name: str
    doc: str
    machines: tuple[Machine, ...]
    workload: str = "conversation"
    load: float = 0.8
    requests: int = 3000
    error: float = 0.0
    """Of the measured speeds, either way."""
    troubles: tuple[Trouble, ...] = ()
    ages: tuple[float, ...] = (0.2, 1.0, 5.0, 15.0)
    """Of the news: seconds between two tellings."""
    reference: Way = Way(policy="full-information")
    calm_reference: bool = False
    bounds: Bounds = Bounds()


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Of one way of routing, over all seeds together."""

    scenario: str
    way: Way
    nodes: int
    outcome: Outcome
    failures: tuple[str, ...] = ()


def run(scenario: Scenario, way: Way, *, seeds: Iterable[int], calm: bool = False) -> Outcome:
    """What came of it, over all requests of all seeds."""
    meshes, counted = [], []
    for seed in seeds:
        work = workload(scenario, seed)
        mesh = Mesh(scenario.machines, way, seed=seed, error=scenario.error)
        for trouble in () if calm else scenario.troubles:
            _plan(mesh, trouble, trouble.at * work[-1].at)
        mesh.run(work)
        meshes.append(mesh)
        counted.append(_counted(mesh, work))
    return outcome(meshes, [request for requests in counted for request in requests])


def workload(scenario: Scenario, seed: int) -> list[Job]:
    """As many requests in a second as `load` of what the mesh can do."""
    plain = jobs(scenario.workload, scenario.requests, seed=seed, per_s=1.0)
    return jobs(scenario.workload, scenario.requests, seed=seed, per_s=scenario.load * capacity(scenario.machines, plain))


def _counted(mesh: Mesh, work: list[Job]) -> list[Request]:
    started = work[int(WARM_UP * len(work))].at
    return [request for request in mesh.finished if request.job.at >= started]


def _plan(mesh: Mesh, trouble: Trouble, at: float) -> None:
    if trouble.pace is None:
        mesh.at(at, mesh.crash, trouble.node)
        mesh.at(at + trouble.for_s, mesh.come_back, trouble.node)
    else:
        mesh.at(at, mesh.slow, trouble.node, trouble.pace)
        mesh.at(at + trouble.for_s, mesh.slow, trouble.node, 1.0)


def reference(scenario: Scenario, *, seeds: Iterable[int]) -> Outcome:
    return run(scenario, scenario.reference, seeds=seeds, calm=scenario.calm_reference)


def _failures(scenario: Scenario, found: Outcome, against: Outcome) -> tuple[str, ...]:
    """Each bound that the run does not keep, in words."""
    failures = []
    for name in ("finish_mean", "finish_p99", "first_mean"):
        bound, ratio = getattr(scenario.bounds, name), getattr(found, name) / getattr(against, name)
        if bound is not None and ratio > bound:
            failures.append(f"{name} is {ratio:.3f} times that of the reference; at most {bound} is allowed")
    for name in ("bounced", "most"):
        bound, value = getattr(scenario.bounds, name), getattr(found, name)
        if bound is not None and value > bound:
            failures.append(f"{name} is {value:.3f}; at most {bound} is allowed")
    return tuple(failures)


def judged(scenario: Scenario, ways: Sequence[Way], outcomes: Sequence[Outcome]) -> list[Run]:
    """What came of each of `ways`, of which the first is the reference. Bounds are for the production policy as it is."""
    return [
        Run(
            scenario=scenario.name,
            way=way,
            nodes=len(scenario.machines),
            outcome=found,
            failures=_failures(scenario, found, outcomes[0]) if place and way == Way(gossip_s=way.gossip_s) else (),
        )
        for place, (way, found) in enumerate(zip(ways, outcomes, strict=True))
    ]
