"""Several requests of one client as one answer: their choices counted on, their usage added up.

They run at the same time, a few at most, and whichever has something to say is heard. A failure of one is the failure of all.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from meshnode.api.exchange import Answer, Node
from meshnode.backend import Events
from meshnode.inference import Chunk, End, Event, Request, Timings, Usage

AT_ONCE = 4
"""Of one batch: it shall not take all the slots of the mesh from others. A guess."""

_Heard = tuple[Event, ...] | Exception


@asynccontextmanager
async def submitted(node: Node, requests: Sequence[Request]) -> AsyncIterator[Answer]:
    """The answer to all `requests`, one at least. Leaving the block cancels the work."""
    if len(requests) == 1:
        async with node.submit(requests[0]) as answer:
            yield answer
        return
    out, heard = trio.open_memory_channel[_Heard](0)
    batch = _Batch(heard, len(requests))
    turns = trio.CapacityLimiter(AT_ONCE)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for index, request in enumerate(requests):
            nursery.start_soon(partial(_run, node, request, out, first=index * request.n, batch=batch, turns=turns))
        try:
            yield batch
        except Exception as error:
            failure = error  # the nursery would wrap it
        nursery.cancel_scope.cancel()
    if failure:
        raise failure


async def _run(
    node: Node,
    request: Request,
    out: trio.MemorySendChannel[_Heard],
    *,
    first: int,
    batch: "_Batch",
    turns: trio.CapacityLimiter,
) -> None:
    try:
        async with turns, node.submit(request) as answer:
            async for events in answer.events:
                batch.heard_of(answer, first)
                await out.send(tuple(_shifted(event, first) for event in events))
    except Exception as error:  # whoever iterates shall see it, as that of a single request
        await out.send(error)


def _shifted(event: Event, first: int) -> Event:
    return msgspec.structs.replace(event, choice=event.choice + first) if isinstance(event, Chunk) else event


class _Batch:
    """The answers under way, as one. `node` and `reason` are those of the one heard last."""

    def __init__(self, heard: trio.MemoryReceiveChannel[_Heard], count: int) -> None:
        self.node = ""
        self.model = ""
        self.reason = ""
        self.resumed = 0
        self._resumed: dict[int, int] = {}
        self._heard = heard
        self._open = count
        self._usage = Usage(prompt_tokens=0, completion_tokens=0)
        self._timings = Timings()

    def heard_of(self, answer: Answer, first: int) -> None:
        """It is the answer whose choices begin with `first` that has something to say now."""
        self.node, self.model, self.reason = answer.node, answer.model, answer.reason
        self._resumed[first] = answer.resumed
        self.resumed = sum(self._resumed.values())

    @property
    def events(self) -> Events:
        return self

    def __aiter__(self) -> "_Batch":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        while True:
            if not self._open:
                raise StopAsyncIteration
            heard = await self._heard.receive()
            if isinstance(heard, Exception):
                raise heard
            events = tuple(event for event in map(self._counted, heard) if event is not None)
            if events:
                return events

    def _counted(self, event: Event) -> Event | None:
        """Only the last of the ends is one."""
        if not isinstance(event, End):
            return event
        self._open -= 1
        self._usage = _sum(self._usage, event.usage)
        self._timings = Timings(
            queue_ms=max(self._timings.queue_ms, event.timings.queue_ms),
            prefill_ms=self._timings.prefill_ms + event.timings.prefill_ms,
            decode_ms=self._timings.decode_ms + event.timings.decode_ms,
        )
        return None if self._open else End(usage=self._usage, timings=self._timings)


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )
