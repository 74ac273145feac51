"""TCP's own handshake: from a dial to two sockets, a refusal, or nothing (pure).

A SYN that is lost is sent again after a second (Linux). A host without a listener refuses; one that is off, or behind a filter,
does not answer, and the dialler gives up after 3 s, as `mesh/mesh.py` does. The kernel accepts for a process that is stopped.
"""

from collections.abc import Callable

from meshnode.gossip.effects import Dial
from meshnode.simulation.network import Network
from meshnode.simulation.process import Process
from meshnode.simulation.tcp import Socket, pair
from meshnode.simulation.timeline import SECOND, Timeline

CONNECT_US = 3 * SECOND
SYN_AGAIN_US = SECOND
SYN_BYTES = 40


class Attempt:
    """One dial of `process`. `listener` gives who listens at a host."""

    def __init__(
        self,
        timeline: Timeline,
        network: Network,
        process: Process,
        dial: Dial,
        *,
        target: int | None,
        listener: Callable[[int], Process | None],
        source: str,
    ) -> None:
        self._timeline = timeline
        self._network = network
        self._process = process
        self._dial = dial
        self._target = target
        self._listener = listener
        self._source = source
        self._near: Socket | None = None
        self._is_over = False
        timeline.after(CONNECT_US, self._give_up)
        if target is not None:
            self._ask(target)
            timeline.after(SYN_AGAIN_US, self._ask, target)

    def _ask(self, target: int) -> None:
        if self._is_over:
            return
        delay = self._network.delay(self._process.host, target, SYN_BYTES)
        if delay is not None:
            self._timeline.after(delay, self._asked, target)

    def _asked(self, target: int) -> None:
        """At the other host."""
        if target in self._network.dead or self._is_over:
            return
        listener = self._listener(target)
        delay = self._network.delay(target, self._process.host, SYN_BYTES)
        if listener is None:
            if delay is not None:
                self._timeline.after(delay, self._end, "connection refused: nothing listens there", True)
            return
        if self._near is None:
            self._near, far = pair(self._timeline, self._network, self._process.host, target)
            listener.accept(far, self._source)
        if delay is not None:
            self._timeline.after(delay, self._connected)

    def _connected(self) -> None:
        if self._is_over or self._near is None:
            return
        self._is_over = True
        if self._process.is_alive:
            self._process.connected(self._near, self._dial)
        else:
            self._near.abort()

    def _give_up(self) -> None:
        self._end("no answer within 3 s: no machine there, or a firewall drops what it is sent", False)

    def _end(self, reason: str, refused: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._near is not None:
            self._near.die()
        self._process.unconnected(self._dial, reason, refused)
