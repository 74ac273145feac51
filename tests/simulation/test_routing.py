"""The simulator of routing: its workloads against the traces that they are fitted to, its nodes, and the bounds of the scenarios.

The seeds are fixed, so nothing here can fail by chance.
"""

import statistics
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from meshnode.routing.bounce import MAX_BOUNCES, bounces
from meshnode.simulation.routing.measure import quantile
from meshnode.simulation.routing.mesh import Mesh, Way
from meshnode.simulation.routing.rivals import EVERY, ORACLES
from meshnode.simulation.routing.scenario import Scenario, Trouble, judged, reference, run
from meshnode.simulation.routing.scenarios import CATALOGUE, MIDDLE, SLOW, UNEQUAL
from meshnode.simulation.routing.server import Machine, Server, Work
from meshnode.simulation.routing.workload import Job, jobs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("trace", "prompt", "output", "variation"),
    [("conversation", 1155, 211, 1.09), ("code", 2048, 28, 13.2), ("long", 12_035, 343, 3.03)],
)
def test_a_workload_has_the_means_and_the_bursts_of_its_trace(trace: str, prompt: float, output: float, variation: float) -> None:
    drawn = jobs(trace, 20_000, seed=1, per_s=5.0)
    gaps = [later.at - job.at for job, later in pairwise(drawn)]

    assert statistics.fmean(job.prompt for job in drawn) == pytest.approx(prompt, rel=0.1)
    assert statistics.fmean(job.output for job in drawn) == pytest.approx(output, rel=0.1)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(variation, rel=0.2)
    assert drawn[-1].at == pytest.approx(20_000 / 5.0)


def test_the_conversation_trace_has_its_quantiles() -> None:
    lengths = [float(job.prompt) for job in jobs("conversation", 20_000, seed=1, per_s=5.0)]

    assert [quantile(lengths, share) for share in (0.5, 0.9, 0.99)] == pytest.approx([1020, 2735, 4142], rel=0.05)


def test_a_conversation_sends_all_before_again_and_shares_its_first_blocks_with_others() -> None:
    drawn = jobs("chat", 2000, seed=1, per_s=1.0)
    grown = sum(any(job.chain[: len(other.chain)] == other.chain for other in drawn[:place]) for place, job in enumerate(drawn))

    assert [job.at for job in drawn] == sorted(job.at for job in drawn)
    assert 0.5 < grown / len(drawn) < 0.95
    assert len({job.chain[0] for job in drawn}) == 12
    assert drawn == jobs("chat", 2000, seed=1, per_s=1.0)


def served(machine: Machine, *work: Job) -> list[float]:
    """When each is done, all given at once."""
    server = Server(machine, error=0.0)
    ends: dict[Job, float] = {}
    for job in work:
        server.take(Work(job, None))
    while due := server.ready_at or server.next_change():
        server.advance(due)
        if server.ready_at == due:
            server.finish_loading()
        ends |= {work.job: server.now for work in server.ended()}
    return [ends[job] for job in work]


def test_a_server_reads_then_writes_and_its_slots_share_its_speed() -> None:
    machine = Machine(read=100, write=10, slots=2, beta=0.5)
    alone, other, third = Job(0.0, 100, 10), Job(0.1, 100, 10), Job(0.2, 100, 10)

    assert served(machine, alone) == [pytest.approx(2)]
    assert served(machine, alone, other) == [pytest.approx(3)] * 2
    assert served(machine, alone, other, third) == [pytest.approx(3), pytest.approx(3), pytest.approx(5)]
    assert served(msgspec.structs.replace(machine, load_s=7.0), alone) == [pytest.approx(9)]


def test_what_a_server_has_cached_it_does_not_read_again() -> None:
    machine = Machine(read=64, write=10, slots=1)
    first, second = Job(0.0, 640, 10, tuple(range(10))), Job(0.1, 704, 10, tuple(range(11)))

    assert served(machine, first, second) == [pytest.approx(11), pytest.approx(11 + 2)]


def test_a_server_tells_what_the_estimate_needs() -> None:
    server = Server(Machine(read=1000, write=50, slots=1), error=0.0)
    for number in range(3):
        server.take(Work(Job(float(number), 500, 400), None))
    told, true = server.state(), server.state(exact=True)

    assert (told.active, told.queued, told.slots, told.state) == (1, 2, 1, "ready")
    assert [told.prefill_per_s, told.step_ms, told.stream_ms] == pytest.approx([1000, 20, 7])
    assert told.remaining_ms == 3 * (500 + 4000)  # an answer of 200 tokens is expected
    assert true.remaining_ms == 3 * (500 + 8000)


