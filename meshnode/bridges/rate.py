"""How often a manager may be asked, by what it says of its limit (pure).

A key pair has so many calls in each window of 15 minutes, 10,000 by default and 30 for a careful administrator, and its owner
needs some of them. So a bridge takes half of the limit at most, shared with the other bridges that see the same cluster, and
slows down further when somebody else uses the limit up.
"""

import math
import random
from collections.abc import Mapping

BASE_S = (15.0, 30.0)
BACKOFF_S = 60.0
MAX_S = 900.0
_SHARE = 0.5
_RESERVE = 0.2
"""Of the limit: with less left than this, what is left is spread over the rest of the window."""


class Rate:
    """What the last answers said. Numbers of a manager are not trusted further than that they make us slower."""

    def __init__(self) -> None:
        self._limit = math.inf
        self._remaining = math.inf
        self._window = MAX_S
        self._reset = MAX_S
        self._refusals = 0

    def answered(self, headers: Mapping[str, str]) -> None:
        """The headers, in lower case, of an answer that was none of 429."""
        self._refusals = 0
        self._limit = max(1.0, _number(headers.get("x-ratelimit-limit"), math.inf))
        self._remaining = _number(headers.get("x-ratelimit-remaining"), math.inf)
        self._window = min(max(1.0, _number(headers.get("x-ratelimit-window"), MAX_S)), 4 * MAX_S)
        self._reset = min(_number(headers.get("x-ratelimit-reset"), self._window), self._window)

    def refused(self) -> None:
        """A 429, which on old managers has no headers at all."""
        self._refusals += 1

    def pause(self, calls: int, rng: random.Random, *, bridges: int = 1) -> float:
        """Seconds until the next refresh, which takes `calls` calls; `bridges` see the same cluster, this one included."""
        bridges, calls = max(1, bridges), max(1, calls)
        wanted = rng.uniform(*BASE_S) * bridges
        if self._refusals:
            return min(max(wanted, BACKOFF_S * 2.0 ** (min(self._refusals, 8) - 1)), MAX_S) * rng.uniform(1.0, 1.2)
        fair = self._window * calls * bridges / (self._limit * _SHARE)
        scarce = self._reset * calls / max(self._remaining - calls, 1.0) if self._remaining < self._limit * _RESERVE else 0.0
        return max(wanted, min(max(fair, scarce), MAX_S * bridges) * rng.uniform(1.0, 1.2))


def _number(text: str | None, default: float) -> float:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else default
