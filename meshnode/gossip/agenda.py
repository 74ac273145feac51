"""Which links have something to say, and when the next of them has something to do (pure).

A node of 64 hears and says hundreds of things a second, and each may ask when the next deadline is. So a link notes that it has
changed, and only what changed is looked at again. Deadlines are in a heap; an entry counts while it is its link's newest.

The heartbeats of all links go out together, so that a node wakes once for them and not once for each; those of different nodes do
not, for each draws when its first is.
"""

import random
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Protocol

from meshnode.gossip.effects import LinkId

HEARTBEAT_S = 1.0
"""One second of load at most is unknown to a router; 110 bytes and 67 us of processor at each end. Below 0.5 s CPU dominates."""
SLACK = 1024
"""So many outdated entries the heap may have, besides as many as there are links."""


class Item(Protocol):
    """What a link shows of itself."""

    id: LinkId
    closing: bool

    @property
    def ready(self) -> bool:
        """Whether it has something to say."""
        ...

    def deadline(self) -> float:
        """When it has something to do."""
        ...


class Agenda:
    """Of the links of one node."""

    def __init__(self, rng: random.Random) -> None:
        self._changed: dict[LinkId, Item] = {}
        self._ready: dict[LinkId, None] = {}
        self._at: dict[LinkId, float] = {}
        self._heap: list[tuple[float, LinkId]] = []
        self._beat = 0.0
        self._first_s = HEARTBEAT_S * (1 - rng.random() / 2)

    def restart_beat(self, at: float) -> None:
        """All links say a heartbeat at `at`, out of turn."""
        self._beat = at + HEARTBEAT_S

    def next_beat(self, now: float) -> float:
        """When a link that says its heartbeat now says the next: with the others, half of a period to a whole one from now."""
        if not now + HEARTBEAT_S / 2 < self._beat <= now + HEARTBEAT_S:
            self._beat = now + (HEARTBEAT_S if self._beat else self._first_s)
        return self._beat

    def changed(self, item: Item) -> None:
        """Look at it again before the next answer."""
        self._changed[item.id] = item

    def drop(self, link: LinkId) -> None:
        """It is gone."""
        self._changed.pop(link, None)
        self._ready.pop(link, None)
        self._at.pop(link, None)

    def ready(self) -> tuple[LinkId, ...]:
        self._look()
        return tuple(self._ready)

    def deadline(self) -> float:
        """The earliest of all."""
        self._look()
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else float("inf")

    def due(self, now: float) -> Iterator[LinkId]:
        """The links whose deadline has come, each once. They are to be looked at again."""
        while self.deadline() <= now:
            _, link = heappop(self._heap)
            del self._at[link]
            yield link

    def _look(self) -> None:
        for link, item in self._changed.items():
            if item.ready:
                self._ready[link] = None
            else:
                self._ready.pop(link, None)
            if item.closing:
                self._at.pop(link, None)
            elif self._at.get(link) != (at := item.deadline()):
                self._at[link] = at
                heappush(self._heap, (at, link))
        self._changed.clear()
        if len(self._heap) > 2 * len(self._at) + SLACK:
            self._heap = [(at, link) for link, at in self._at.items()]
            heapify(self._heap)
