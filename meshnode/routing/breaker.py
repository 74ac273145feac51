"""Whether a model of a peer may be asked at all, after what our attempts there came to (pure).

    closed --3 failures in a row, half of at least 5 in 30 s, or one silence--> open
    open --5 s, doubled each time up to 60 s--> half-open
    half-open --the one attempt that it allows served--> closed; failed--> open; busy or given up--> half-open, for another

A node that is busy or refuses for a reason of its own is not broken: such answers are states, and count as neither. A node that
fails at once looks idle, hence attractive: it costs a penalty from the first failure on (`failing`), before the breaker opens.
"""

from collections import deque
from enum import StrEnum
from typing import assert_never

IN_A_ROW = 3
LEAST = 5
WINDOW_S = 30.0
BAD_SHARE = 0.5
FIRST_S = 5.0
LONGEST_S = 60.0
"""A node that restarts is back within seconds; one that does not come back costs one attempt a minute."""
MAX_SEEN = 64
"""Outcomes remembered."""


class Outcome(StrEnum):
    SERVED = "served"
    """It brought a first token."""
    FAILED = "failed"
    """The connection, the node or its worker broke."""
    SILENT = "silent"
    """It said nothing for so long that it must be stuck. To ask it again costs as long each time, so one is enough."""
    BUSY = "busy"
    """It refused for now, by what it has to do or is loading."""
    GIVEN_UP = "given up"
    """We wanted no more of it, or the request was at fault."""


class Mode(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Of one holder. Every `begin` is followed by one `end`."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, bool]] = deque(maxlen=MAX_SEEN)
        """When, and whether it served; since the breaker last closed."""
        self._opened = 0
        """Times since it was last closed."""
        self._until = 0.0
        self._probing = False

    def mode(self, now: float) -> Mode:
        if not self._opened:
            return Mode.CLOSED
        return Mode.OPEN if now < self._until else Mode.HALF_OPEN

    def allows(self, now: float) -> bool:
        mode = self.mode(now)
        return mode is Mode.CLOSED or (mode is Mode.HALF_OPEN and not self._probing)

    def failing(self, now: float) -> float:
        """The share of failures among the attempts of the last 30 s."""
        recent = [served for at, served in self._seen if at > now - WINDOW_S]
        return recent.count(False) / len(recent) if recent else 0.0

    def retry_at(self) -> float:
        """When an open one is half-open."""
        return self._until

    def is_idle(self, now: float) -> bool:
        """Whether it remembers nothing that matters any more, so that it may be dropped."""
        return not self._opened and not any(at > now - WINDOW_S for at, _ in self._seen)

    def begin(self, now: float) -> None:
        """An attempt begins, whatever `allows` said: where every candidate is barred, one is tried all the same."""
        self._probing = self._probing or self.mode(now) is not Mode.CLOSED

    def end(self, outcome: Outcome, now: float) -> None:
        probe, self._probing = self._probing, False
        match outcome:
            case Outcome.SERVED:
                if self._opened:
                    self._opened = 0
                    self._seen.clear()
                self._seen.append((now, True))
            case Outcome.FAILED | Outcome.SILENT:
                self._seen.append((now, False))
                if probe or outcome is Outcome.SILENT or self._is_bad(now):
                    self._open(now)
            case Outcome.BUSY | Outcome.GIVEN_UP:
                pass
            case _:
                assert_never(outcome)

    def _is_bad(self, now: float) -> bool:
        recent = [served for at, served in self._seen if at > now - WINDOW_S]
        row = recent[-IN_A_ROW:]
        if len(row) == IN_A_ROW and not any(row):
            return True
        return len(recent) >= LEAST and recent.count(False) >= BAD_SHARE * len(recent)

    def _open(self, now: float) -> None:
        if self.mode(now) is Mode.OPEN:
            return  # attempts that began before fail now, and say nothing new
        self._until = now + min(LONGEST_S, FIRST_S * 2**self._opened)
        self._opened = min(self._opened + 1, 10)
