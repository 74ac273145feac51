"""How many second tries this node may make (pure): when everything fails, trying again everywhere is what keeps it failing."""

SHARE = 0.1
"""Second tries for each request: rare failures are always covered, and a broken mesh gets a tenth more load and no more."""
PER_S = 0.2
"""And so many besides, so that somebody who asks once a minute is covered too."""
BURST = 20.0
"""A node that dies takes all its requests with it at once."""


class RetryBudget:
    """A token bucket that starts full and is filled by requests and by time."""

    def __init__(self) -> None:
        self._left = BURST
        self._at = 0.0

    def request(self, now: float) -> None:
        """A request came; its first try costs nothing."""
        self._fill(SHARE, now)

    def take(self, now: float) -> bool:
        """Whether there may be another try."""
        self._fill(0.0, now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _fill(self, more: float, now: float) -> None:
        self._left = min(BURST, self._left + more + PER_S * max(0.0, now - self._at))
        self._at = now
