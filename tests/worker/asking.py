"""How the tests of real child processes ask a worker and wait for it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from meshnode.inference import Chunk, Event, Message, Request, Sampling
from meshnode.worker.supervisor import State, Worker


def ask(content: str = "What is the capital of France?", sampling: Sampling | None = None) -> Request:
    sampling = sampling or Sampling(temperature=0)
    return Request(id="r", model="demo", messages=(Message(role="user", content=content),), sampling=sampling)


async def events_of(worker: Worker, request: Request) -> list[Event]:
    async with worker.submit(request) as events:
        return [event async for batch in events for event in batch]


async def answer(worker: Worker, request: Request) -> str:
    return "".join(event.text for event in await events_of(worker, request) if isinstance(event, Chunk))


async def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Real processes take real time: bounded polling is the only way to wait for them."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - a process has no event to wait for
            await trio.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether a process is no more, or only a zombie that its parent has yet to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@asynccontextmanager
async def running(worker: Worker, states: list[State] | None = None) -> AsyncIterator[Worker]:
    seen = states if states is not None else []

    async def run() -> None:
        await worker.run(on_change=lambda: seen.append(worker.state))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield worker
        nursery.cancel_scope.cancel()