def test_a_request_is_given_back_when_the_truth_is_much_worse_and_not_for_ever() -> None:
    assert not bounces(expected_s=1.0, true_s=1.9, before=0)
    assert bounces(expected_s=1.0, true_s=2.1, before=0)
    assert not bounces(expected_s=1.0, true_s=99.0, before=MAX_BOUNCES)


@pytest.mark.parametrize("policy", [*EVERY, *ORACLES])
def test_every_policy_answers_every_request_whatever_breaks(policy: str) -> None:
    troubles = (
        Trouble(node=0, at=0.2, for_s=30.0, pace=None),
        Trouble(node=1, at=0.4, for_s=30.0, pace=0.0),
        Trouble(node=2, at=0.6, for_s=30.0, pace=0.2),
    )
    machines = (MIDDLE, MIDDLE, MIDDLE, msgspec.structs.replace(SLOW, load_s=10.0))
    broken = Scenario(name="all", doc="", machines=machines, workload="chat", load=0.6, requests=400, troubles=troubles)
    found = run(broken, Way(policy=policy), seeds=[1])

    assert found.failed_over > 0
    assert 0 < found.first_mean < found.finish_mean < 400


def test_one_seed_gives_one_run() -> None:
    scenario = msgspec.structs.replace(CATALOGUE["crash"], requests=300)

    assert run(scenario, Way(), seeds=[3]) == run(scenario, Way(), seeds=[3]) != run(scenario, Way(), seeds=[4])


def test_a_lone_entry_spreads_a_burst_by_its_bookings_alone() -> None:
    """24 equal requests at once, two equal nodes, and news that never comes."""
    mesh = Mesh((MIDDLE, MIDDLE), Way(gossip_s=1e6, bouncing=False), seed=1)
    mesh.rng.choice = lambda nodes: nodes[0]  # type: ignore[method-assign, assignment]  # every client asks one node
    mesh.run([Job(0.001 * number, 500, 100) for number in range(24)])

    shares = Counter(request.server for request in mesh.finished)
    assert max(shares.values()) / min(shares.values()) <= 1.2


SEEDS = {"ages": (1, 2, 3), "chat": (1, 2), "errors": (1, 2), "cold": (1, 2)}
"""As many as it takes for chance to be small beside the bounds; elsewhere one will do."""
TRIED = sorted(CATALOGUE.keys() - {"nodes-64", "nodes-16", "code"})
"""The others take too long to be tried each time: scripts/simulate-routing all."""


@pytest.mark.parametrize("name", TRIED)
def test_a_scenario_keeps_its_bounds(name: str) -> None:
    scenario, seeds = CATALOGUE[name], SEEDS.get(name, (1,))
    if name != "ages":
        scenario = msgspec.structs.replace(scenario, requests=min(scenario.requests, 2000))
    ways = [Way(gossip_s=age) for age in scenario.ages]
    outcomes = [reference(scenario, seeds=seeds), *(run(scenario, way, seeds=seeds) for way in ways)]

    assert [row.failures for row in judged(scenario, [scenario.reference, *ways], outcomes)] == [()] * (1 + len(ways))


def test_a_bound_that_is_not_kept_is_told_with_its_figures() -> None:
    scenario = msgspec.structs.replace(CATALOGUE["ages"], requests=100)
    good = reference(scenario, seeds=[1])
    bad = msgspec.structs.replace(good, finish_mean=2 * good.finish_mean, bounced=0.9)
    first, second = judged(scenario, [scenario.reference, Way()], [good, bad])

    assert first.failures == ()
    assert second.failures == (
        "finish_mean is 2.000 times that of the reference; at most 1.1 is allowed",
        "bounced is 0.900; at most 0.6 is allowed",
    )


def test_the_command_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "ages.svg"
    command = [str(ROOT / "scripts/simulate-routing"), "ages", "--requests", "60", "--seeds", "1", "--gossip", "1,5"]
    done = subprocess.run(
        [*command, "--policies", "estimate,random", "--picture", str(picture), "--jobs", "1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.stderr == ""
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ages")] == [
        "full-information", "estimate", "estimate", "random", "random",
    ]  # fmt: skip
    assert "seconds between two tellings" in picture.read_text()


def test_unequal_nodes_are_what_the_bounds_are_about() -> None:
    assert len(UNEQUAL) == 8
    assert len({machine.write for machine in UNEQUAL}) == 3
