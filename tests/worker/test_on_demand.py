"""Models that are loaded by whoever asks and unloaded when nobody does, with real child processes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

import gguf
import trio
from tiny_model import make_tiny_model
from worker.asking import answer, ask, events_of, gone, running, wait_for

from meshnode.errors import ModelUnavailable, WorkerFailed
from meshnode.inference import Chunk, Phase, Progress, Sampling
from meshnode.worker import machine, requests, room, supervisor
from meshnode.worker.digest import digest_of
from meshnode.worker.gguf import read_facts
from meshnode.worker.known import Known
from meshnode.worker.room import Room
from meshnode.worker.supervisor import State, Worker

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
ENDLESS = Sampling(temperature=0, ignore_eos=True)
Make = Callable[..., Worker]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make_worker(name: str = "demo", path: Path = DEMO, room: Room | None = None) -> Worker:
        cache = tmp_path / "cache"
        known = Known(read_facts(path), digest_of(path, cache_dir=cache))
        return Worker(name, path, cache_dir=cache, known=known, slots=2, context_length=512, room=room)

    return make_worker


async def test_a_request_loads_the_model_and_is_told_of_it(make: Make) -> None:
    async with running(make()) as worker:
        before = (worker.load().state, worker.pid, worker.model is not None)
        events = await events_of(worker, ask())

        assert before == ("available", None, True)
        assert events[0] == Progress(phase=Phase.LOADING)
        assert "Paris" in "".join(event.text for event in events if isinstance(event, Chunk))
        assert worker.state is State.READY


async def test_who_waits_for_long_is_told_again_and_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PROGRESS_S", 0.02)
    async with running(make()) as worker:
        events = await events_of(worker, ask())

        assert events[:3] == [Progress(phase=Phase.LOADING)] * 3


async def test_all_that_wait_are_answered_and_who_left_is_not(make: Make) -> None:
    async with running(make()) as worker:
        async with worker.submit(ask(sampling=ENDLESS)):
            load = worker.load()
        answers: list[str] = []

        async def one() -> None:
            answers.append(await answer(worker, ask()))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)

        assert (load.active, load.queued) == (0, 1)
        assert answers[0]
        assert len(set(answers)) == 1 < len(answers)
        assert not worker.busy


async def test_it_is_unloaded_when_unused_and_loaded_again(make: Make) -> None:
    async with running(make(room=Room(keep_alive=0.2))) as worker:
        first = await answer(worker, ask())
        pid = worker.pid
        assert pid is not None
        await wait_for(lambda: worker.pid is None)
        available = worker.state
        again = await answer(worker, ask())

        assert gone(pid)
        assert available is State.AVAILABLE
        assert again == first


async def test_nobody_unloads_a_model_at_work(make: Make) -> None:
    async with running(make(room=Room(keep_alive=0.0))) as worker, worker.submit(ask(sampling=ENDLESS)) as events:
        while not any(isinstance(event, Chunk) for event in await anext(events)):
            assert not worker.unload()

        assert worker.state is State.READY


async def test_a_request_during_the_unloading_loads_it_again(make: Make) -> None:
    async with running(make()) as worker:
        first = await answer(worker, ask())
        pid = worker.pid
        assert worker.unload()
        assert (worker.pid, worker.state) == (pid, State.AVAILABLE)  # its process is still there
        again = await answer(worker, ask())

        assert again == first
        assert worker.pid not in {pid, None}


async def test_loading_on_request_can_be_called_off(make: Make) -> None:
    async with running(make()) as worker:
        worker.wake()
        await wait_for(lambda: worker.pid is not None)
        pid = worker.pid
        assert pid is not None
        assert worker.state is State.LOADING
        assert worker.unload()
        await wait_for(lambda: worker.pid is None)
        assert gone(pid)
        assert (worker.state, worker.trouble) == (State.AVAILABLE, "")
        worker.wake()
        await wait_for(lambda: worker.state is State.READY)


async def test_a_dead_child_is_loaded_again_only_for_who_asks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S", 0.05)
    async with running(make()) as worker:
        async with worker.submit(ask(sampling=ENDLESS)) as events:
            while not any(isinstance(event, Chunk) for event in await anext(events)):
                pass
            assert worker._child is not None
            worker._child._process.kill()
            with pytest.raises(WorkerFailed, match="SIGKILL"):
                async for _ in events:
                    pass
        with pytest.raises(ModelUnavailable, match="demo is failed"):
            await answer(worker, ask())
        await wait_for(lambda: worker.state is State.AVAILABLE)
        trouble = worker.trouble

        assert "SIGKILL" in trouble
        assert "Paris" in await answer(worker, ask())
        assert worker.trouble == ""


async def test_a_file_that_became_bad_is_told_to_who_waits(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(DEMO.read_bytes())
    worker = make("m", path)
    path.write_bytes(b"GGUF")
    async with running(worker):
        with pytest.raises(ModelUnavailable, match=r"m cannot be loaded on this node: .*not a GGUF file: it is too short"):
            await answer(worker, ask())
        assert worker.state is State.FAILED


@asynccontextmanager
async def two_of_which_one_fits(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two models on a machine with room for one and a half."""
    workers: list[Worker] = []
    hall = Room(lambda: workers)
    other = make_tiny_model(tmp_path / "tiny.gguf")
    workers += [make("demo", room=hall), make("tiny", other, room=hall)]
    needed = workers[0]._need(read_facts(DEMO)).total
    monkeypatch.setattr(machine, "resident", lambda _pid: None)  # what the estimate says is what it takes
    monkeypatch.setattr(
        machine, "memory_available", lambda: int(1.5 * needed) - needed * sum(each.pid is not None for each in workers)
    )
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(running(worker))
        yield workers[0], workers[1]


