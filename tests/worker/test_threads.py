"""The thread count against a model of a machine: cores, foreign busy processes, and barriers where all wait for the slowest."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.worker.threads import MAX_PAUSE_S, ThreadCount

WORK = 0.02
"""Core-seconds of one step."""
SLOWED = 0.06
"""Speed of each of several threads while one of them shares its core: measured 10 of 162 tok/s beside a load of six."""


def step(cores: int, foreign: int, threads: int) -> tuple[float, float]:
    """Wall and processor time of one step. A thread alone is slowed by no more than the half that it loses."""
    sharing = min(threads, max(0, threads + foreign - cores))
    speed = 1.0 if not sharing else SLOWED if threads > 1 else 0.5
    wall = WORK / threads / speed
    return wall, wall * (threads - 0.5 * sharing)


@dataclass
class Run:
    steps: int
    counts: list[int]


def run(count: ThreadCount, cores: int, seconds: float, *, foreign: Callable[[float], int], start: float = 0.0) -> Run:
    now, steps, counts = start, 0, []
    while now < start + seconds:
        wall, cpu = step(cores, foreign(now), count.count)
        now += wall
        counts.append(count.count)
        count.observe(rows=1, wall=wall, cpu=cpu, now=now)
        steps += 1
    return Run(steps, counts)


def best(cores: int, foreign: int, seconds: float) -> float:
    """Steps with the number of threads that is best for that load."""
    return max(seconds / step(cores, foreign, threads)[0] for threads in range(1, cores + 1))


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
def test_a_machine_of_its_own_is_used_whole(cores: int) -> None:
    assert set(run(ThreadCount(cores), cores, 30, foreign=lambda _: 0).counts) == {cores}


@pytest.mark.parametrize(("cores", "foreign"), [(2, 1), (4, 1), (4, 3), (16, 4), (8, 7), (8, 8), (2, 2)])
def test_with_foreign_load_it_is_nearly_as_fast_as_the_best_count(cores: int, foreign: int) -> None:
    adaptive = run(ThreadCount(cores), cores, 60, foreign=lambda _: foreign)
    fixed = 60 / step(cores, foreign, cores)[0]

    assert adaptive.steps > 0.9 * best(cores, foreign, 60)
    assert adaptive.steps > 0.97 * fixed


def test_beside_one_foreign_busy_core_of_two_it_is_many_times_as_fast_as_two_threads() -> None:
    adaptive = run(ThreadCount(2), 2, 60, foreign=lambda _: 1)

    assert adaptive.steps / (60 / step(2, 1, 2)[0]) > 5
    assert adaptive.counts.count(1) > 0.95 * len(adaptive.counts)


def test_when_the_load_goes_the_cores_are_taken_back() -> None:
    count = ThreadCount(8)
    run(count, 8, 200, foreign=lambda _: 6)
    after = run(count, 8, MAX_PAUSE_S + 2, foreign=lambda _: 0, start=200)

    assert after.counts[-1] == 8


def test_where_the_others_take_all_cores_one_thread_remains() -> None:
    count = ThreadCount(8)
    run(count, 8, 30, foreign=lambda _: 5)
    gave_way = count.count
    crowded = run(count, 8, 100, foreign=lambda _: 8, start=30)

    assert gave_way == 3
    assert crowded.steps > 0.9 * best(8, 8, 100)


def test_the_count_does_not_swing_under_a_constant_load() -> None:
    count = ThreadCount(4)
    run(count, 4, 120, foreign=lambda _: 2)
    counts = run(count, 4, 100, foreign=lambda _: 2, start=120).counts
    changes = sum(one != other for one, other in pairwise(counts))

    assert changes <= 2 * (1 + 100 / MAX_PAUSE_S)


def test_a_load_that_comes_and_goes_costs_little() -> None:
    foreign: Callable[[float], int] = lambda now: int(now % 10 < 5)  # noqa: E731 - a load over time
    adaptive = run(ThreadCount(2), 2, 100, foreign=foreign)

    assert adaptive.steps > 0.8 * (best(2, 0, 50) + best(2, 1, 50))


def test_a_neighbour_that_takes_little_is_no_reason_to_give_a_core_away() -> None:
    """It takes a third of a core, now and then: two threads lose some time to it, and are faster than one."""
    count, now, steps, whole = ThreadCount(2), 0.0, 0, 0
    while now < 60:
        wall = WORK / count.count * 1.15
        now += wall
        steps += 1
        whole += count.count == 2
        count.observe(rows=1, wall=wall, cpu=wall * (count.count - 0.3), now=now)

    assert whole > 0.97 * steps
    assert steps > 0.98 * 60 / (WORK / 2 * 1.15)


def test_the_number_stays_where_no_two_steps_are_alike() -> None:
    """Each brings other rows, so nothing shows that fewer threads are faster."""
    count = ThreadCount(4)
    for number in range(100):
        count.observe(rows=2**number, wall=0.2, cpu=0.4, now=number * 0.2)

    assert count.count >= 2


def test_a_new_share_is_used_at_once_and_an_equal_one_changes_nothing() -> None:
    count = ThreadCount(4)
    run(count, 2, 5, foreign=lambda _: 1)
    adapted = count.count
    count.set_limit(4)
    same = count.count
    count.set_limit(3)

    assert adapted == same == 1
    assert count.count == 3


@settings(max_examples=50)
@given(st.integers(1, 32), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 64)), max_size=200), st.integers(-1, 40))
def test_it_stays_within_its_bounds_whatever_the_clocks_say(limit: int, steps: list[tuple[float, float]], other: int) -> None:
    count = ThreadCount(limit)
    for number, (wall, cpu) in enumerate(steps):
        if number == 100:
            count.set_limit(other)
        count.observe(rows=1, wall=wall, cpu=cpu, now=number)

        assert 1 <= count.count <= max(1, limit if number < 100 else other)
