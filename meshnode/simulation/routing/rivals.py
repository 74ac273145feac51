"""The policies of others, and those that know everything, to compare with (pure)."""

import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType

from meshnode.routing.ask import Ask
from meshnode.routing.estimate import Own
from meshnode.routing.knowledge import Knowledge
from meshnode.routing.policy import POLICIES, Choice, Policy, estimates, occupancy, score
from meshnode.routing.table import Candidate

BOUND = 1.25
"""Of the mean load, up to which a node takes what the hash sends it (Mirrokni et al., Consistent Hashing with Bounded Loads)."""


def shortest_queue(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """The least requests, as told."""
    counts = [_told(candidate) for candidate in candidates]
    return Choice(rng.choice([each for each, count in zip(candidates, counts, strict=True) if count == min(counts)]), "queue")


def bounded_hash(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """The first node in an order that the beginning of the prompt gives, that has no more than its share and a quarter."""
    key = ask.chain[0] if ask.chain else rng.getrandbits(64)
    order = sorted(candidates, key=lambda candidate: blake2b(candidate.node, key=key.to_bytes(8, "little")).digest())
    share = BOUND * (sum(map(_told, candidates)) + 1) / len(candidates)
    return Choice(next((each for each in order if _told(each) <= share), order[0]), "hash")


def _told(candidate: Candidate) -> int:
    return candidate.load.active + candidate.load.queued if candidate.load else 0


class Truth(Knowledge):
    """Knows what is cached, and needs to remember nothing of its own, since it sees everything."""

    def __init__(self, hits: Callable[[Candidate, Ask], int]) -> None:
        super().__init__()
        self._hits = hits

    def own(self, candidate: Candidate, ask: Ask, now: float) -> Own:
        return Own(blocks=self._hits(candidate, ask))


def lowest(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """The lowest score, with no regard to age."""
    found = estimates(candidates, ask, known, now=now)
    place = min(range(len(found)), key=lambda place: score(found[place], ask))
    return Choice(candidates[place], "lowest", found[place])


def soonest(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    """Whoever is done with it first, whatever that costs the others."""
    found = estimates(candidates, ask, known, now=now)
    place = min(range(len(found)), key=lambda place: found[place].finish)
    return Choice(candidates[place], "soonest", found[place])


def least_occupied(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float, rng: random.Random) -> Choice:
    return Choice(min(candidates, key=lambda candidate: occupancy(candidate, known)), "least")


EVERY: Mapping[str, Policy] = MappingProxyType({**POLICIES, "shortest-queue": shortest_queue, "bounded-hash": bounded_hash})
ORACLES: Mapping[str, Policy] = MappingProxyType(
    {"full-information": lowest, "full-soonest": soonest, "full-shortest-queue": least_occupied}
)
"""With the present state of every node before them, lengths of answers included."""
