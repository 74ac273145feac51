"""How many threads a model computes with, adapted to who else uses the machine (pure).

ggml's threads meet at a barrier after each operation and spin there. So on a machine of their own all of them are on a core all
the time, and the processor time of a step is its duration times their number. What is missing of that was taken by somebody
else, and then all wait for the thread that was put aside, some thousand times a second: on two cores, two threads were measured
to be half as fast as one beside one busy neighbour, and a tenth as fast beside six. A neighbour takes half of a core from the
thread that shares it; so twice what is missing is how many threads have a neighbour, and that many fewer have none.

That is where to look, and no proof: a neighbour that comes and goes costs less than a thread is worth. So fewer threads are on
trial for a moment, and stay if like steps are faster with them; else the next look is later, and ever later while that fails. The
same holds for one thread more, which is tried now and then.
"""

import math

WINDOW_S = 0.1
"""A decision is made on steps that take so long together: some slices of the scheduler."""
MISSING = 0.25
"""Cores' worth of processor time whose lack is not ignored: half of what one neighbour takes. A guess, as the next one."""
MISSING_PART = 0.03
"""The same as a part of all, where there are many threads: each loses a little to the system."""
GAIN = 0.97
"""Of the duration before, at most, for another number to stay: less is noise."""
TRIAL_S = 1.0
"""A trial in which too few steps were like those before has shown nothing."""
FIRST_PAUSE_S = 2.0
MAX_PAUSE_S = 32.0
"""Until the next trial of that kind. One that fails costs a window, or one slow step: 5 % at first, then 0.3 %."""


class _Trials:
    """When to try again, in one direction."""

    def __init__(self) -> None:
        self.due = float("-inf")
        self._pause = FIRST_PAUSE_S

    def failed(self, now: float) -> None:
        self.due = now + self._pause
        self._pause = min(2 * self._pause, MAX_PAUSE_S)

    def restart(self, due: float) -> None:
        self.due, self._pause = due, FIRST_PAUSE_S


class ThreadCount:
    """`count` is for the next step; `limit` is what the machine, the model and the other models leave. Times in seconds."""

    def __init__(self, limit: int) -> None:
        self.count = self._limit = max(1, limit)
        self._fewer, self._more = _Trials(), _Trials()
        self._before: int | None = None
        """The number before a trial, while there is one."""
        self._paces: dict[int, float] = {}
        """Seconds of a step with `count` threads lately, by the magnitude of its rows."""
        self._wall = self._cpu = self._expected = self._took = 0.0

    def set_limit(self, limit: int) -> None:
        """From now on at most `limit`; a new share is used at once."""
        if max(1, limit) != self._limit:
            self.count = self._limit = max(1, limit)
            self._fewer, self._more, self._before, self._paces = _Trials(), _Trials(), None, {}
            self._wall = self._cpu = 0.0

    def observe(self, *, rows: int, wall: float, cpu: float, now: float) -> None:
        """A step of so many rows with `count` threads took `wall` seconds, and `cpu` seconds of the process."""
        kind = rows.bit_length()
        if self._before is not None:
            self._wall += wall
            if kind in self._paces:
                self._expected += self._paces[kind]
                self._took += wall
            if self._took >= WINDOW_S or self._wall >= TRIAL_S:
                self._judge(self._before, now)
            return
        memory = math.exp(-2 * wall / WINDOW_S)
        self._paces[kind] = memory * self._paces.get(kind, wall) + (1 - memory) * wall
        self._wall += wall
        self._cpu += cpu
        if self._wall >= WINDOW_S:
            self._look(self.count - self._cpu / self._wall, now)

    def _look(self, missing: float, now: float) -> None:
        """Begin a trial if there is reason to."""
        self._wall = self._cpu = 0.0
        if self.count > 1 and missing > max(MISSING, MISSING_PART * self.count) and now >= self._fewer.due:
            self._try(max(1, min(round(self.count - 2 * missing), self.count - 1)))
        elif self.count < self._limit and now >= self._more.due:
            self._try(self.count + 1)

    def _try(self, count: int) -> None:
        self._before, self.count = self.count, count
        self._expected = self._took = 0.0

    def _judge(self, before: int, now: float) -> None:
        """The trial is over."""
        tried, back = (self._more, self._fewer) if self.count > before else (self._fewer, self._more)
        if self._took < GAIN * self._expected:
            tried.restart(now)
            back.restart(now + FIRST_PAUSE_S)
            self._paces = {}
        else:
            tried.failed(now)
            self.count = before
        self._before, self._wall, self._cpu = None, 0.0, 0.0
