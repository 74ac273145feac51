"""One node at work: slots that share its speed, a queue, a cache of prefixes, loading, slowing down, crashing (pure).

Requests in the slots share the processor: each of k goes on at 1 / (1 + beta (k - 1)) of the speed that it would have alone,
reading and writing alike. What is not modelled: steps, the length of prompts beyond their proportion, room for the KV cache.
"""

from collections import OrderedDict, deque

import msgspec

from meshnode.names import ModelDigest
from meshnode.simulation.routing.workload import BLOCK_TOKENS, Job
from meshnode.wire.messages import ModelState

DIGEST = ModelDigest(b"m" * 32)
USUAL_OUTPUT = 200.0
LENGTH_MEMORY = 0.95
SPEED_MEMORY_S = 5.0
"""After a change of its pace a node's measured speed is half way to the truth in about so many seconds."""

NOTHING = 1e-9
"""Seconds that are left by rounding."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a node can do: tokens read and written in a second, alone; `load_s`: of loading its model; 0: it is loaded."""

    read: float
    write: float
    slots: int
    beta: float = 0.35
    load_s: float = 0.0
    blocks: int = 400
    """Of its cache of prefixes."""

    def alone(self, job: Job, hit: int = 0) -> float:
        """Seconds for `job` with nothing else there."""
        return max(1, job.prompt - hit * BLOCK_TOKENS) / self.read + job.output / self.write

    def capacity(self, prompt: float, output: float) -> float:
        """Requests in a second, when all slots are busy with such."""
        return self.slots / (1 + self.beta * (self.slots - 1)) / (prompt / self.read + output / self.write)


class Work:
    """A request at a server: seconds of reading and writing left, as if alone."""

    __slots__ = ("begun", "done", "hit", "job", "owner", "read", "write")

    def __init__(self, job: Job, owner: object) -> None:
        self.job = job
        self.owner = owner
        self.read = self.write = 0.0
        self.hit = 0
        self.begun = False
        """Whether its first token was told."""
        self.done = False


class Server:
    """Everything in it is as of `advance`, which must come before any other call."""

    def __init__(self, machine: Machine, *, error: float, now: float = 0.0) -> None:
        self.machine = machine
        self.pace = 1.0
        """1 as a rule; 0.2 while something else keeps the machine busy."""
        self.active: list[Work] = []
        self.queue: deque[Work] = deque()
        self.loaded = not machine.load_s
        self.ready_at: float | None = None
        """When the loading that goes on will be over."""
        self.now = now
        self._measured = 1.0
        """Its pace, as its own measurements have it."""
        self._error = 1 + error
        """Of its measured speeds."""
        self._usual = USUAL_OUTPUT
        self._cache: OrderedDict[int, None] = OrderedDict()

    def advance(self, now: float) -> None:
        took, self.now = now - self.now, now
        share = took * self.rate()
        for work in self.active:
            if work.read > 0:
                work.read = work.read - share if work.read - share > NOTHING else 0.0
            else:
                work.write -= share
        if self.pace != self._measured:
            self._measured = self.pace + (self._measured - self.pace) * 0.5 ** (took / SPEED_MEMORY_S)

    def rate(self) -> float:
        """How fast each of the active ones goes on, against being alone."""
        return self.pace / (1 + self.machine.beta * (len(self.active) - 1)) if self.active else self.pace

    def next_change(self) -> float | None:
        """When the first of the active ones has read or written all; None: never."""
        if not self.active or not self.pace:
            return None
        return self.now + max(0.0, min(work.read if work.read > 0 else work.write for work in self.active)) / self.rate()

    def hit(self, chain: tuple[int, ...]) -> int:
        """Blocks of it that are cached, from the beginning."""
        return next((place for place, block in enumerate(chain) if block not in self._cache), len(chain))

    def take(self, work: Work) -> None:
        self.queue.append(work)
        if not self.loaded and self.ready_at is None:
            self.ready_at = self.now + self.machine.load_s
        self.admit()

    def admit(self) -> None:
        while self.loaded and self.queue and len(self.active) < self.machine.slots:
            work = self.queue.popleft()
            work.hit = self.hit(work.job.chain)
            self._remember(work.job.chain)
            work.read = max(1, work.job.prompt - work.hit * BLOCK_TOKENS) / self.machine.read
            work.write = work.job.output / self.machine.write
            self.active.append(work)

    def finish_loading(self) -> None:
        self.loaded, self.ready_at = True, None
        self.admit()

    def begun(self) -> list[Work]:
        """Those whose prompt has been read since this was last asked."""
        new = [work for work in self.active if not work.begun and work.read <= 0]
        for work in new:
            work.begun = True
        return new

    def ended(self) -> list[Work]:
        """Those that are done; their slots go to the next ones."""
        over = [work for work in self.active if work.read <= 0 and work.write <= NOTHING]
        for work in over:
            work.done = True
            self.active.remove(work)
            self._usual = LENGTH_MEMORY * self._usual + (1 - LENGTH_MEMORY) * work.job.output
        if over:
            self.admit()
        return over

    def drop(self, work: Work) -> None:
        """Somebody wants no more of it."""
        if work in self.active:
            self.active.remove(work)
        elif work in self.queue:
            self.queue.remove(work)
        self.admit()

    def crash(self) -> list[Work]:
        """All that it had is lost, its cache too."""
        lost = [*self.active, *self.queue]
        self.active.clear()
        self.queue.clear()
        self._cache.clear()
        self.loaded, self.ready_at = not self.machine.load_s, None
        return lost

    def cached(self) -> tuple[int, ...]:
        """The blocks of its cache, the last used ones first."""
        return tuple(reversed(self._cache))

    def _remember(self, chain: tuple[int, ...]) -> None:
        for block in reversed(chain):
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > self.machine.blocks:
            self._cache.popitem(last=False)

    def _left(self, work: Work) -> float:
        """Seconds for the rest of it alone, as the node expects, who does not know the length of the answer."""
        if work.read > 0:
            return work.read + self._usual / self.machine.write
        written = work.job.output - work.write * self.machine.write
        return max(self._usual - written, 0.25 * self._usual) / self.machine.write

    def state(self, *, exact: bool = False) -> ModelState:
        """What it tells; `exact`: what is true, down to the lengths of the answers."""
        machine, factor = self.machine, 1.0 if exact else self._error * self._measured
        if exact:
            left = sum(work.read + work.write for work in self.active)
            left += sum(machine.alone(work.job, self.hit(work.job.chain)) for work in self.queue)
            factor = self.pace or 1e-3
        else:
            left = sum(map(self._left, self.active))
            left += sum(work.job.prompt / machine.read + self._usual / machine.write for work in self.queue)
        loading = self.ready_at - self.now if self.ready_at is not None else machine.load_s
        return ModelState(
            "m",
            DIGEST,
            "ready" if self.loaded else "available" if self.ready_at is None else "loading",
            active=len(self.active),
            slots=machine.slots,
            queued=len(self.queue),
            remaining_ms=int(1000 * left / factor),
            prefill_per_s=machine.read * factor,
            step_ms=1000 / (machine.write * factor),
            stream_ms=1000 * machine.beta / (machine.write * factor),
            load_ms=int(1000 * max(0.0, loading)),
        )
