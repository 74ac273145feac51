"""How many threads a model computes with, adapted to who else uses the machine (pure).

ggml's threads meet at a barrier after each operation and spin there. So on a machine of their own all of them are on a core all
the time, and the processor time of a step is its duration times their number. What is missing of that was taken by somebody
else, and then all wait for the thread that was put aside, some thousand times a second: on two cores, two threads were measured
to be half as fast as one beside one busy neighbour, and a tenth as fast beside six. A neighbour takes half of a core from the
thread that shares it; so twice what is missing is how many threads have a neighbour, and that many fewer have none. Where that
leaves nobody, one remains, which waits for nobody. One thread more is tried now and then, ever more seldom while that fails.
"""

WINDOW_S = 0.1
"""A decision is made on steps that take so long together: some slices of the scheduler."""
MISSING = 0.25
"""Cores' worth of processor time whose lack is not ignored: half of what one neighbour takes. A guess, as the next one."""
MISSING_PART = 0.03
"""The same as a part of all, where there are many threads: each loses a little to the system."""
FIRST_PAUSE_S = 2.0
MAX_PAUSE_S = 32.0
"""Until the next try with one more. One that fails costs a window, or one slow step: 5 % at first, then 0.3 %."""


class ThreadCount:
    """`count` is for the next step; `limit` is what the machine, the model and the other models leave. Times in seconds."""

    def __init__(self, limit: int) -> None:
        self.count = self._limit = max(1, limit)
        self._pause = FIRST_PAUSE_S
        self._next_try = float("-inf")
        self._trying = False
        self._begin()

    def set_limit(self, limit: int) -> None:
        """From now on at most `limit`; a new share is used at once."""
        if max(1, limit) != self._limit:
            self.count = self._limit = max(1, limit)
            self._trying = False
            self._begin()

    def observe(self, *, wall: float, cpu: float, now: float) -> None:
        """A step with `count` threads took `wall` seconds, and `cpu` seconds of the process."""
        self._wall += wall
        self._cpu += cpu
        if self._wall < WINDOW_S:
            return
        missing = self.count - self._cpu / self._wall
        self._begin()
        if self.count > 1 and missing > max(MISSING, MISSING_PART * self.count):
            self._give_way(round(self.count - 2 * missing), now)
        elif self.count < self._limit and (self._trying or now >= self._next_try):
            self.count += 1
            self._trying = True
        else:
            self._trying = False

    def _give_way(self, alone: int, now: float) -> None:
        """So many of the threads have no neighbour."""
        self._pause = min(2 * self._pause, MAX_PAUSE_S) if self._trying else FIRST_PAUSE_S
        self._next_try = now + self._pause
        self._trying = False
        self.count = max(1, min(alone, self.count - 1))

    def _begin(self) -> None:
        """Another window."""
        self._wall = self._cpu = 0.0
