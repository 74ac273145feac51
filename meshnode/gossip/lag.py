"""How much our own judgement of others is worth: a node that is slow itself finds everybody slow (pure; Lifeguard).

Source: Dadgar, Phillips, Currey: Lifeguard: local health awareness for more accurate failure detection (2017). There the score
grows with missed acknowledgements and refuted suspicions; here it is measured: how late our own deadlines are served.
"""

LATE_S = 0.5
"""Later than a busy event loop is; a round of the shell takes 10 ms."""
STALL_S = 2.0
"""So late means stopped (a suspended laptop, a debugger): nobody was silent but we."""
MAX_SCORE = 7
CLEAN_S = 5.0


class Lag:
    """A score from 0, healthy, to 7. Waits before a verdict about others are multiplied by `factor`."""

    def __init__(self) -> None:
        self._score = 0
        self._better_at = float("-inf")

    @property
    def factor(self) -> int:
        return 1 + self._score

    def served(self, late: float, now: float) -> bool:
        """A deadline was served `late` seconds after its time. Whether we were stopped meanwhile."""
        if late > LATE_S:
            self._score, self._better_at = min(MAX_SCORE, self._score + 1), now + CLEAN_S
        elif self._score and now >= self._better_at:
            self._score, self._better_at = self._score - 1, now + CLEAN_S
        return late > STALL_S
