"""The choice among candidates (pure).

A policy is one function; the shell keeps the count of what it sent itself, because gossip is always a little old.
"""

import random
from collections.abc import Mapping, Sequence

from meshnode.names import NodeId
from meshnode.routing.table import Candidate


def occupancy(candidate: Candidate, in_flight: Mapping[NodeId, int]) -> float:
    """Requests per slot: the larger of what the node reported and what we know we sent it, so that neither is counted twice."""
    reported = candidate.load.active + candidate.load.queued if candidate.load else 0
    slots = max(1, candidate.load.slots if candidate.load else 1)
    return max(reported, in_flight.get(candidate.node, 0)) / slots


def least_connections(
    candidates: Sequence[Candidate], in_flight: Mapping[NodeId, int], rng: random.Random
) -> tuple[Candidate, str] | None:
    """The least occupied candidate and why, in a word for `x-meshnode-reason`; ties go to ourselves, then to chance.

    Who would have to load the model first is asked only where nobody has it loaded.
    """
    if not candidates:
        return None
    loaded = [candidate for candidate in candidates if candidate.loaded] or candidates
    least = min(occupancy(candidate, in_flight) for candidate in loaded)
    best = [candidate for candidate in loaded if occupancy(candidate, in_flight) == least]
    chosen = next((candidate for candidate in best if candidate.local), None) or rng.choice(best)
    if len(candidates) == 1:
        return chosen, "only-holder"
    return chosen, "local" if chosen.local else "least-busy"
