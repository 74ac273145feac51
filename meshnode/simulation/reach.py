"""Who could have been heard by whom, lately: what it takes to call a verdict false (pure).

Two nodes are in reach of each other while a chain of hosts connects them, each step open in both directions: TCP needs both, and
whoever hears the next one in the chain can answer for him.
"""

from meshnode.simulation.timeline import SECOND
from meshnode.simulation.world import World

LATELY_US = 15 * SECOND


class Reach:
    """`changed` after every fault."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._islands: list[tuple[int, dict[int, int]]] = []
        """Since when, and in which island each host is."""
        self._unwell: dict[int, int] = {}
        """Until when a host was not well, or the far future."""

    def changed(self) -> None:
        now = self._world.timeline.now
        islands = self._find()
        if not self._islands or self._islands[-1][1] != islands:
            self._islands.append((now, islands))
        for host in self._world.hosts:
            process = host.process
            if process is not None and process.is_alive and (not process.is_healthy or process.processor.work_us):
                self._unwell[host.number] = 2**62
            elif self._unwell.get(host.number) == 2**62:
                self._unwell[host.number] = now

    def well(self, host: int) -> bool:
        """For the whole of the last 15 s."""
        return self._unwell.get(host, -LATELY_US) + LATELY_US <= self._world.timeline.now

    def together(self, one: int, other: int, *, lately: bool = True) -> bool:
        """Now, and with `lately` for the whole of the last 15 s."""
        start = self._world.timeline.now - LATELY_US
        for position in range(len(self._islands) - 1, -1, -1):
            since, islands = self._islands[position]
            if islands.get(one, -1) != islands.get(other, -2):
                return False
            if not lately or since <= start:
                break
        return True

    def linkable(self, one: int, other: int) -> bool:
        network = self._world.network
        return network.passes(one, other) and network.passes(other, one)

    def _find(self) -> dict[int, int]:
        left = [host.number for host in self._world.hosts if host.number not in self._world.network.dead]
        found: dict[int, int] = {}
        while left:
            root = left.pop()
            found[root], wave = root, [root]
            while wave:
                host = wave.pop()
                near = [other for other in left if self.linkable(host, other)]
                wave += near
                found.update(dict.fromkeys(near, root))
                left = [other for other in left if other not in found]
        return found
