"""Which slot of the KV cache holds which tokens: prefixes found and shared, the longest unused forgotten.

A slot without a stream keeps its tokens. A new sequence takes the slot that begins as it does; in a unified cache it may instead
share the beginning of any other slot, running ones included, which costs no room at all. Room is made by forgetting the ends of
what lies idle, the longest unused slot first.

Counted are cells, of which one holds one token for all the slots that share it. A slot is a chain of runs of cells: its own end,
and before that runs that other slots may begin with too. A run that nobody begins with any more is free.

    slot 0:  [run A: system prompt, 2 users] <- own: question and answer
    slot 1:  [run A] <- own: another question
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

EVICTED_AT_ONCE = 256
"""Tokens. llama.cpp looks at every cell to forget one, so it is not done for each new token."""


class Memory(Protocol):
    """The part of a `Runtime` that this is about."""

    slots: int
    pool: int
    unified: bool

    def cut(self, slot: int, length: int) -> bool: ...

    def copy(self, source: int, target: int, length: int) -> bool: ...


@dataclass(eq=False)
class _Run:
    """Cells `start` to `end` of every sequence that begins with it."""

    parent: "_Run | None"
    start: int
    end: int
    users: int = 1
    """Slots and runs that follow directly."""


@dataclass(eq=False)
class Slot:
    """`tokens` begins with the `count` tokens whose keys and values the slot holds."""

    id: int
    tokens: list[int] = field(default_factory=list, repr=False)
    count: int = 0
    base: _Run | None = field(default=None, repr=False)
    chain: tuple[int, ...] = field(default=(), repr=False)
    """Of the first `chained` of its tokens, a prompt: hashes of equal parts of its text (design D22)."""
    chained: int = 0

    @property
    def cached_chain(self) -> tuple[int, ...]:
        """Of what it really holds. A token is taken to have as much text as any other of its prompt."""
        return self.chain[: self.count * len(self.chain) // self.chained] if self.chained else ()

    @property
    def shared(self) -> int:
        """How many of its cells others may share."""
        return self.base.end if self.base else 0


class Slots:
    """All slots of `memory`, which nobody else may change but to decode: whoever does that tells by `grow`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._all = tuple(Slot(number) for number in range(memory.slots))
        self._idle: dict[Slot, None] = dict.fromkeys(self._all)
        """The longest unused first."""
        self.used = 0
        """Cells that hold something."""

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._all)

    @property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """What all slots hold, without what others hold too: of running ones, then the latest used first."""
        running = (slot for slot in self._all if slot not in self._idle)
        found = dict.fromkeys(slot.cached_chain for slot in (*running, *reversed(self._idle)))
        return tuple(chain for chain in found if chain)

    @property
    def idle(self) -> int:
        """How many slots have no stream."""
        return len(self._idle)

    def take(self, tokens: list[int], most: int) -> Slot:
        """An idle slot for a sequence that begins with `tokens`; what it holds already, at most `most` of them, is its `count`.

        The slot with the longest common beginning is taken itself if it is idle, and either less than half of it is lost by that,
        or it has all that can be had, so that the same prompt is asked again; else a copy.
        """
        known = [(common(slot.tokens, tokens, min(slot.count, most)), slot) for slot in self._idle]
        reused, best = max(known, key=lambda each: each[0])
        running = [(common(slot.tokens, tokens, min(slot.count, most)), slot) for slot in self._all if slot not in self._idle]
        if self._memory.unified:
            length, donor = max([*known, *running], key=lambda each: each[0])
            target = self._spare()
            if length and target is not donor and (length > reused or length < min(most, donor.count / 2)):
                self._clear(target)
                if self._share(donor, target, length):
                    reused, best = length, target
        if not reused:
            best = self._spare()
        self._cut(best, reused)
        del self._idle[best]
        best.tokens = tokens
        return best

    def fork(self, source: Slot, tokens: list[int]) -> Slot | None:
        """An idle slot that shares all that `source` holds, with which `tokens` begin; None when there is none, or no sharing."""
        if not self._memory.unified or not self._idle:
            return None
        target = self._spare()
        self._clear(target)
        if not self._share(source, target, source.count):
            return None
        del self._idle[target]
        target.tokens = tokens
        return target

    def refill(self, tokens: list[int], count: int, put: Callable[[int], bool]) -> Slot | None:
        """An idle slot into which `put` put the first `count` of `tokens`, for which there is room; None when it could not."""
        target = self._spare()
        self._clear(target)
        if not put(target.id):
            return None
        del self._idle[target]
        target.tokens = tokens
        self.grow(target, count)
        return target

    def grow(self, slot: Slot, count: int) -> None:
        """`count` more of the slot's tokens were decoded."""
        slot.count += count
        self.used += count

    def release(self, slot: Slot) -> None:
        """Its stream is gone; what it holds stays as long as there is room."""
        slot.tokens = slot.tokens[: slot.count]
        self._idle[slot] = None

    def clear(self, slot: Slot) -> None:
        """Take a slot's stream and all that it holds: the first to be used again."""
        self._clear(slot)
        self._idle = {slot: None, **self._idle}

    def make_room(self, count: int) -> bool:
        """Forget what lies idle until `count` more cells are free; False when that is not enough."""
        if self.used + count <= self._memory.pool:
            return True
        return self.evict(self.used + count - self._memory.pool) or self.used + count <= self._memory.pool

    def evict(self, count: int) -> bool:
        """Forget at least `count` idle tokens, or all; whether `count` cells became free."""
        wanted = self.used - count
        for slot in self._idle:
            while slot.count and self.used > wanted:
                self._cut(slot, max(0, slot.count - max(self.used - wanted, EVICTED_AT_ONCE)))
        return self.used <= wanted

    def held(self, slots: Iterable[Slot]) -> int:
        """Cells that any of `slots` holds, each counted once."""
        total, seen = 0, set[int]()
        for slot in slots:
            total += slot.count - slot.shared
            run = slot.base
            while run is not None and id(run) not in seen:
                seen.add(id(run))
                total += run.end - run.start
                run = run.parent
        return total

    def _spare(self) -> Slot:
        """The idle slot whose loss costs least: an empty one, else the longest unused."""
        return next((slot for slot in self._idle if not slot.count), None) or next(iter(self._idle))

    def _clear(self, slot: Slot) -> None:
        if slot.count:
            self._memory.cut(slot.id, 0)
            self._shorten(slot, 0)
        slot.tokens = []

    def _cut(self, slot: Slot, length: int) -> None:
        """Keep `length` tokens, or none when the model cannot do that."""
        if length == slot.count:
            return
        if not self._memory.cut(slot.id, length):
            self._memory.cut(slot.id, 0)
            length = 0
        self._shorten(slot, length)
        slot.tokens = slot.tokens[:length]

    def _shorten(self, slot: Slot, length: int) -> None:
        self.used -= slot.count - max(slot.shared, length)
        if length < slot.shared:
            base = slot.base
            slot.base = _part(base, length)
            self._leave(base)
        slot.count = length

    def _share(self, source: Slot, target: Slot, length: int) -> bool:
        if not self._memory.copy(source.id, target.id, length):
            return False
        if length > source.shared:
            source.base = _Run(source.base, source.shared, length)
        target.base = _part(source.base, length)
        target.count = length
        return True

    def _leave(self, run: _Run | None) -> None:
        while run is not None:
            run.users -= 1
            if run.users:
                return
            self.used -= run.end - run.start
            run = run.parent


def _part(run: _Run | None, length: int) -> _Run | None:
    """One use more of the run of that chain which ends at `length`, made by splitting one if need be."""
    while run is not None and run.start >= length:
        run = run.parent
    if run is None:
        return None
    if length < run.end:
        run.parent = _Run(run.parent, run.start, length)  # used by `run`, as its parent was before
        run.start = length
        run = run.parent
    run.users += 1
    return run


def common(ours: list[int], theirs: list[int], most: int) -> int:
    """How many tokens both begin with, at most `most`. By halves, since comparing slices is fast and a loop is not."""
    low, high = 0, min(len(ours), len(theirs), most)
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
