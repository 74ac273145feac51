"""How long an attempt may keep silent before it is taken to be stuck (pure).

Whoever works on a request tells so: a peer each second, a worker at each step, while it loads or reads or lets others go first.
So it is silence that means trouble, and never slowness. A peer's process has nothing to do that would keep it silent. A worker
is silent for as long as one step or the start of a request takes, which follows from its measured speed.
"""

import math

from meshnode.routing.ask import Ask
from meshnode.routing.estimate import is_measured
from meshnode.routing.table import Candidate

PEER_S = 3.0
"""Three reports of a peer missed; the links allow as much."""
WORKER_S = 10.0
"""Of a worker at least: nobody knows how long it takes to render and split a long prompt, or to compile a grammar."""
UNMEASURED_S = 60.0
"""Of a worker whose speed nobody knows yet, for its first step; and of one that makes embeddings, which come all at once."""
TIMES = 3.0
"""How far an expectation may be wrong."""
STEP_TOKENS = 128
"""Of prompts, that a step may read: of others too, so that even a short prompt may wait for it."""


def silence_s(candidate: Candidate, ask: Ask) -> float:
    """Seconds of silence that are too many, of an attempt there. Infinite for a bridge of our own, which reports no progress."""
    if not candidate.local:
        return PEER_S
    if candidate.origin:
        return math.inf
    load = candidate.load
    if load is None or not is_measured(candidate):
        return UNMEASURED_S
    read = max(ask.prompt_tokens, STEP_TOKENS) / load.prefill_per_s + load.step_ms / 1000
    return max(WORKER_S if ask.output_tokens else UNMEASURED_S, TIMES * read)
