"""The choice among candidates (pure). A policy is one function and one line in `POLICIES`.

`estimated` is what the mesh is made for. What it goes by is always a little old, and every node goes by the same: were each to
take the best, all would take the same one, until gossip tells of it, and then the next. So whoever is nearly the best will do,
and the older the news, the more are; two are drawn of them, and the one that we ourselves ask less is taken and booked at once.
The others are there for comparison.
"""

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from meshnode.inference import Priority
from meshnode.routing.ask import Ask
from meshnode.routing.estimate import GUESS, Estimate, best_told, estimate, is_measured
from meshnode.routing.knowledge import Knowledge
from meshnode.routing.table import Candidate

NEAR = 0.10
"""Share by which a candidate may be slower than the best, and be as good: the estimate is no better."""
NEAR_PER_S = 0.006
"""More of it for each second that the best one's news is old, and for each candidate: so many choose meanwhile as we do."""
MAX_NEAR = 0.85
NEAR_S = 0.05
"""In seconds: so little nobody feels."""
EXPLORE = 0.01
"""Share of the choices that try somebody whose speed nobody knows, or who failed us lately, so that a recovery is noticed."""
FIRST_WEIGHT: Mapping[Priority, float] = MappingProxyType({Priority.INTERACTIVE: 0.5, Priority.DEFAULT: 0.0, Priority.BATCH: 0.0})
"""How much the time to the first token counts against the time to the end: somebody who watches waits for both."""


class Choice(NamedTuple):
    """`reason`: why, in a word for `x-meshnode-reason`. `estimate` is None where the policy makes none."""

    candidate: Candidate
    reason: str
    estimate: Estimate | None = None


class Policy(Protocol):
    def __call__(
        self, candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random
    ) -> Choice: ...


def score(found: Estimate, ask: Ask) -> float:
    """What is to be small, in seconds: our own time, and what we take from the others, which somebody does to us in turn."""
    return found.finish + found.others - FIRST_WEIGHT[ask.priority] * found.decode


def near_bound(best: Estimate, ask: Ask, *, count: int) -> float:
    """The greatest score that is as good as that of `best`, the best of `count`."""
    return score(best, ask) * (1 + min(MAX_NEAR, NEAR + NEAR_PER_S * count * best.age)) + NEAR_S


def estimates(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float) -> list[Estimate]:
    unknown = GUESS if all(map(is_measured, candidates)) else best_told(candidates)
    return [estimate(candidate, ask, known.own(candidate, ask, now), now=now, unknown=unknown) for candidate in candidates]


def estimated(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """One of those that are about to be done with it first."""
    found = estimates(candidates, ask, known, now=now)
    less = FIRST_WEIGHT[ask.priority]
    scores = [each.finish + each.others - less * each.decode for each in found]
    bound = near_bound(found[scores.index(min(scores))], ask, count=len(candidates))
    near = [place for place, each in enumerate(scores) if each <= bound]
    far = [place for place in range(len(scores)) if scores[place] > bound and _is_doubtful(candidates[place], found[place])]
    if far and rng.random() < EXPLORE:
        place = rng.choice(far)
        return Choice(candidates[place], "explore", found[place])
    place = _drawn(near, candidates, known, rng)
    return Choice(candidates[place], _reason(place, near, candidates, found), found[place])


def _is_doubtful(candidate: Candidate, found: Estimate) -> bool:
    return (found.penalty > 0 and not candidate.origin) or not is_measured(candidate)


def _drawn(near: Sequence[int], candidates: Sequence[Candidate], known: Knowledge, rng: random.Random) -> int:
    """Of two draws the one of which we have less under way; ourselves if we are one of the near ones and have nothing to do."""
    for place in near:
        here = candidates[place]
        if here.local and not known.open(here) and not (here.load and here.load.active):
            return place
    if len(near) == 1:
        return near[0]
    one, other = rng.sample(near, 2)
    return one if known.open(candidates[one]) <= known.open(candidates[other]) else other


def _reason(place: int, near: Sequence[int], candidates: Sequence[Candidate], found: Sequence[Estimate]) -> str:
    if len(candidates) == 1:
        return "only-holder"
    if any(each.cached < found[place].cached for each in found):
        return "prefix"
    return "local" if candidates[place].local else "fastest" if len(near) == 1 else "near-fastest"


def _loaded(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """For whoever does not go by time: who would have to load the model first is asked only where nobody has it loaded."""
    return [candidate for candidate in candidates if candidate.loaded] or candidates


def at_random(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    return Choice(rng.choice(_loaded(candidates)), "random")


def round_robin(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """In the order of node ids, so that it does not matter in which they come."""
    ordered = sorted(_loaded(candidates), key=lambda candidate: candidate.holder)
    return Choice(ordered[known.turn % len(ordered)], "round-robin")


def least_connections(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """The least occupied one, in requests per slot; ties go to ourselves, then to chance."""
    loaded = _loaded(candidates)
    busy = [occupancy(candidate, known) for candidate in loaded]
    best = [candidate for candidate, each in zip(loaded, busy, strict=True) if each == min(busy)]
    chosen = next((candidate for candidate in best if candidate.local), None) or rng.choice(best)
    if len(candidates) == 1:
        return Choice(chosen, "only-holder")
    return Choice(chosen, "local" if chosen.local else "least-busy")


def power_of_two(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """The less occupied of two that are drawn."""
    loaded = _loaded(candidates)
    pair = rng.sample(loaded, min(2, len(loaded)))
    return Choice(min(pair, key=lambda candidate: occupancy(candidate, known)), "power-of-two")


def occupancy(candidate: Candidate, known: Knowledge) -> float:
    """Requests per slot: the larger of what the node reported and what we know we sent it, so that neither is counted twice."""
    reported = candidate.load.active + candidate.load.queued if candidate.load else 0
    slots = max(1, candidate.load.slots if candidate.load else 1)
    return max(reported, known.open(candidate)) / slots


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "estimate": estimated,
        "random": at_random,
        "round-robin": round_robin,
        "least-connections": least_connections,
        "power-of-two": power_of_two,
    }
)
