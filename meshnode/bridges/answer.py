"""One request at a remote service: sent to one of the services that can answer it, and read as our events (trio).

A failure before the first chunk is hidden where another service, or a new token, may still help; after it, it is an error, for
the caller has read text that nobody else would write alike. The caller's own task reads the socket, so a slow reader slows the
remote down and fills no memory here, and leaving closes the connection, which is how a remote learns that nobody waits.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Protocol

import trio

from meshnode.bridges import openai_form, refusals
from meshnode.bridges.client import Ask, Client, Exchange, Head, Headers
from meshnode.bridges.failure import Cause, Failure
from meshnode.errors import MeshnodeError, ModelUnavailable, Overloaded, RemoteFailed, RequestError, ServingError
from meshnode.inference import Chunk, End, Event, Phase, Progress, Request

PROGRESS_S = 2.5
"""Of silence before the first chunk: then a sign of life goes up, so that a node that waits is not taken for a dead one."""
FIRST_CHUNK_S = 600.0
"""A large model that is loaded first, or a long queue: a guess. The app proxy has no such limit, so we must."""
NEXT_CHUNK_S = 120.0
MAX_TRIES = 3
ONE_REPLICA_GONE = 502
"""The app proxy chose a replica that does not answer. It may choose another one the next time, so the service is asked again."""
_LAST_WORDS_S = 0.05
"""For the end of a connection's last answer, so that it can be used again."""
_MAX_REFUSAL = 64 * 1024
_MAX_WHOLE = 16 * 1024 * 1024
CHAT = "/v1/chat/completions"


class Reaction(Enum):
    """What to make of an answer that is an error."""

    PLAIN = 1
    """What its status says."""
    ASK_AGAIN = 2
    """Once more, for something was renewed."""
    GONE = 3
    """The service is not there any more, whatever the status says."""


class Target(Protocol):
    """One service that can answer. `name` is for people; `model` is what the service calls it; `secrets` are never shown."""

    name: str
    model: str

    @property
    def client(self) -> Client: ...

    @property
    def secrets(self) -> Sequence[str]: ...

    async def authorization(self) -> Headers:
        """What shows that we may ask. Raises MeshnodeError when it cannot be had."""
        ...

    def began(self) -> None:
        """A request is at it, until `ended`."""
        ...

    def refused(self, status: int, answer: bytes) -> "Reaction":
        """It answered with an error."""
        ...

    def ended(self, *, ok: bool | None, tokens: int) -> None:
        """The request is over. Not `ok`: the service failed; None: nothing can be said, the caller left or was wrong."""
        ...


@asynccontextmanager
async def answer(request: Request, targets: Sequence[Target]) -> AsyncIterator["Answer"]:
    """Ask one of `targets`, the first first. Raises when there is none."""
    if not targets:
        raise ModelUnavailable(f"{request.model} is not offered by its remote any more.", retry_after=5.0)
    running = Answer(request, targets)
    try:
        yield running
    finally:
        await running.close()


