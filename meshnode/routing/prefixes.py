"""What this node believes to be cached elsewhere: what it sent there itself, and what the nodes tell (pure)."""

from collections import OrderedDict
from typing import TypeVar

from meshnode.routing.prefix import Sketch
from meshnode.routing.table import Holder
from meshnode.wire import messages

T = TypeVar("T")

MAX_HOLDERS = 256
MAX_PLACED = 4096
"""Blocks remembered of each: 1 MB of text. A cache that is larger tells of itself."""


class _Placed:
    """Blocks that were sent to one holder, each with the time of its last use; the longest unused go first."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, float] = OrderedDict()
        self._last = -1.0

    def put(self, chain: tuple[int, ...], now: float) -> None:
        self._last = now
        for hashed in reversed(chain):  # so that a beginning is never older than what follows it
            self._times[hashed] = now
            self._times.move_to_end(hashed)
        while len(self._times) > MAX_PLACED:
            self._times.popitem(last=False)

    def blocks(self, chain: tuple[int, ...], *, beyond: int, since: float) -> int:
        """How many, from the beginning, were sent after `since`, where that is more than `beyond`; else `beyond`."""
        find = self._times.get
        if self._last <= since or beyond >= len(chain) or find(chain[beyond], since) <= since:
            return beyond
        low, high = beyond + 1, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if find(chain[middle - 1], since) > since:
                low = middle
            else:
                high = middle - 1
        return low


class Prefixes:
    """A sketch is the truth of its time, so what was sent before it counts no longer: it is in the sketch, or was evicted."""

    def __init__(self) -> None:
        self._placed: OrderedDict[Holder, _Placed] = OrderedDict()
        self._sketches: OrderedDict[Holder, tuple[Sketch, float]] = OrderedDict()
        self._frames: OrderedDict[Holder, messages.Sketch] = OrderedDict()
        """In which they came."""

    def place(self, holder: Holder, chain: tuple[int, ...], now: float) -> None:
        """A prompt that begins so was sent there."""
        if chain:
            self._placed.setdefault(holder, _Placed()).put(chain, now)
            _use(self._placed, holder)

    def tell(self, holder: Holder, sketch: Sketch, now: float) -> None:
        """The holder itself says what it has."""
        self._sketches[holder] = (sketch, now)
        _use(self._sketches, holder)

    def hear(self, holder: Holder, frame: messages.Sketch, at: float) -> None:
        """It told so at that time; cheap where that is known already."""
        if self._frames.get(holder) is not frame:
            self._frames[holder] = frame
            _use(self._frames, holder)
            self.tell(holder, Sketch.read(frame), at)

    def forget(self, holder: Holder) -> None:
        """It lost its cache: a worker died, or the model was unloaded."""
        self._placed.pop(holder, None)
        self._sketches.pop(holder, None)

    def blocks(self, holder: Holder, chain: tuple[int, ...]) -> int:
        """How many blocks of `chain`, from its beginning, are believed to be cached there."""
        told, since = 0, -1.0
        if found := self._sketches.get(holder):
            sketch, since = found
            told = sketch.blocks(chain)
        placed = self._placed.get(holder)
        return placed.blocks(chain, beyond=told, since=since) if placed else told


def _use(table: "OrderedDict[Holder, T]", holder: Holder) -> None:
    table.move_to_end(holder)
    while len(table) > MAX_HOLDERS:
        table.popitem(last=False)
