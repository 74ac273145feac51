"""What a run came to (pure)."""

import statistics

import msgspec

from meshnode.simulation.routing.mesh import Mesh, Request
from meshnode.simulation.routing.server import Machine
from meshnode.simulation.routing.workload import BLOCK_TOKENS, Job

WARM_UP = 0.1
"""Share of the requests, from the first on, that are not counted."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, but for shares and counts."""

    first_mean: float
    first_p50: float
    first_p99: float
    finish_mean: float
    finish_p50: float
    finish_p99: float
    hit: float
    """Share of the prompts' tokens that were cached."""
    error: float
    """Median of true over estimated time to the first token; 0 where nothing was estimated."""
    bounced: float
    """For each request."""
    failed_over: int
    turned_away: int
    most: float
    """Of all requests, what the most used node got in relation to its share of the speed."""


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def outcome(meshes: list[Mesh], counted: list[Request]) -> Outcome:
    """Of runs that are one but for their seeds; `counted` are the requests that count."""
    first = [(request.first or 0.0) - request.job.at for request in counted]
    finish = [(request.end or 0.0) - request.job.at for request in counted]
    asked = sum(len(mesh.finished) for mesh in meshes)
    return Outcome(
        first_mean=statistics.fmean(first),
        first_p50=quantile(first, 0.5),
        first_p99=quantile(first, 0.99),
        finish_mean=statistics.fmean(finish),
        finish_p50=quantile(finish, 0.5),
        finish_p99=quantile(finish, 0.99),
        hit=sum(request.hit * BLOCK_TOKENS for request in counted) / sum(request.job.prompt for request in counted),
        error=_error(counted),
        bounced=sum(mesh.bounced for mesh in meshes) / asked,
        failed_over=sum(mesh.failed_over for mesh in meshes),
        turned_away=sum(mesh.turned_away for mesh in meshes),
        most=max(_most(mesh) for mesh in meshes),
    )


def _error(counted: list[Request]) -> float:
    pairs = [
        (request.first - request.chosen_at, request.expected_s)
        for request in counted
        if request.first is not None and request.expected_s
    ]
    return statistics.median(true / expected for true, expected in pairs) if pairs else 0.0


def _most(mesh: Mesh) -> float:
    prompt = statistics.fmean(request.job.prompt for request in mesh.finished)
    output = statistics.fmean(request.job.output for request in mesh.finished)
    able = [server.machine.capacity(prompt, output) for server in mesh.servers]
    return max(sent / sum(mesh.sent) * sum(able) / each for sent, each in zip(mesh.sent, able, strict=True))


def capacity(machines: tuple[Machine, ...], jobs: list[Job]) -> float:
    """Requests like `jobs` that the mesh could answer in a second, were nothing cached."""
    prompt, output = statistics.fmean(job.prompt for job in jobs), statistics.fmean(job.output for job in jobs)
    return sum(machine.capacity(prompt, output) for machine in machines)