class Answer:
    """An `Events` of the Backend interface. Every wait may be cut and begun again: what it waits for is kept here."""

    def __init__(self, request: Request, targets: Sequence[Target]) -> None:
        self._request = request
        self._targets = list(targets)
        self._target: Target | None = None
        self._tries = 0
        self._asked_again = False
        self._exchange: Exchange | None = None
        self._head: Head | None = None
        self._reading = self._new_reading(targets[0])
        self._refusal = bytearray()
        self._begun = False
        self._tokens = 0
        self._deadline = trio.current_time() + FIRST_CHUNK_S
        self._error: MeshnodeError | None = None

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        await trio.lowlevel.checkpoint()
        if self._reading.complete:
            raise StopAsyncIteration
        while True:
            if self._error is not None:
                raise self._error
            try:
                if events := await self._events():
                    return events
            except Failure as failure:
                await self._lose(failure)
            except MeshnodeError as error:
                await self._give_up(error, blame=not isinstance(error, RequestError))

    async def close(self) -> None:
        try:
            if self._reading.complete and self._exchange is not None:
                await self._read_out(self._exchange)
        finally:
            await self._leave(ok=True if self._reading.complete else None)

    async def _read_out(self, exchange: Exchange) -> None:
        """Only a connection whose answer was read to its end can be used again."""
        with trio.move_on_after(_LAST_WORDS_S), suppress(Failure):
            while await exchange.read():
                pass

    async def _events(self) -> tuple[Event, ...]:
        """What came; nothing where the wait was for more than is worth a sign of life."""
        if self._exchange is None:
            await self._ask()
        with trio.move_on_after(PROGRESS_S):
            return await self._read()
        if trio.current_time() >= self._deadline:
            raise Failure(Cause.TOO_SLOW, "it said nothing for too long")
        phase = Phase.PREFILL if self._head else Phase.QUEUED
        return () if self._begun else (Progress(phase=phase),)

    async def _ask(self) -> None:
        if self._target is None:
            self._target = self._targets.pop(0)
            self._tries += 1
            self._target.began()
        target = self._target
        headers = (
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream, application/json"),  # the app proxy answers with web pages otherwise
            ("x-meshnode-scope", "lan"),  # another mesh must not send it over a bridge of its own, perhaps back to us
            *await target.authorization(),
        )
        body = openai_form.body(self._request, target.model)
        self._head, self._reading = None, self._new_reading(target)
        self._exchange = await target.client.send(Ask("POST", CHAT, headers, body))

    def _new_reading(self, target: Target) -> openai_form.Reading:
        return openai_form.Reading(target.name, choices=self._request.n)

    async def _read(self) -> tuple[Event, ...]:
        assert self._exchange is not None
        if self._head is None:
            self._head = await self._exchange.head()
            self._refusal.clear()
        if self._head.status != 200:
            raise await self._refused(self._exchange, self._head)
        if "json" in self._head.headers.get("content-type", ""):
            return self._pass_on(self._reading.whole(await self._whole(self._exchange, _MAX_WHOLE)))
        while True:
            data = await self._exchange.read()
            if self._begun:
                self._deadline = trio.current_time() + NEXT_CHUNK_S
            if events := self._reading.take(data) if data else self._reading.end():
                return self._pass_on(events)

    def _pass_on(self, events: Sequence[Event]) -> tuple[Event, ...]:
        if not self._begun and any(isinstance(event, Chunk) for event in events):
            self._begun = True
            self._deadline = trio.current_time() + NEXT_CHUNK_S
        for event in events:
            self._tokens = event.usage.completion_tokens if isinstance(event, End) else self._tokens + isinstance(event, Chunk)
        return tuple(events)

    async def _whole(self, exchange: Exchange, limit: int) -> bytes:
        """The rest of the body. What a wait that was cut had read is still there."""
        while data := await exchange.read():
            self._refusal += data
            if len(self._refusal) > limit:
                raise Failure(Cause.TOO_LARGE, f"its answer is larger than {limit} bytes")
        return bytes(self._refusal)

    async def _refused(self, exchange: Exchange, head: Head) -> MeshnodeError:
        assert self._target is not None
        said = await self._whole(exchange, _MAX_REFUSAL)
        target = self._target
        reaction = target.refused(head.status, said)
        if reaction is Reaction.ASK_AGAIN and not self._asked_again:
            self._asked_again = True
            return _AskAgain("once more")
        if reaction is Reaction.GONE:
            return ModelUnavailable(
                f"{target.name} is gone: {refusals.words(head.status, said, target.secrets)}.", retry_after=5.0
            )
        if head.status == ONE_REPLICA_GONE and self._tries < MAX_TRIES:
            self._targets.append(target)
        retry_after = head.headers.get("retry-after", "")
        return refusals.error(target.name, head.status, said, retry_after=retry_after, secrets=target.secrets)

    async def _lose(self, failure: Failure) -> None:
        if failure.stale and not self._asked_again:
            self._asked_again = True
            await self._drop()
            return
        name = self._target.name if self._target else "The remote"
        what = "stopped in the middle of its answer" if self._begun else "gave no answer"
        await self._give_up(RemoteFailed(f"{name} {what}: {failure}."), blame=True)

    async def _give_up(self, error: MeshnodeError, *, blame: bool) -> None:
        """Decide whether the next service is asked, or the same once more; else `error` is the end."""
        if isinstance(error, _AskAgain):
            await self._drop()
            return
        await self._leave(ok=None if not blame or isinstance(error, Overloaded) else False)
        self._asked_again = False
        if self._begun or not self._targets or not isinstance(error, ServingError) or not error.retryable:
            self._error = error

    async def _leave(self, *, ok: bool | None) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.ended(ok=ok, tokens=self._tokens)
        await self._drop()

    async def _drop(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.close()


class _AskAgain(ServingError):
    """Never leaves this module."""
