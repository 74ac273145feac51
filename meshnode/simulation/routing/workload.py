"""Requests: lengths and arrivals fitted to public traces, and conversations whose prompts grow (pure).

The fits are of the Azure LLM inference traces of 2023 (conversation and code; CC-BY 4.0, Azure/AzurePublicDataset) and of the
conversation trace of Mooncake (FAST '25; Apache-2.0, kvcache-ai/Mooncake). Lengths are drawn from quantiles, with the logarithm
interpolated between them: their distributions have several peaks, which a log-normal one does not. Prompt and answer are drawn
apart, since their ranks hardly correlate (0.07, -0.02 and 0.07). Gaps between arrivals are Gamma distributed, and the rate
changes each minute, which together give the traces' dispersion.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType

import msgspec

BLOCK_TOKENS = 64
"""In a block of a prompt's chain."""
_SHARES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)


def chance(purpose: str) -> random.Random:
    """Random numbers for one purpose, the same in every run."""
    return random.Random(purpose)  # noqa: S311 - a simulation is to be repeatable


class Job(msgspec.Struct, frozen=True):
    """One request. `chain` stands for the blocks of its prompt, and is empty where prompts share nothing."""

    at: float
    prompt: int
    output: int
    chain: tuple[int, ...] = ()


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A fit: tokens at each of `_SHARES`, arrivals in a second, the coefficient of variation of their gaps, and the standard
    deviation of the rate from minute to minute, as a share of it."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    rate: float
    variation: float
    swing: float


TRACES: Mapping[str, Trace] = MappingProxyType(
    {
        "conversation": Trace(
            prompt=(2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 6179, 14050),
            output=(7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 954, 1000),
            rate=5.53,
            variation=1.09,
            swing=0.24,
        ),
        "code": Trace(
            prompt=(3, 17, 75, 147, 578, 1469, 2744, 5187, 7303, 7436, 7437, 7437),
            output=(6, 6, 6, 7, 9, 13, 24, 55, 90, 251, 825, 1899),
            rate=2.57,
            variation=13.2,
            swing=0.0,
        ),
        "long": Trace(
            prompt=(891, 894, 901, 964, 2306, 6909, 15367, 27367, 39550, 85400, 121300, 126195),
            output=(1, 3, 10, 24, 156, 350, 472, 597, 698, 1118, 2000, 2000),
            rate=3.4,
            variation=3.03,
            swing=0.0,
        ),
    }
)


def _between(quantiles: tuple[int, ...], share: float) -> int:
    place = min(bisect_right(_SHARES, share), len(_SHARES) - 1) - 1
    low, high = math.log(quantiles[place]), math.log(quantiles[place + 1])
    along = (share - _SHARES[place]) / (_SHARES[place + 1] - _SHARES[place])
    return max(1, round(math.exp(low + along * (high - low))))


def _arrivals(trace: Trace, rng: random.Random) -> Iterator[float]:
    now, minute, pace = 0.0, -1, 1.0
    shape = 1 / trace.variation**2
    while True:
        if int(now / 60) != minute:
            minute, pace = int(now / 60), max(0.2, rng.gauss(1.0, trace.swing))
        now += rng.gammavariate(shape, 1 / shape) / (trace.rate * pace)
        yield now


def traced(name: str) -> Callable[[random.Random], Iterator[Job]]:
    """The generator of the trace of that name."""
    trace = TRACES[name]

    def jobs(rng: random.Random) -> Iterator[Job]:
        for at in _arrivals(trace, rng):
            yield Job(at, _between(trace.prompt, rng.random()), _between(trace.output, rng.random()))

    return jobs


SYSTEM_PROMPTS = 12
NEW_SESSIONS_PER_S = 0.25
THINKING_S = 20.0
MORE_TURNS = 5.0
MAX_CHAIN = 250
READING_PER_S = 40
"""Tokens of an answer in a second, before which nobody goes on."""


def chat(rng: random.Random) -> Iterator[Job]:
    """Conversations: one of twelve system prompts, the first ones much more often (Zipf), then turns that send all before again.

    Questions and answers have the lengths of the conversation trace's answers and of what people type (log-normal fits).
    """
    prompts = [_blocks(rng.choice((4, 8, 16, 32)), rng) for _ in range(SYSTEM_PROMPTS)]
    weights = [1 / (rank + 1) for rank in range(SYSTEM_PROMPTS)]
    waiting: list[Job] = []
    now = 0.0
    while True:
        now += rng.expovariate(NEW_SESSIONS_PER_S)
        waiting.extend(_session(now, rng.choices(prompts, weights)[0], rng))
        waiting.sort(key=lambda job: job.at)
        ready = [job for job in waiting if job.at <= now]  # later sessions begin later, and so do their turns
        del waiting[: len(ready)]
        yield from ready


def _blocks(count: int, rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.getrandbits(64) for _ in range(count))


def _session(now: float, system: tuple[int, ...], rng: random.Random) -> Iterator[Job]:
    said = system
    for _ in range(1 + int(rng.expovariate(1 / MORE_TURNS))):
        asked = int(min(4000, rng.lognormvariate(4.6, 1.1))) + 1
        answer = int(min(1000, rng.lognormvariate(5.02, 0.86))) + 1
        said += _blocks(max(1, asked // BLOCK_TOKENS), rng)
        yield Job(now, len(said) * BLOCK_TOKENS + 10, answer, said)
        said += _blocks(max(1, answer // BLOCK_TOKENS), rng)
        now += rng.expovariate(1 / THINKING_S) + answer / READING_PER_S
        if len(said) > MAX_CHAIN:
            return


WORKLOADS: Mapping[str, Callable[[random.Random], Iterator[Job]]] = MappingProxyType(
    {"chat": chat, **{name: traced(name) for name in TRACES}}
)


def jobs(workload: str, count: int, *, seed: int, per_s: float) -> list[Job]:
    """The first `count` requests, in time, stretched so that `per_s` arrive in a second on average."""
    drawn = list(islice(WORKLOADS[workload](chance(f"{workload}:{seed}")), count))
    stretch = count / per_s / drawn[-1].at
    return [msgspec.structs.replace(job, at=job.at * stretch) for job in drawn]
