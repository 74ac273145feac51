"""Whether a remote may be asked: what its probes say, and a breaker for what its answers say (pure).

    unknown --answers--> ready --DOWN_AFTER failures, or one after an answer was lost--> down --UP_AFTER answers--> ready
       '--fails--> down            any --503--> warming --answers--> ready     '--for MAX_WARMING_S--> down

    closed --FAILURES in a row, or half of at least WINDOW--> open --OPEN_S--> half open --TRIALS_OK--> closed
                                                                '----------failure----------'
Numbers from Continuum Router, which Backend.AI's own routers use.
"""

import math
import random
from collections import deque
from enum import StrEnum

DOWN_AFTER = 3
UP_AFTER = 2
REFRESH_S = (15.0, 30.0)
RETRY_S = 2.0
"""After a failure, while it is not yet a verdict."""
DOWN_S = (5.0, 15.0)
WARMING_S = 1.0
MAX_WARMING_S = 300.0
FAILURES = 5
WINDOW = 10
OPEN_S = 60.0
TRIALS = 3
TRIALS_OK = 2


class State(StrEnum):
    UNKNOWN = "unknown"
    READY = "ready"
    WARMING = "warming"
    DOWN = "down"


class Health:
    """What the probes of one remote say. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self.state = State.UNKNOWN
        self.reason = "not asked yet"
        self._failures = 0
        self._answers = 0
        self._warming_since = math.inf

    def answered(self) -> None:
        self._failures = 0
        self._answers += 1
        if self.state is not State.DOWN or self._answers >= UP_AFTER:
            self.state, self.reason = State.READY, ""
            self._warming_since = math.inf

    def failed(self, reason: str, *, confirmed: bool = False) -> None:
        """`confirmed`: an answer was lost as well, so there is nothing more to wait for."""
        self._answers = 0
        self._failures += 1
        self.reason = reason
        if confirmed or self.state is not State.READY or self._failures >= DOWN_AFTER:
            self.state = State.DOWN

    def warming(self, reason: str, now: float) -> None:
        """It is there, and not ready yet."""
        self._answers = 0
        self._warming_since = min(self._warming_since, now)
        self.reason = reason
        self.state = State.WARMING if now - self._warming_since < MAX_WARMING_S else State.DOWN

    def pause(self, rng: random.Random) -> float:
        """How long to wait before the next probe."""
        match self.state:
            case State.WARMING:
                return WARMING_S
            case State.DOWN:
                return rng.uniform(*DOWN_S) if self._answers == 0 else RETRY_S
            case State.READY if self._failures:
                return RETRY_S
            case _:
                return rng.uniform(*REFRESH_S)


class Breaker:
    """Fails fast where answers failed often: each counts, whatever the probes say."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._in_a_row = 0
        self._open_until = -math.inf
        self._half_open = False
        self._trials = 0
        self._trials_ok = 0

    def is_open(self, now: float) -> bool:
        return now < self._open_until

    def admits(self, now: float) -> bool:
        """Whether a request may be tried; after a while of none, a few may."""
        if self.is_open(now):
            return False
        return not self._half_open or self._trials < TRIALS

    def began(self) -> None:
        self._trials += self._half_open

    def ended(self, *, ok: bool, now: float) -> None:
        if self._half_open:
            self._trials = max(0, self._trials - 1)
            self._trials_ok = self._trials_ok + 1 if ok else 0
            if not ok:
                self._open(now)
            elif self._trials_ok >= TRIALS_OK:
                self._half_open = False
            return
        self._recent.append(ok)
        self._in_a_row = 0 if ok else self._in_a_row + 1
        if self._in_a_row >= FAILURES or (len(self._recent) == WINDOW and self._recent.count(False) * 2 >= WINDOW):
            self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + OPEN_S
        self._half_open = True
        self._trials = self._trials_ok = self._in_a_row = 0
        self._recent.clear()
