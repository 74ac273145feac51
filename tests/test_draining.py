"""Draining over fakes; the time is trio's."""

import pytest
import trio
from trio.testing import MockClock

from meshnode.draining import Drain
from meshnode.errors import Draining
from meshnode.inference import Chunk, Message, Request
from meshnode.testing import FakeWorker

ASK = Request(id="r1", model="m", messages=(Message(role="user", content="Say something."),))


async def heard(drain: Drain, worker: FakeWorker, texts: list[str]) -> None:
    async with drain.serving(worker.submit(ASK)) as events:
        async for batch in events:
            texts += [event.text for event in batch if isinstance(event, Chunk)]


async def test_what_runs_finishes_and_nothing_new_is_taken(autojump_clock: MockClock) -> None:
    drain, worker, texts = Drain("a"), FakeWorker(["one", " two"], delay=1.0), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heard, drain, worker, texts)
        await trio.sleep(1.5)
        drain.on = True
        with pytest.raises(Draining, match="a is draining") as caught:
            await heard(drain, worker, texts)
        await drain.wait_idle()

        assert trio.current_time() >= 3
    assert "".join(texts) == "one two"
    assert caught.value.retryable
    assert len(worker.requests) == worker.finished == 1
    drain.on = False
    await heard(drain, worker, texts)
    assert worker.finished == 2


@pytest.mark.parametrize("at", [0.5, 1.5, 2.5])
async def test_what_is_handed_over_ends_at_once_with_the_work_behind_it(autojump_clock: MockClock, at: float) -> None:
    drain, worker, texts = Drain("a"), FakeWorker(["one", " two", " three"], delay=1.0), list[str]()

    async def hand_over() -> None:
        await trio.sleep(at)
        drain.hand_over()
        await drain.wait_idle()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over)
        with pytest.raises(Draining):
            await heard(drain, worker, texts)

    assert trio.current_time() - start == pytest.approx(at)
    assert worker.cancelled == 1


async def test_what_is_handed_over_before_it_is_read_ends_too(autojump_clock: MockClock) -> None:
    drain = Drain("a")
    async with drain.serving(FakeWorker().submit(ASK)) as events:
        drain.hand_over()
        with pytest.raises(Draining):
            await anext(events)
