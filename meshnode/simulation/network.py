"""The LAN: which packet from one host gets to another, and when (pure).

Hosts have numbers. A packet takes the time that the sender's cable needs for its bytes, and a latency drawn anew for each: a
least one and an exponential rest, so that packets on one way can overtake each other (TCP puts them in order again). It is lost
by chance, or because its way is blocked. Blocking is for each direction of each pair: a partition is a set of blocked pairs.

Guesses: 0.2 ms and a mean of 0.3 ms more, which is a LAN with a switch and a wireless client or two; 1 Gbit/s at each host.
"""

import math
import random
from collections.abc import Iterable

from meshnode.simulation.timeline import SECOND, Timeline

LATENCY_US = 200
JITTER_US = 300
BITS_PER_S = 1_000_000_000
SEGMENT = 1448
"""Bytes of TCP in one Ethernet frame, with timestamps."""
HEADERS = 66
"""Ethernet, IPv4 and TCP with timestamps."""


class Network:
    """Also knows which hosts have power."""

    def __init__(self, timeline: Timeline, rng: random.Random) -> None:
        self.loss = 0.0
        self.latency = LATENCY_US
        self.jitter = JITTER_US
        self.bits_per_s = BITS_PER_S
        self.packet_bytes = 0
        self.dead: set[int] = set()
        """Hosts without power."""
        self._timeline = timeline
        self._rng = rng
        self._blocked: dict[tuple[int, int], int] = {}
        """How many faults block this way."""
        self._slow: dict[int, int] = {}
        self._free_at: dict[int, int] = {}

    def block(self, ways: Iterable[tuple[int, int]]) -> None:
        for way in ways:
            self._blocked[way] = self._blocked.get(way, 0) + 1

    def unblock(self, ways: Iterable[tuple[int, int]]) -> None:
        for way in ways:
            if self._blocked.get(way, 0) > 1:
                self._blocked[way] -= 1
            else:
                self._blocked.pop(way, None)

    def slow_down(self, host: int, bits_per_s: int) -> None:
        self._slow[host] = bits_per_s

    def passes(self, source: int, target: int) -> bool:
        """Whether anything gets from `source` to `target` at all."""
        return (source, target) not in self._blocked and source not in self.dead and target not in self.dead

    def delay(self, source: int, target: int, size: int) -> int | None:
        """How long `size` bytes in one go take, in microseconds; None when some of it is lost."""
        segments = 1 + size // SEGMENT
        size += segments * HEADERS
        self.packet_bytes += size
        start = max(self._timeline.now, self._free_at.get(source, 0))
        sent = start + size * 8 * SECOND // self._slow.get(source, self.bits_per_s)
        self._free_at[source] = sent
        if not self.passes(source, target):
            return None
        if self.loss and any(self._rng.random() < self.loss for _ in range(segments)):
            return None
        rest = -math.log(1.0 - self._rng.random()) * self.jitter
        return sent - self._timeline.now + self.latency + int(rest)
