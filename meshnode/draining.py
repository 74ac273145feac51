"""A node that takes nothing new: what peers asked of it finishes, or is handed over in the middle.

To hand over is to end a request with `Draining`: the node that sent it asks another one, which goes on behind the last token that
was passed on (design D12), so that neither end loses or repeats anything.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from meshnode.backend import Events
from meshnode.errors import Draining
from meshnode.inference import Event


class Drain:
    """Of one node, by name. `on`: whether it takes nothing new."""

    def __init__(self, name: str) -> None:
        self.on = False
        self._name = name
        self._open: set[_Movable] = set()
        self._closed = trio.Event()

    @asynccontextmanager
    async def serving(self, answer: AbstractAsyncContextManager[Events]) -> AsyncIterator[Events]:
        """The events of a peer's request, which may be handed over at any time. Raises Draining when nothing new is taken."""
        if self.on:
            raise self._refusal()
        movable = _Movable(self._refusal())
        self._open.add(movable)
        try:
            async with answer as movable.source:
                yield movable
        finally:
            self._open.remove(movable)
            self._closed.set()

    def hand_over(self) -> None:
        """End all that runs for peers, so that it goes on elsewhere."""
        for movable in self._open:
            movable.move()

    async def wait_idle(self) -> None:
        """Until nothing runs for peers."""
        while self._open:
            self._closed = trio.Event()
            await self._closed.wait()

    def _refusal(self) -> Draining:
        return Draining(f"{self._name} is draining: it takes nothing new.", retry_after=1.0)


class _Movable:
    """Events that end with `error` once `move` was called, in the middle of a wait for them too."""

    source: Events

    def __init__(self, error: Draining) -> None:
        self._error = error
        self._moved = False
        self._wait = trio.CancelScope()

    def move(self) -> None:
        self._moved = True
        self._wait.cancel()

    def __aiter__(self) -> "_Movable":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if not self._moved:
            with trio.CancelScope() as self._wait:
                return await anext(self.source)
        raise self._error
