import pytest
import trio

from meshnode.errors import WorkerFailed
from meshnode.inference import Chunk, End, Event, Usage
from meshnode.worker.stream import MAX_UNREAD, Stream

END = End(usage=Usage(prompt_tokens=1, completion_tokens=1))


def chunk(text: str) -> Chunk:
    return Chunk(choice=0, text=text)


async def test_what_is_there_comes_in_one_batch_and_end_is_the_last() -> None:
    stream = Stream()
    for event in (chunk("a"), chunk("b"), END, chunk("too late")):
        stream.put(event)

    assert [batch async for batch in stream] == [(chunk("a"), chunk("b"), END)]


async def test_a_reader_waits_for_what_comes(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream()
    read: list[tuple[Event, ...]] = []

    async def reader() -> None:
        read.extend([batch async for batch in stream])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.sleep(1)
        stream.put(chunk("a"))
        await trio.sleep(1)
        stream.put(END)

    assert read == [(chunk("a"),), (END,)]


async def test_a_cancelled_wait_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    stream = Stream()
    with trio.move_on_after(1):
        await anext(stream)
    stream.put(chunk("a"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(stream)

    assert scope.cancelled_caught
    assert await anext(stream) == (chunk("a"),)


async def test_a_failure_comes_after_what_was_put_before_it_and_stays() -> None:
    stream = Stream()
    stream.put(chunk("a"))
    stream.fail(WorkerFailed("gone"))

    assert await anext(stream) == (chunk("a"),)
    for _ in range(2):
        with pytest.raises(WorkerFailed, match="gone"):
            await anext(stream)


async def test_an_end_is_not_undone_by_a_later_failure() -> None:
    stream = Stream()
    stream.put(END)
    stream.fail(WorkerFailed("gone"))

    assert [batch async for batch in stream] == [(END,)]


async def test_a_stream_says_when_its_reader_is_too_far_behind() -> None:
    stream = Stream()
    for _ in range(MAX_UNREAD - 1):
        stream.put(chunk("a"))
    assert not stream.overrun
    stream.put(chunk("a"))
    assert stream.overrun
    await anext(stream)
    assert not stream.overrun
