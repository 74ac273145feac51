"""A real worker with a model of random weights, for the API's tests."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from tiny_model import make_tiny_model

from meshnode.worker.supervisor import State, Worker


@asynccontextmanager
async def tiny_worker(folder: Path, make: Callable[[Path], Path] = make_tiny_model) -> AsyncIterator[Worker]:
    """Ready; it ends with the block."""
    worker = Worker("m", make(folder / "tiny.gguf"), cache_dir=folder / "cache")
    ready = trio.Event()

    def changed() -> None:
        if worker.state is State.READY:
            ready.set()

    async def run() -> None:
        await worker.run(on_change=changed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(20):
            await ready.wait()
        yield worker
        nursery.cancel_scope.cancel()
