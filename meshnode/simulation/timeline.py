"""Simulated time: events in order, chance by purpose, and a hash over all that happened (pure).

Time is whole microseconds, so that no sum depends on the order of its terms. Events at the same time happen in the order in which
they were planned. Chance is forked from one seed by name (`fork`): a further draw in one place moves nothing elsewhere. The trace
hash covers every delivered message and every verdict; equal hashes of two runs mean that the same happened.
"""

import hashlib
import random
from collections.abc import Callable
from heapq import heappop, heappush

SECOND = 1_000_000
Action = Callable[..., None]


def fork(seed: int, name: str) -> random.Random:
    """Its own stream of chance for each purpose; seeded by text, so it does not depend on the hashes of Python's strings."""
    return random.Random(f"{seed}/{name}")  # noqa: S311 - a simulation has to be repeatable


class Timeline:
    """The queue of events."""

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        """Carried out so far."""
        self._queue: list[tuple[int, int, Action, tuple[object, ...]]] = []
        self._count = 0
        self._trace = hashlib.blake2b(digest_size=16)

    @property
    def seconds(self) -> float:
        return self.now / SECOND

    @property
    def trace(self) -> str:
        """The hash of what was noted so far."""
        return self._trace.hexdigest()

    def at(self, time: int, action: Action, *args: object) -> None:
        self._count += 1
        heappush(self._queue, (time, self._count, action, args))

    def after(self, delay: int, action: Action, *args: object) -> None:
        self._count += 1
        heappush(self._queue, (self.now + delay, self._count, action, args))

    def note(self, who: int, what: bytes) -> None:
        self._trace.update(b"%d %d %d " % (self.now, who, len(what)) + what)

    def run(self, until: int) -> None:
        """Everything up to and including `until`."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, action, args = heappop(queue)
            self.events += 1
            action(*args)
        self.now = until
