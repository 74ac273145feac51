"""What this node knows of the others by its own dealings with them, beside what they tell (pure)."""

from collections.abc import Sequence

from meshnode.routing.ask import Ask
from meshnode.routing.bookings import Bookings
from meshnode.routing.breaker import Breaker, Mode, Outcome
from meshnode.routing.estimate import UNKNOWN, Own
from meshnode.routing.prefixes import Prefixes
from meshnode.routing.table import Candidate, Holder

MAX_BREAKERS = 1024


class Knowledge:
    """`turn` counts the choices made, which is all that round robin needs."""

    def __init__(self) -> None:
        self.bookings = Bookings()
        self.prefixes = Prefixes()
        self.turn = 0
        self._breakers: dict[Holder, Breaker] = {}

    def own(self, candidate: Candidate, ask: Ask, now: float) -> Own:
        """All of it that an estimate takes into account."""
        holder = (candidate.node, candidate.model)
        booked, work = self.bookings.since(holder, candidate.load_at)
        blocks = 0
        if ask.chain:
            if candidate.sketch:
                self.prefixes.hear(holder, *candidate.sketch)
            blocks = self.prefixes.blocks(holder, ask.chain)
        breaker = self._breakers.get(holder)
        if not booked and not blocks and not breaker:
            return UNKNOWN
        return Own(booked, work, blocks, breaker.failing(now) if breaker else 0.0)

    def open(self, candidate: Candidate) -> int:
        return self.bookings.open(candidate.holder)

    def allowed(self, candidates: Sequence[Candidate], now: float) -> Sequence[Candidate]:
        """Those that no breaker bars."""
        barred = {holder for holder, breaker in self._breakers.items() if not breaker.allows(now)}
        return [candidate for candidate in candidates if candidate.holder not in barred] if barred else candidates

    def mode(self, holder: Holder, now: float) -> Mode:
        """Of its breaker."""
        breaker = self._breakers.get(holder)
        return breaker.mode(now) if breaker else Mode.CLOSED

    def begin(self, holder: Holder, now: float) -> None:
        if breaker := self._breakers.get(holder):
            breaker.begin(now)

    def end(self, holder: Holder, outcome: Outcome, now: float) -> None:
        """Of an attempt. One that broke may have lost its cache."""
        breaker = self._breakers.get(holder)
        if outcome in {Outcome.FAILED, Outcome.SILENT}:
            self.prefixes.forget(holder)
            if breaker is None:
                self._make_room(now)
                breaker = self._breakers[holder] = Breaker()
        if breaker:
            breaker.end(outcome, now)

    def _make_room(self, now: float) -> None:
        """Only failures make breakers, and whoever fails costs us an attempt: so this bound is seldom met."""
        if len(self._breakers) >= MAX_BREAKERS:
            self._breakers = {holder: breaker for holder, breaker in self._breakers.items() if not breaker.is_idle(now)}
        while len(self._breakers) >= MAX_BREAKERS:
            del self._breakers[next(iter(self._breakers))]


def usable(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, *, now: float) -> Sequence[Candidate]:
    """Those that may be asked; where a rule leaves nobody, the rule is dropped, for a node that may fail beats a sure refusal."""
    least = ask.prompt_tokens / CONTEXT_DOUBT  # as in `fits`, which would cost half as much as the estimates
    fitting = [each for each in candidates if not each.context_length or each.context_length >= least] or candidates
    return known.allowed(fitting, now) or fitting


def fits(candidate: Candidate, ask: Ask) -> bool:
    """Whether the prompt fits its context. Doubtful ones, for we only guess the tokens, are asked: the node knows."""
    return not candidate.context_length or candidate.context_length >= ask.prompt_tokens / CONTEXT_DOUBT


CONTEXT_DOUBT = 1.3
"""How far our guess of the tokens may be above the truth."""
