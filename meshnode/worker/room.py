"""One machine's memory and processor cores, shared by its loaded models (trio; the decisions in it are plain functions).

A model that shall be loaded waits for its turn: one is loaded at a time, and only when there is room. Room is made by unloading
models that nobody uses, the longest unused first, and only if that is enough; models that were given by name stay. Where it would
be enough once the running ones have ended, it is waited for, `WAIT_S` at most. Where it would not even then, the child is started
all the same: it alone knows of graphics processors, and else refuses with figures.

Cores are shared by the models that are answering at the moment: more threads than cores spin against each other at every layer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import trio

from meshnode.errors import ModelUnavailable
from meshnode.worker import machine
from meshnode.worker.memory import Held, Need, free

WAIT_S = 60.0
"""For others to end. Longer, and the client is better off to come back, or elsewhere."""
LOOK_S = 1.0
"""Between looks at the memory while waiting: other programs give back some too, and tell nobody."""


class Tenant(Protocol):
    """A model that has or wants a child process."""

    name: str
    resident: bool
    """Stays loaded."""

    @property
    def busy(self) -> bool: ...

    @property
    def last_used(self) -> float: ...

    @property
    def held(self) -> Held | None:
        """None while it has no process of its own on this machine's main memory."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether it has a process whose model is on a graphics processor."""
        ...

    def unload(self) -> bool: ...

    def set_threads(self, count: int) -> None: ...


class Occupant(NamedTuple):
    """A tenant as `plan` sees it: `bytes` are what its end gives back."""

    bytes: int
    busy: bool
    resident: bool
    leaving: bool
    last_used: float


class Plan(NamedTuple):
    """`unload` these, by index, then `wait` for a change; or load with `free` bytes in sight."""

    unload: tuple[int, ...]
    wait: bool
    free: int


def plan(needed: int, free: int, occupants: Sequence[Occupant]) -> Plan:
    """What to do for a model that needs so much while `free` is free."""
    leaving = sum(each.bytes for each in occupants if each.leaving)
    movable = [index for index, each in enumerate(occupants) if not (each.resident or each.leaving)]
    idle = sorted((index for index in movable if not occupants[index].busy), key=lambda index: occupants[index].last_used)
    in_reach = free + leaving + sum(occupants[index].bytes for index in movable)
    if needed <= free or needed > in_reach:
        return Plan((), False, free if needed <= free else in_reach)
    unload: list[int] = []
    lacking = needed - free - leaving
    for index in idle:
        if lacking <= 0:
            break
        lacking -= occupants[index].bytes
        unload.append(index)
    return Plan(tuple(unload) if lacking <= 0 else (), True, free)


def shares(cores: int, busy: int) -> list[int]:
    """Threads for each of `busy` models: all cores among them, the first ones get what is left over, none gets nothing."""
    return [max(1, cores // busy + (index < cores % busy)) for index in range(busy)]


class Room:
    """`tenants` tells all models of this node, loaded or not. Of them, who is not resident goes after `keep_alive` s unused."""

    def __init__(self, tenants: Callable[[], Iterable[Tenant]] = tuple, *, keep_alive: float = math.inf) -> None:
        self.keep_alive = keep_alive
        self._tenants = tenants
        self._leaving: list[Tenant] = []
        self._loading: Tenant | None = None
        self._changed = trio.Event()
        self._cores = machine.cores()

    async def wait_turn(self, tenant: Tenant, need: Need) -> int | None:
        """Until `tenant` may be loaded; the bytes that it may take, None where the system does not say. Call `end_turn` then.

        Raises ModelUnavailable when others kept the room for `WAIT_S`.
        """
        with trio.move_on_after(WAIT_S):
            while True:
                if self._loading is None and not self._leaving:
                    todo = self._plan(need)
                    if todo is None or not todo.wait:
                        self._loading = tenant
                        return todo.free if todo else None
                with trio.move_on_after(LOOK_S):
                    await self._changed.wait()
        others = ", ".join(sorted(each.name for each in self._tenants() if each is not tenant and each.held)) or "others"
        raise ModelUnavailable(
            f"{tenant.name} needs {need}; there is no room beside what is at work on this node ({others}).",
            retry_after=WAIT_S / 2,
        )

    def end_turn(self, tenant: Tenant) -> None:
        """`tenant` is loaded, or will not be."""
        if self._loading is tenant:
            self._loading = None
            self.change()

    def left(self, tenant: Tenant) -> None:
        """The process of `tenant` is gone."""
        self._leaving = [each for each in self._leaving if each is not tenant]
        self.end_turn(tenant)
        self.change()

    def unload_on_gpu(self) -> bool:
        """Begin to unload the longest unused model on a graphics processor, of whose memory only a child's refusal tells us.

        False when there is none that may go.
        """
        there = [each for each in self._tenants() if each.on_gpu and not (each.busy or each.resident)]
        if not there:
            return False
        oldest = min(there, key=lambda each: each.last_used)
        if oldest.unload():
            self._leaving.append(oldest)
        return True

    def change(self) -> None:
        """Wake who waits: somebody became idle, was loaded, or is gone. And share the cores anew."""
        self._changed.set()
        self._changed = trio.Event()
        busy = [each for each in self._tenants() if each.busy]
        for tenant, count in zip(busy, shares(self._cores, len(busy)) if busy else [], strict=True):
            tenant.set_threads(count)

    def _plan(self, need: Need) -> Plan | None:
        """And begin with it. None where the system tells nothing of its memory."""
        available = machine.memory_available()
        if available is None:
            return None
        here = [(each, held) for each in self._tenants() if (held := each.held)]
        occupants = [Occupant(max(held), each.busy, each.resident, each in self._leaving, each.last_used) for each, held in here]
        todo = plan(need.total, free(available, (held for _, held in here)), occupants)
        for index in todo.unload:
            if here[index][0].unload():
                self._leaving.append(here[index][0])
        return todo
