"""Make a failing run smaller: leave out faults and hosts while it still fails (pure).

Greedy, in halves first and then one by one (a simple form of delta debugging): each attempt is a whole run, so the number of
attempts is bounded. What is left is told as what was left out, so the same seed replays it.
"""

import re
from collections.abc import Callable, Iterator

from meshnode.simulation.faults import Timed
from meshnode.simulation.run import Reduced, Result, plan, run
from meshnode.simulation.scenario import Scenario

MAX_RUNS = 120


def _chunks(items: list[int]) -> Iterator[list[int]]:
    """Ever smaller parts of `items`."""
    size = len(items) // 2
    while size >= 1:
        for start in range(0, len(items), size):
            yield items[start : start + size]
        size //= 2


def _drop(items: list[int], fails: Callable[[frozenset[int]], bool], budget: list[int]) -> frozenset[int]:
    """As many of `items` as can be left out."""
    dropped: frozenset[int] = frozenset()
    for chunk in _chunks(items):
        more = dropped | frozenset(chunk)
        if more == dropped or budget[0] <= 0:
            continue
        budget[0] -= 1
        if fails(more):
            dropped = more
    return dropped


def kind(failure: str) -> str:
    """What sort of failure it is: its first words, without times, names and numbers."""
    return " ".join(re.findall(r"(?<![\w.])[a-z_]{2,}(?![\w.])", failure)[:4])


def fails_like(scenario: Scenario, result: Result) -> Callable[[Reduced], bool]:
    """Whether a smaller run fails in the same ways as `result`, in one of them at least and in no other."""
    kinds = set(map(kind, result.failures))

    def fails(reduced: Reduced) -> bool:
        found = set(map(kind, run(scenario, nodes=result.nodes, seed=result.seed, reduced=reduced).failures))
        return bool(found) and found <= kinds

    return fails


def shrink(scenario: Scenario, *, nodes: int, seed: int, fails: Callable[[Reduced], bool], runs: int = MAX_RUNS) -> Reduced:
    """What to leave out of that run so that it still `fails`, in at most so many runs."""
    budget = [runs]
    faults = [place for place, timed in enumerate(plan(scenario, nodes, seed)) if not _is_birth(timed)]
    without = _drop(faults, lambda dropped: fails(Reduced(faults=dropped)), budget)
    hosts = _drop(
        list(range(1, nodes)),
        lambda dropped: nodes - len(dropped) >= scenario.least and fails(Reduced(faults=without, hosts=dropped)),
        budget,
    )
    again = [place for place in faults if place not in without]
    without |= _drop(again, lambda dropped: fails(Reduced(faults=without | dropped, hosts=hosts)), budget)
    return Reduced(faults=without, hosts=hosts)


def remaining(scenario: Scenario, *, nodes: int, seed: int, reduced: Reduced) -> list[Timed]:
    """What still happens."""
    return [
        timed
        for place, timed in enumerate(plan(scenario, nodes, seed))
        if place not in reduced.faults and getattr(timed.fault, "host", None) not in reduced.hosts
    ]


def _is_birth(timed: Timed) -> bool:
    return getattr(timed.fault, "seeds", None) is not None
