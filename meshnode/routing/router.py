"""Where the requests of this node go: one policy, and all that its choices and their outcomes teach (pure).

For each attempt: `choose`, then `begin`, which books it at once, then `end` with its outcome, whatever happened in between.
"""

import random
from collections.abc import Sequence

import msgspec

from meshnode.inference import Request
from meshnode.names import ModelDigest
from meshnode.routing.ask import Ask, ask_of
from meshnode.routing.bookings import Booking
from meshnode.routing.breaker import Outcome
from meshnode.routing.budget import RetryBudget
from meshnode.routing.explain import Explanation, explain
from meshnode.routing.knowledge import Knowledge, usable
from meshnode.routing.policy import Choice, Policy
from meshnode.routing.table import Candidate

USUAL_OUTPUT = 200.0
"""Tokens of an answer, before any has been seen: the mean of the public traces of conversations is 211."""
LENGTH_MEMORY = 0.95
"""Weight of the past in the mean length of answers; some twenty of them."""
MAX_LENGTHS = 1024


class Attempt(msgspec.Struct, frozen=True, eq=False):
    """One that is under way. `first_s` is the time to the first token that was estimated; None: the policy makes no estimate."""

    candidate: Candidate
    booking: Booking
    first_s: float | None


class Router:
    """Times are seconds on one clock, that of the members' `load_at`."""

    def __init__(self, *, policy: Policy, rng: random.Random) -> None:
        self.known = Knowledge()
        self.budget = RetryBudget()
        self._policy = policy
        self._rng = rng
        self._lengths: dict[ModelDigest | str, float] = {}

    def ask(self, request: Request, digest: ModelDigest) -> Ask:
        """`request` in figures."""
        return ask_of(request, digest, usual_output=self.usual_output(digest or request.model))

    def usual_output(self, model: ModelDigest | str) -> float:
        """Tokens of an answer, on average."""
        return self._lengths.get(model, USUAL_OUTPUT)

    def choose(self, candidates: Sequence[Candidate], ask: Ask, *, now: float) -> Choice | None:
        """None when there is nobody."""
        if not candidates:
            return None
        return self._policy(usable(candidates, ask, self.known, now=now), ask, self.known, now=now, rng=self._rng)

    def explain(self, candidates: Sequence[Candidate], ask: Ask, *, now: float) -> Explanation | None:
        """What `choose` would do now, with every candidate's estimate."""
        state = self._rng.getstate()
        choice = self.choose(candidates, ask, now=now)
        self._rng.setstate(state)  # to ask why is not to draw
        return explain(candidates, ask, self.known, choice, now=now) if choice else None

    def begin(self, choice: Choice, ask: Ask, *, now: float) -> Attempt:
        """Count the attempt against its node before any gossip can tell, and its prompt as cached there."""
        holder, found = choice.candidate.holder, choice.estimate
        self.known.turn += 1
        self.known.begin(holder, now)
        self.known.prefixes.place(holder, ask.chain, now)
        booking = self.known.bookings.book(holder, work_s=found.alone if found else 0.0, now=now)
        return Attempt(choice.candidate, booking, found.first if found else None)

    def end(self, attempt: Attempt, outcome: Outcome, *, now: float) -> None:
        holder = attempt.candidate.holder
        self.known.bookings.release(holder, attempt.booking)
        self.known.end(holder, outcome, now)

    def learn_length(self, model: ModelDigest | str, tokens: int) -> None:
        """An answer of the model, by its digest or, without one, its name, had so many tokens."""
        past = self._lengths.pop(model, USUAL_OUTPUT)
        self._lengths[model] = LENGTH_MEMORY * past + (1 - LENGTH_MEMORY) * tokens
        if len(self._lengths) > MAX_LENGTHS:
            del self._lengths[next(iter(self._lengths))]