async def test_the_idle_one_goes_for_the_other(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_of_which_one_fits(make, tmp_path, monkeypatch) as (demo, tiny):
        await answer(demo, ask())
        await events_of(tiny, ask(sampling=Sampling(max_tokens=2)))
        alone = (demo.state, tiny.state)

        assert alone == (State.AVAILABLE, State.READY)
        assert "Paris" in await answer(demo, ask())


async def test_the_second_waits_until_the_first_has_answered(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_of_which_one_fits(make, tmp_path, monkeypatch) as (demo, tiny):
        async with trio.open_nursery() as nursery, demo.submit(ask(sampling=ENDLESS)) as events:
            while not any(isinstance(event, Chunk) for event in await anext(events)):
                pass
            nursery.start_soon(events_of, tiny, ask(sampling=Sampling(max_tokens=2)))
            rest = [event async for batch in events for event in batch]
            at_the_end = demo.state

        assert rest
        assert at_the_end is State.READY
        assert (demo.state, tiny.state) == (State.AVAILABLE, State.READY)


async def test_the_second_is_told_to_come_back_when_that_takes_too_long(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "WAIT_S", 0.1)
    async with two_of_which_one_fits(make, tmp_path, monkeypatch) as (demo, tiny):
        async with demo.submit(ask(sampling=ENDLESS)) as events:
            while not any(isinstance(event, Chunk) for event in await anext(events)):
                pass
            with pytest.raises(ModelUnavailable, match=r"tiny needs .*KV cache.* \(demo\)") as caught:
                await answer(tiny, ask())
            assert demo.state is State.READY

        assert caught.value.retry_after is not None
        assert tiny.state is State.AVAILABLE


async def test_what_can_never_fit_is_refused_with_figures_and_nobody_goes_for_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_of_which_one_fits(make, tmp_path, monkeypatch) as (demo, tiny):
        await answer(demo, ask())
        tiny._slots = 10_000
        with pytest.raises(ModelUnavailable, match=r"does not fit in memory: it needs about .* KV cache, .* are free"):
            await answer(tiny, ask())

        assert demo.state is State.READY
        assert tiny.state is State.FAILED
        assert "KV cache" in tiny.trouble
        await wait_for(lambda: tiny.state is State.AVAILABLE)
        assert tiny.trouble == ""


def make_split_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=8))
    make_tiny_model(folder / "parts.gguf")
    return sorted(folder.glob("parts-*.gguf"))


async def test_a_split_model_runs_like_any_other(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_tiny_model(tmp_path / "whole.gguf")
    first, *others = make_split_model(tmp_path, monkeypatch)
    greedy = ask(sampling=Sampling(temperature=0, max_tokens=8))
    texts = []
    for path in (whole, first):
        async with running(make("m", path)) as worker:
            texts.append(await answer(worker, greedy))

    assert len(others) >= 1
    assert texts[0] == texts[1] != ""
