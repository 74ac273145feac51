"""A failing run is made smaller, and stays the failure that it was."""

import random

import msgspec

from meshnode.simulation.faults import Advertise, Kill, Timed
from meshnode.simulation.run import Reduced, run
from meshnode.simulation.scenario import SETTLED_S, Scenario, joined
from meshnode.simulation.shrink import fails_like, kind, remaining, shrink

VICTIM, NODES = 5, 8


def _noise_and_one_kill(nodes: int, rng: random.Random) -> list[Timed]:
    noise = [Timed(SETTLED_S + 0.5 * turn, Advertise(host=rng.randrange(nodes), value=turn)) for turn in range(12)]
    return [*joined(nodes, rng), *noise, Timed(SETTLED_S + 2.2, Kill(host=VICTIM))]


PLANTED = Scenario(name="planted", about="a failure among noise", duration=30.0, plan=_noise_and_one_kill)


def test_a_planted_failure_is_found_among_the_noise() -> None:
    def fails(reduced: Reduced) -> bool:
        happening = remaining(PLANTED, nodes=NODES, seed=1, reduced=reduced)
        return any(timed.fault == Kill(host=VICTIM) for timed in happening) and VICTIM not in reduced.hosts

    reduced = shrink(PLANTED, nodes=NODES, seed=1, fails=fails)
    left = remaining(PLANTED, nodes=NODES, seed=1, reduced=reduced)

    assert [timed.fault for timed in left if not hasattr(timed.fault, "seeds")] == [Kill(host=VICTIM)]
    assert NODES - len(reduced.hosts) == PLANTED.least


def test_a_smaller_run_has_to_fail_in_the_same_way() -> None:
    result = run(PLANTED, nodes=NODES, seed=1)
    broken = msgspec.structs.replace(result, failures=("a failure",))

    assert not fails_like(PLANTED, broken)(Reduced())


def test_the_kind_of_a_failure_has_no_times_and_names_in_it() -> None:
    assert kind("12.3 s: n00 has n03 as down, which is well") == kind("7.001 s: n05 has n12 as down, which is well: no frame")
    assert kind("down is 5.6, and may be 1.5") != kind("settle is 5.6, and may be 1.5")


def test_the_search_ends_after_so_many_runs() -> None:
    asked: list[Reduced] = []

    def never(reduced: Reduced) -> bool:
        asked.append(reduced)
        return False

    assert shrink(PLANTED, nodes=NODES, seed=1, fails=never, runs=7) == Reduced()
    assert len(asked) == 7
