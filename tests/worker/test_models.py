"""Folders of models: what is offered, what is not and why, and what happens when files come and go."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("llama_cpp")

import trio
from tiny_model import make_tiny_model
from worker.asking import answer, ask, events_of, wait_for

from meshnode.inference import Chunk, Sampling
from meshnode.worker import child, digest, machine, models, room
from meshnode.worker.compute import Compute
from meshnode.worker.models import Models
from meshnode.worker.supervisor import State, Worker

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
SHORT = Sampling(max_tokens=2)
ENDLESS = Sampling(temperature=0, ignore_eos=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "RESCAN_APART_S", 0)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@asynccontextmanager
async def serving(folder: Path, *given: tuple[str, Path]) -> AsyncIterator[Models]:
    cache = folder.parent / "cache"
    served = Models(given, [folder], cache_dir=cache, slots=2, context_length=512, compute=Compute(), keep_alive=300)

    async def run() -> None:
        await served.run(on_change=lambda: None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_checked(served)
        yield served
        nursery.cancel_scope.cancel()


async def wait_checked(served: Models) -> None:
    await wait_for(lambda: served._scanned_at > 0 and not any("checking" in each for each in served.waiting()))


def states(served: Models) -> dict[str, str]:
    return {load.name: load.state for load in served.load()}


async def test_good_files_are_offered_without_loading_and_bad_ones_are_named(folder: Path) -> None:
    make_tiny_model(folder / "tiny.gguf")
    (folder / "hub").mkdir()
    make_tiny_model(folder / "hub/tiny.gguf", seed=1)
    (folder / "cut.gguf").write_bytes(DEMO.read_bytes()[:-1000])
    (folder / "text.gguf").write_text("hello")
    async with serving(folder) as served:
        reasons = {trouble.name: trouble.reason for trouble in served.troubles()}

        assert states(served) == {"tiny": "available", "hub/tiny": "available", "cut": "failed", "text": "failed"}
        assert {model.name: len(model.digest) for model in served.records()} == {"tiny": 32, "hub/tiny": 32}
        assert str(folder / "cut.gguf") in reasons["cut"]
        assert "is truncated" in reasons["cut"]
        assert "is not a GGUF file" in reasons["text"]
        assert not any(worker.pid for worker in served.workers)


async def test_what_belongs_to_a_model_and_is_none_is_no_fault(folder: Path) -> None:
    path = make_tiny_model(folder / "mmproj.gguf")
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x04\0\0\0\0\0\0\0clip", 1) + bytes(32))
    async with serving(folder) as served:
        assert (served.load(), served.troubles()) == ((), [])


async def test_files_that_come_change_and_go_are_noticed(folder: Path) -> None:
    async with serving(folder) as served:
        make_tiny_model(folder / "tiny.gguf")
        assert await served.look_again()
        assert states(served) == {"tiny": "checking"}
        await wait_checked(served)
        (first,) = served.records()
        make_tiny_model(folder / "tiny.gguf", seed=1)
        await served.look_again()
        await wait_checked(served)
        (second,) = served.records()
        (folder / "tiny.gguf").write_text("broken")
        await served.look_again()
        await wait_checked(served)
        broken = states(served)
        (folder / "tiny.gguf").unlink()
        assert not await served.look_again()

        assert (first.name, second.name) == ("tiny", "tiny")
        assert first.digest != second.digest
        assert broken == {"tiny": "failed"}
        assert (served.load(), served.troubles()) == ((), [])


async def test_a_model_at_work_is_dropped_only_afterwards(folder: Path) -> None:
    path = folder / "demo.gguf"
    path.write_bytes(DEMO.read_bytes())
    async with serving(folder) as served:
        (worker,) = served.workers
        async with worker.submit(ask(sampling=ENDLESS)) as events:
            while not any(isinstance(event, Chunk) for event in await anext(events)):
                pass
            path.unlink()
            await served.look_again()
            kept = served.workers
            rest = [event async for batch in events for event in batch]
        await served.look_again()

        assert kept == (worker,)
        assert len(rest) > 100
        assert served.workers == ()
        await wait_for(lambda: worker.pid is None)


async def test_the_same_weights_are_offered_once_and_a_given_name_wins(folder: Path) -> None:
    (folder / "demo.gguf").write_bytes(DEMO.read_bytes())
    (folder / "fox.gguf").symlink_to(make_tiny_model(folder.parent / "elsewhere.gguf"))
    make_tiny_model(folder / "tiny.gguf", seed=2)
    async with serving(folder, ("tiny", DEMO), ("fox", folder.parent / "elsewhere.gguf")) as served:
        await wait_for(lambda: all(worker.state is State.READY for worker in served.workers if worker.resident))
        names = states(served)
        (other,) = names.keys() - {"tiny", "fox"}

        assert other.startswith("tiny-")
        assert names == {"tiny": "ready", "fox": "ready", other: "available"}
        assert len({model.digest for model in served.records()}) == 3


async def test_no_more_are_offered_than_a_heartbeat_can_tell_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAX_MODELS", 2)
    for seed in range(4):
        make_tiny_model(folder / f"m{seed}.gguf", seed=seed)
    async with serving(folder) as served:
        assert states(served) == {"m0": "available", "m1": "available"}
        assert [trouble.reason for trouble in served.troubles()] == ["2 model files are too many: a node offers at most 2"]


async def test_nothing_is_hashed_again_after_a_restart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(folder / "tiny.gguf")
    async with serving(folder) as served:
        before = served.records()
    monkeypatch.setattr(digest, "_compute", lambda *_: pytest.fail("hashed again"))
    async with serving(folder) as served:
        assert served.records() == before != []


async def test_a_model_is_found_by_its_name_and_loaded_and_unloaded_by_hand(folder: Path) -> None:
    (folder / "hub").mkdir()
    make_tiny_model(folder / "hub/tiny.gguf")
    async with serving(folder) as served:
        worker = served.find("hub/tiny")
        assert worker is not None
        assert served.find("tiny") is worker
        assert served.find("other") is None
        told = served.records()
        worker.wake()
        await wait_for(lambda: worker.state is State.READY)
        assert served.records() == told  # loading it is no news but of its state
        assert worker.unload()
        await wait_for(lambda: worker.pid is None)
        assert states(served) == {"tiny": "available"}


async def test_the_cores_follow_the_models_at_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    sent: list[tuple[int, bytes]] = []
    send = child.Child.send

    def spy(self: child.Child, data: bytes) -> None:
        if b"threads" in data:
            sent.append((self.pid, data[-1:]))
        send(self, data)

    monkeypatch.setattr(child.Child, "send", spy)
    (folder / "demo.gguf").write_bytes(DEMO.read_bytes())
    make_tiny_model(folder / "tiny.gguf")
    async with serving(folder) as served:
        demo, tiny = served.find("demo"), served.find("tiny")
        assert demo is not None
        assert tiny is not None
        async with demo.submit(ask(sampling=ENDLESS)) as events:
            await wait_for(lambda: demo.state is State.READY)
            await events_of(tiny, ask(sampling=SHORT))
            rest = [event async for batch in events for event in batch]
        assert "Paris" in await answer(demo, ask())
        told = {pid: [count for each, count in sent if each == pid] for pid in (demo.pid, tiny.pid) if pid}

        assert len(rest) > 100
        assert told == {demo.pid: [b"\x04", b"\x02", b"\x04"], tiny.pid: [b"\x02"]}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
@pytest.mark.parametrize("make", [make_tiny_model, lambda path: path.write_bytes(DEMO.read_bytes())], ids=["tiny", "demo"])
async def test_a_process_takes_less_than_was_estimated_and_not_much_less(folder: Path, make: Callable[[Path], object]) -> None:
    make(folder / "m.gguf")
    async with serving(folder) as served:
        (worker,) = served.workers
        await events_of(worker, ask("word " * 200, SHORT))
        held = worker.held

        assert held is not None
        assert 0.25 * held.need < held.resident < held.need


async def test_two_that_do_not_fit_together_take_turns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many requests for both at once: each is answered or told to come back, and none waits for ever."""
    for seed in (1, 2):
        make_tiny_model(folder / f"m{seed}.gguf", seed=seed)
    async with serving(folder) as served:
        one, two = served.workers
        await events_of(one, ask(sampling=SHORT))
        assert one.held is not None
        need = one.held.need
        monkeypatch.setattr(machine, "resident", lambda _pid: None)
        monkeypatch.setattr(room, "LOOK_S", 0.05)
        monkeypatch.setattr(
            machine, "memory_available", lambda: int(1.5 * need) - need * sum(each.pid is not None for each in (one, two))
        )
        answered: list[Worker] = []

        async def client(worker: Worker) -> None:
            for _ in range(3):
                await events_of(worker, ask(sampling=SHORT))
                answered.append(worker)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for worker in (one, two, one, two):
                    nursery.start_soon(client, worker)

        assert len(answered) == 12
        assert not one.busy
        assert not two.busy


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_order_things_happen_in_requests_are_answered_and_nothing_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Requests, cancels, loads and unloads at random, of three models of which two fit."""
    for number in range(3):
        make_tiny_model(folder / f"m{number}.gguf", seed=number)
    monkeypatch.setattr(room, "LOOK_S", 0.05)
    random = Random(seed)
    async with serving(folder) as served:
        workers = served.workers
        await events_of(workers[0], ask(sampling=SHORT))
        assert workers[0].held is not None
        need = workers[0].held.need
        monkeypatch.setattr(machine, "resident", lambda _pid: None)
        monkeypatch.setattr(
            machine, "memory_available", lambda: int(2.5 * need) - need * sum(worker.pid is not None for worker in workers)
        )

        async def client() -> None:
            for _ in range(12):
                worker = random.choice(workers)
                match random.randrange(5):
                    case 0:
                        worker.unload()
                    case 1:
                        worker.wake()
                    case 2:
                        with trio.move_on_after(random.random()):
                            await events_of(worker, ask(sampling=ENDLESS))
                    case _:
                        assert any(isinstance(event, Chunk) for event in await events_of(worker, ask(sampling=SHORT)))

        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(client)

        assert not any(worker.busy or worker.trouble for worker in workers)
        assert sum(worker.pid is not None for worker in workers) <= 2
        for worker in workers:
            worker.unload()
        await wait_for(lambda: not any(worker.pid for worker in workers))
