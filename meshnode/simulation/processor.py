"""When a process gets to do what it has to do: its clock, its speed, and whether it is stopped (pure).

Work waits in one queue: a socket to read from, or a tick of the engine. A healthy process does it at once. A slow one takes its
time for each. A stopped one does nothing, and afterwards everything in one go, the tick before or after what came: trio leaves
the order to chance, so it is left to chance here.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from meshnode.simulation.tcp import Socket
from meshnode.simulation.timeline import SECOND, Action, Timeline

REST_US = 10_000
"""At least between two ticks, as in `mesh/mesh.py`."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A monotonic clock: starts at `offset` seconds, and runs at `rate`."""

    offset: float = 0.0
    rate: float = 1.0

    def read(self, now: int) -> float:
        return self.offset + now * self.rate / SECOND

    def when(self, time: float) -> int:
        """The first microsecond at which it shows `time`."""
        at = max(0, int((time - self.offset) * SECOND / self.rate))
        while self.read(at) < time:
            at += 1
        return at


class Processor:
    """`work` does one piece (None: a tick) and returns how many times the usual effort it took."""

    def __init__(self, timeline: Timeline, rng: random.Random, work: Callable[[Socket | None], int]) -> None:
        self.is_stopped = False
        self.is_ended = False
        self.work_us = 0
        """The usual effort."""
        self._timeline = timeline
        self._rng = rng
        self._work = work
        self._queue: deque[Socket | None] = deque()
        self._busy_until = 0
        self._is_waiting = False
        self._late: list[tuple[Action, tuple[object, ...]]] = []
        """What came due while the process was stopped."""
        self._tick_at: int | None = None
        self._is_tick_late = False
        self._ticked = -REST_US

    def read(self, socket: Socket, pieces: int = 1) -> None:
        """There is something to read."""
        self._queue.extend([socket] * pieces)
        self._go()

    def tick(self, at: int) -> None:
        """A tick is due then; an earlier one that is planned does for it."""
        at = max(at, self._ticked + REST_US, self._timeline.now)
        if self._tick_at is None or at < self._tick_at:
            self._tick_at = at
            self._timeline.at(at, self._tick_due, at)

    def do(self, action: Action, *args: object) -> None:
        """Now, or when the process runs again."""
        if self.is_stopped:
            self._late.append((action, args))
        elif not self.is_ended:
            action(*args)

    def after(self, delay: int, action: Action, *args: object) -> None:
        self._timeline.after(delay, self.do, action, *args)

    def stop(self) -> None:
        self.is_stopped = True

    def resume(self) -> None:
        self.is_stopped = False
        late, self._late = self._late, []
        if self._is_tick_late:
            self._is_tick_late = False
            self._queue.insert(0 if self._rng.random() < 0.5 else len(self._queue), None)
        for action, args in late:
            self._timeline.after(0, self.do, action, *args)
        self._go()

    def end(self) -> None:
        self.is_ended = True
        self._queue.clear()
        self._late.clear()

    def _tick_due(self, at: int) -> None:
        if at != self._tick_at:
            return
        self._tick_at = None
        if self.is_stopped:
            self._is_tick_late = True
        else:
            self._queue.append(None)
            self._go()

    def _go(self) -> None:
        """Do what waits, now or when the processor is free."""
        while self._queue and not self.is_ended and not self.is_stopped:
            if self._timeline.now < self._busy_until:
                if not self._is_waiting:
                    self._is_waiting = True
                    self._timeline.at(self._busy_until, self._free)
                return
            item = self._queue.popleft()
            if item is None:
                self._ticked = self._timeline.now
            self._busy_until = self._timeline.now + self.work_us * self._work(item)

    def _free(self) -> None:
        self._is_waiting = False
        self._go()
