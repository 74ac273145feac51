"""What a frozen node costs a load of many requests, over fakes with slots; the time is trio's."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from meshnode.backend import Events
from meshnode.dispatch import Dispatcher
from meshnode.inference import Chunk, Event, Message, Phase, Progress, Request
from meshnode.testing import FakeWorker, fake_member

SLOTS = 4
STEP_S = 0.5
WORDS = tuple(f" {number}" for number in range(12))
ASK = Request(id="r1", model="m", messages=(Message(role="user", content="Say something."),))


class Slotted(FakeWorker):
    """Answers `SLOTS` requests at a time, and tells the others each second that they wait; as a node does."""

    def __init__(self) -> None:
        super().__init__(WORDS, delay=STEP_S)
        self.slots = trio.Semaphore(SLOTS)
        self.frozen = False

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        async with super().submit(request) as events:
            waiting = _Waiting(self, events)
            try:
                yield waiting
            finally:
                if waiting.admitted:
                    self.slots.release()


class _Waiting:
    def __init__(self, worker: Slotted, events: Events) -> None:
        self.admitted = False
        self._worker = worker
        self._events = events

    def __aiter__(self) -> "_Waiting":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if not self.admitted:
            with trio.move_on_after(1):
                await self._worker.slots.acquire()
                self.admitted = True
            if not self.admitted and not self._worker.frozen:
                return (Progress(phase=Phase.QUEUED),)
        if self._worker.frozen:
            await trio.sleep_forever()
        return await anext(self._events)


async def makespan(names: Sequence[str], *, frozen: str = "", requests: int = 24) -> float:
    """Seconds until all of them are answered, which come at once, a second before one node freezes."""
    workers = {name: Slotted() for name in names}
    members = (fake_member("entry"), *(fake_member(name, "m", slots=SLOTS) for name in names))
    dispatcher = Dispatcher(
        me=members[0].id,
        members=lambda: members,
        backend_of=lambda candidate: workers[candidate.node_name],
        on_change=lambda: None,
        rng=random.Random(1),
    )
    texts: list[str] = []

    async def ask() -> None:
        async with dispatcher.submit(ASK) as answer:
            texts.append("".join([event.text async for batch in answer.events for event in batch if isinstance(event, Chunk)]))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(requests):
            nursery.start_soon(ask)
        await trio.sleep(1)
        if frozen:
            workers[frozen].frozen = True
    assert texts == ["".join(WORDS)] * requests
    assert not frozen or workers[frozen].cancelled, "nobody had asked it"
    assert all(worker.slots.value == SLOTS for worker in workers.values())
    return trio.current_time() - start


@pytest.mark.parametrize("frozen", ["a", "b", "c"])
async def test_a_node_that_freezes_under_load_costs_little_more_than_if_it_had_not_been_there(
    autojump_clock: MockClock, frozen: str
) -> None:
    without = await makespan([name for name in "abc" if name != frozen])
    with_it = await makespan("abc", frozen=frozen)

    assert with_it <= 1.25 * without
