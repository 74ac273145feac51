"""Who is served next: in what order sequences get slots, are read, and give way (pure).

One number orders the queue, the moment at which a sequence is due: when it came, later by `PATIENCE_S` for each class of priority
below the first. It never changes, so all age alike, and nobody is overtaken for ever: whoever comes later than that is behind.

Prompts are read by a like number, later still by `STRETCH` times what is left to read. So a short one overtakes a long one, which
waits at most for about that many times its own length.
"""

from collections.abc import Iterable, Sequence

from meshnode.inference import Priority
from meshnode.worker.generation import Choice

PATIENCE_S = 30.0
"""What a class of priority is worth in waiting. A guess: a person gives up after about a minute, a batch does not."""
STRETCH = 3.0
"""A guess: the shortest first without bound would be the best on average, and unfair."""
EXPECTED = 256
"""Tokens of an answer whose length nobody limited: a guess of a usual one. A longer one takes free room, or others give way."""


def due(submitted: float, priority: Priority) -> float:
    """The moment that orders the queue."""
    return submitted + PATIENCE_S * priority


def rows(active: Iterable[Choice]) -> tuple[list[Choice], list[Choice]]:
    """Those of which one token is missing, in the order given; and those that are still read."""
    decoding: list[Choice] = []
    reading: list[Choice] = []
    for choice in active:
        (decoding if choice.missing == 1 else reading).append(choice)
    return decoding, reading


def pieces(reading: Sequence[Choice], room: int, rate: float) -> list[tuple[Choice, int]]:
    """What of the prompts `reading` is read in the next step, `room` tokens in all. `rate` is of tokens read in a second."""
    found: list[tuple[Choice, int]] = []
    for choice in sorted(reading, key=lambda choice: choice.due + STRETCH * choice.missing / max(rate, 1.0)):
        if room <= 0:
            break
        found.append((choice, min(room, choice.missing)))
        room -= found[-1][1]
    return found


def booked(choice: Choice, share: int) -> int:
    """Room that a sequence is admitted with, in tokens. `share` is what each slot would have of the pool in equal parts.

    A limit beyond that part is seldom reached, and many clients always send a large one: it is not believed.
    """
    prompt = len(choice.generation.job.prompt)
    expected = EXPECTED if choice.generation.job.max_tokens is None else max(EXPECTED, share - prompt)
    return max(prompt + min(choice.limit, expected), len(choice.tokens) + 1)


def remaining_s(choices: Iterable[Choice], *, prefill_rate: float, step_s: float) -> float:
    """Seconds that `choices` still need one after the other, their answers as long as usual; what is not known counts nothing.

    `prefill_rate` is in tokens read in a second, `step_s` a step with one stream.
    """
    read = drawn = 0
    for choice in choices:
        read += choice.missing - 1
        drawn += max(1, min(choice.limit, EXPECTED) - choice.drawn)
    return (read / prefill_rate if prefill_rate else 0.0) + drawn * step_s


def victim(active: Sequence[Choice]) -> Choice:
    """Who gives way when the KV cache is full: the last one due, so the youngest of the lowest priority, and never the first."""
    return max(active, key=lambda choice: (choice.due, choice.generation.job.stream, choice.sampler.choice))
