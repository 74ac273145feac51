"""Kill the worker of an answer at every token, and see that another one goes on with the very words that were to come.

    .venv/bin/python scripts/kill_sweep.py                   a greedy and a seeded answer of 64 tokens, killed 128 times
    .venv/bin/python scripts/kill_sweep.py --every 16        at every 16th token

Two real workers serve the demo model; the dispatcher is the node's own. The exit code is 1 if a greedy answer differs from the
undisturbed one, or if any answer has lost or doubled a token. A seeded one may differ where two tokens are as good as equally
likely, since a prompt that is read at once is not computed to the last bit as one that grew: those are counted.
"""

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

import meshnode
from meshnode.backend import Backend, Events
from meshnode.dispatch import Dispatcher
from meshnode.errors import WorkerFailed
from meshnode.inference import Chunk, End, Event, Message, Request, Sampling
from meshnode.testing import fake_member
from meshnode.worker.supervisor import State, Worker

DEMO = Path(meshnode.__file__).parent / "data" / "demo.gguf"
TOKENS = 64
START_S = 60.0
GREEDY = Sampling(temperature=0, max_tokens=TOKENS, ignore_eos=True)
SEEDED = Sampling(temperature=0.9, seed=7, max_tokens=TOKENS, ignore_eos=True)


class Said(NamedTuple):
    """An answer as its reader got it. `gap_s`: the longest silence after its first token."""

    text: str
    tokens: tuple[int, ...]
    usage: int
    resumed: int
    gap_s: float


class KilledAt:
    """A worker whose process is killed once `after` tokens came from it; nothing that it said later arrives."""

    def __init__(self, worker: Worker, after: int) -> None:
        self._worker = worker
        self._after = after

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        async with self._worker.submit(request) as events:
            yield self._cut(events)

    async def _cut(self, events: Events) -> AsyncIterator[tuple[Event, ...]]:
        """An async generator does as an Events here, for nobody cancels a wait."""
        left = self._after
        async for batch in events:
            for event in batch:
                if isinstance(event, Chunk) and not left:
                    pid = self._worker.pid
                    assert pid is not None, "a worker that answers has a process"
                    os.kill(pid, signal.SIGKILL)
                    async for _ in events:
                        pass
                    raise WorkerFailed("killed after its last word, of which nothing arrives")
                left -= isinstance(event, Chunk)
                yield (event,)


@asynccontextmanager
async def ready_worker(cache: Path) -> AsyncIterator[Worker]:
    worker = Worker("demo", DEMO, cache_dir=cache, slots=2, context_length=512)
    ready = trio.Event()

    def changed() -> None:
        if worker.state is State.READY:
            ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(worker.run, on_change=changed))
        with trio.fail_after(START_S):
            await ready.wait()
        yield worker
        nursery.cancel_scope.cancel()


async def said_by(first: Backend, other: Worker, sampling: Sampling) -> Said:
    """The answer of `first`, or of both if it is lost."""
    assert other.model
    members = [fake_member("first", "demo"), fake_member("other", "demo", active=30)]
    known = [
        msgspec.structs.replace(
            member, models=(other.model,), load=(msgspec.structs.replace(member.load[0], digest=other.model.digest),)
        )
        for member in members
    ]
    dispatcher = Dispatcher(
        me=known[0].id,
        members=lambda: tuple(known),
        backend_of=lambda candidate: first if candidate.local else other,
        on_change=lambda: None,
        rng=random.Random(1),
    )
    request = Request(
        id="r", model="demo", messages=(Message(role="user", content="Tell me a story about a fox."),), sampling=sampling
    )
    text, tokens, usage, gap_s, heard = "", list[int](), 0, 0.0, 0.0
    async with dispatcher.submit(request) as answer:
        async for batch in answer.events:
            for event in batch:
                if isinstance(event, Chunk):
                    text += event.text
                    tokens += event.token_ids
                    now = trio.current_time()
                    gap_s, heard = max(gap_s, now - heard if heard else 0.0), now
                elif isinstance(event, End):
                    usage = event.usage.completion_tokens
    return Said(text, tuple(tokens), usage, answer.resumed, gap_s)


async def killed_at(after: int, other: Worker, sampling: Sampling, cache: Path) -> Said:
    """The answer whose first worker, a fresh one, is killed after so many tokens."""
    async with ready_worker(cache) as first:
        return await said_by(KilledAt(first, after), other, sampling)


async def sweep(every: int) -> int:
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="meshnode-kill-") as directory:
        cache = Path(directory)
        async with ready_worker(cache) as other:
            for name, sampling in (("greedy", GREEDY), ("seeded", SEEDED)):
                whole = await said_by(other, other, sampling)
                found = [await killed_at(after, other, sampling, cache) for after in range(0, TOKENS, every)]
                broken = [place * every for place, each in enumerate(found) if len(each.tokens) != TOKENS or each.usage != TOKENS]
                differ = [place * every for place, each in enumerate(found) if each[:2] != whole[:2]]
                print(f"{name}: {len(found)} kills; differs after {differ}; tokens lost or doubled after {broken}; ", end="")
                print(f"longest gap {1000 * max(each.gap_s for each in found):.0f} ms")
                wrong += len(broken) + (len(differ) if name == "greedy" else 0)
    return 1 if wrong else 0


def main() -> int:
    logging.disable(logging.WARNING)  # that workers end is what this is about
    parser = argparse.ArgumentParser(prog="scripts/kill_sweep.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="kill at every Nth token (default: each)")
    return trio.run(sweep, parser.parse_args().every)


if __name__ == "__main__":
    sys.exit(main())
