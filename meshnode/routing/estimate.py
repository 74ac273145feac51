"""How long a request would take at a candidate, term by term (pure).

From what the node told of its model, which is always a little old, and from what we sent there since. With s(k) the time of one
decoding step for k streams, k streams together get k s(1) / s(k) of the work done that one would get alone: the *rate*. Then

    remaining = what was left then - age * rate, and the work that we sent since
    wait      = 0 while a slot is free, else remaining / rate, as much of it as has to end before our turn
    prefill   = (fixed cost + tokens that are not cached / speed of reading) * s(k) / s(1)
    decode    = tokens to expect * s(k)
    others    = what we take from the others: those beside us get slower by one stream more, those behind us wait for our slot

with k the streams that there will be with ours. Every figure is measured by the worker; where one is missing, the best that a
candidate has told stands for it, or else a guess, so that a node that nobody knows is tried and then known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from meshnode.routing.ask import Ask
from meshnode.routing.table import Candidate
from meshnode.wire.messages import ModelState

LOAD_S = 30.0
"""Of loading a model, where the node does not say: a few GB from a slow disk. A guess."""
BRIDGE_S = 3.0
"""What it must save to send a request out of the mesh, by a bridge: it may cost money, and others read it. A guess."""
RTT_S = 0.002
"""Of a link on which nothing was measured yet."""
RETRY_S = 2.0
"""What a failed attempt costs: about as much as it takes to notice it."""
SHARE = 0.3
"""Of a step, that each further stream adds to it, where that is not told. On processors it is 0.2 to 0.6."""
LEAST = 1e-6
"""Of what is divided by, so that no peer's figures make an estimate infinite."""
_IDLE = ModelState("", b"", "ready")  # type: ignore[arg-type]  # no digest: of a record without a heartbeat


class Speed(NamedTuple):
    """What to take for a model that did not tell: seconds for a token read, and for a step of one stream."""

    read_s: float = 1 / 500
    step_s: float = 1 / 30


GUESS = Speed()
"""Where nobody told anything: a small model on a laptop."""


class Own(msgspec.Struct, frozen=True):
    """What we know of a candidate ourselves."""

    booked: int = 0
    """Requests that we sent there after it told its load, and their work alone in seconds."""
    booked_s: float = 0.0
    blocks: int = 0
    """Of the request's chain that we believe to be cached there."""
    failing: float = 0.0
    """Share of our attempts that failed there lately."""


UNKNOWN = Own()


class Estimate(msgspec.Struct, frozen=True):
    """In seconds. Their sum without `decode` is the time to the first token, with it the time to the end."""

    rtt: float
    wait: float
    load: float
    prefill: float
    decode: float
    penalty: float
    """Of what is not time: bridges, failures."""
    cached: float
    """Tokens of the prompt that need not be read; they are left out of `prefill`."""
    alone: float
    """What the request would take with nothing else there: the work that it is."""
    others: float
    """Seconds that the requests beside and behind it lose by it, together. No part of its own time, but of what it costs."""
    age: float
    """Of the load that this rests on."""
    first: float
    finish: float


def estimate(candidate: Candidate, ask: Ask, own: Own = UNKNOWN, *, now: float, unknown: Speed = GUESS) -> Estimate:
    """What `ask` would take at `candidate`; `unknown` stands in for what it has not measured."""
    load = candidate.load or _IDLE
    age = 0.0 if candidate.local else max(0.0, now - candidate.load_at)
    step = max(load.step_ms / 1000, LEAST) if load.step_ms else unknown.step_s
    more = load.stream_ms / step / 1000 if load.step_ms else SHARE
    read = 1 / max(load.prefill_per_s, LEAST) if load.prefill_per_s else unknown.read_s
    cached = min(own.blocks * ask.block_tokens, ask.prompt_tokens - 1) if own.blocks else 0.0
    prefill = load.prefill_ms / 1000 + (ask.prompt_tokens - cached) * read
    decode = ask.output_tokens * step
    alone = prefill + decode

    slots = load.slots or 1
    there = load.active + load.queued
    streams = min(slots, load.active) or 1
    left = load.remaining_ms / 1000 or there * alone
    if age and left:
        left = max(0.0, left - age * streams / (1 + more * (streams - 1)))
    left += own.booked_s
    there += own.booked
    streams = min(slots, there + 1)
    slower = 1 + more * (streams - 1)
    wait = left * slower / slots * (there - slots + 1) / there if there >= slots else 0.0
    if not wait and load.active and 0 < load.kv_free_tokens < ask.prompt_tokens - cached:
        wait = left * slower / streams / there  # until one of those that run has ended
    loading = 0.0
    if load.state == "available":
        loading = load.load_ms / 1000 or LOAD_S
    elif load.state == "loading":
        loading = max(0.0, (load.load_ms / 1000 or LOAD_S) - age)

    behind = slower / slots * (there - slots + 1) if there >= slots else 0.0
    others = alone * (more * (streams - 1) / slower + behind)
    prefill *= slower
    decode *= slower
    rtt = 0.0 if candidate.local else RTT_S if candidate.rtt_ms is None else candidate.rtt_ms / 1000
    penalty = own.failing * RETRY_S + (BRIDGE_S if candidate.origin else 0.0)
    first = rtt + wait + loading + prefill + penalty
    return Estimate(rtt, wait, loading, prefill, decode, penalty, cached, alone, others, age, first, first + decode)


def is_measured(candidate: Candidate) -> bool:
    load = candidate.load
    return load is not None and load.step_ms > 0 and load.prefill_per_s > 0


def best_told(candidates: Sequence[Candidate]) -> Speed:
    """The fastest that any candidate has measured, for those that have not: so they are tried, and then known."""
    rates = [load.prefill_per_s for candidate in candidates if (load := candidate.load) and load.prefill_per_s]
    steps = [load.step_ms for candidate in candidates if (load := candidate.load) and load.step_ms]
    return Speed(1 / max(rates) if rates else GUESS.read_s, min(steps) / 1000 if steps else GUESS.step_s)
