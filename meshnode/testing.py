"""Fakes that ship, for our tests and for yours: honest ones, which keep the rules of the interface that they stand for."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import log

import msgspec
import trio

from meshnode.backend import Events
from meshnode.errors import MeshnodeError, Unsupported
from meshnode.gossip.member import Member, Model, State
from meshnode.inference import Alternative, Chunk, End, Event, Finish, Phase, Progress, Request, Resume, TokenLogprob, Usage
from meshnode.names import ModelDigest, NodeId
from meshnode.wire.messages import ModelState


class FakeWorker:
    """A Backend that says `words`, one a step, `delay` seconds apart, after `delay` seconds of prefill; then raises or ends.

    A word may be a Chunk, for what is no text: reasoning, calls of tools; one that is a stop string of the request ends it.
    After `fail_after` words it raises `failure()` (0: before the first). A continuation begins behind what was said elsewhere.
    `requests`, `steps`, `finished` and `cancelled` tell what happened to it.
    """

    def __init__(
        self,
        words: Sequence[str | Chunk] = ("Hello", " from", " a", " fake", " worker", "."),
        *,
        delay: float = 0.0,
        fail_after: int | None = None,
        failure: Callable[[], MeshnodeError] | None = None,
    ) -> None:
        self.words = tuple(word if isinstance(word, Chunk) else Chunk(choice=0, text=word) for word in words)
        self.delay = delay
        self.fail_after = fail_after
        self.failure = failure
        self.requests: list[Request] = []
        self.steps = 0
        self.cancelled = 0
        self.finished = 0

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        if request.n > 1:
            raise Unsupported("The fake worker gives one choice.", param="n")
        self.requests.append(request)
        events = _FakeEvents(self, request)
        try:
            yield events
        finally:
            if events.ended:
                self.finished += 1
            else:
                self.cancelled += 1


class _FakeEvents:
    """Position and due time are advanced only after the wait, so that a cancelled wait loses nothing, time included."""

    def __init__(self, worker: FakeWorker, request: Request) -> None:
        self.ended = False
        self._worker = worker
        self._limit = request.sampling.max_tokens
        self._stops = request.sampling.stop
        self._top = request.logprobs.top if request.logprobs else None
        self._prompt = sum(
            len(text.split()) for text in (str(request.prompt or ""), *(each.content for each in request.messages))
        )
        (resume,) = request.resume or (Resume(token_ids=(), emitted_chars=0),)
        self._begin, self._skip = len(resume.token_ids), resume.emitted_chars
        self._echo = _echo(request)
        self._said = -1
        self._due: float | None = None

    def __aiter__(self) -> "_FakeEvents":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if self.ended:
            raise StopAsyncIteration
        if self._due is None:
            self._due = trio.current_time() + self._worker.delay
        await trio.sleep_until(self._due)
        self._due = None
        if self._said == -1:
            self._said = self._begin
            return (Progress(phase=Phase.PREFILL, done=self._prompt, total=self._prompt),)
        if self._said == self._worker.fail_after and self._worker.failure:
            self.ended = True
            raise self._worker.failure()
        return self._step()

    def _step(self) -> tuple[Event, ...]:
        words = self._worker.words[: self._limit]
        if not words:
            return self._ending(self._echo, Finish.LENGTH)
        index = self._said
        usage = Usage(prompt_tokens=self._prompt, completion_tokens=len(words))
        if index >= len(words):  # all of it was said elsewhere
            self.ended = True
            return (End(usage=usage),)
        self._said += 1
        self._worker.steps += 1
        logprobs = self._logprobs(index)
        if words[index].text in self._stops:
            stop = self._stops.index(words[index].text)
            return self._ending(Chunk(choice=0, text="", token_ids=(index,), stop=stop), Finish.STOP)
        text = words[index].text[max(0, self._skip - sum(len(word.text) for word in words[:index])) :]
        said = msgspec.structs.replace(words[index], text=text, token_ids=(index,), logprobs=logprobs)
        if self._said < len(words):
            return (said,)
        return self._ending(said, self._finish(words))

    def _ending(self, last: Chunk, finish: Finish) -> tuple[Event, ...]:
        self.ended = True
        usage = Usage(prompt_tokens=self._prompt, completion_tokens=self._said)
        return (msgspec.structs.replace(last, finish=finish), End(usage=usage))

    def _finish(self, words: Sequence[Chunk]) -> Finish:
        if len(words) < len(self._worker.words):
            return Finish.LENGTH
        return Finish.TOOL_CALLS if any(word.tool_calls for word in words) else Finish.STOP

    def _logprobs(self, index: int) -> tuple[TokenLogprob, ...]:
        """Each word as likely as half of what is left, had the words been drawn at this place; where asked for."""
        if self._top is None:
            return ()
        word, *others = (
            Alternative(token=place, text=said.text.encode(), logprob=-log(2) * (1 + rank))
            for rank, (place, said) in enumerate(sorted(enumerate(self._worker.words), key=lambda each: each[0] != index))
        )
        return (TokenLogprob(token=word.token, text=word.text, logprob=word.logprob, top=(word, *others)[: self._top]),)


def _echo(request: Request) -> Chunk:
    """As if every code point were a token, and 1 the one that a text begins with."""
    prompt = request.prompt if request.echo and request.prompt is not None else ()
    if isinstance(prompt, tuple):
        return Chunk(choice=0, text="".join(map(chr, prompt)), token_ids=prompt)
    return Chunk(choice=0, text=prompt, token_ids=(1, *map(ord, prompt)))


def fake_member(
    name: str,
    *models: str,
    routable: bool = True,
    reason: str = "",
    active: int = 0,
    slots: int = 4,
    weights: str = "",
    size: int = 1000,
) -> Member:
    """A member as the gossip engine would show it; equal `weights` (default: the model's name) give equal digests."""
    held = tuple(
        Model(
            name=model,
            digest=ModelDigest((weights or model).encode().ljust(32, b"\0")),
            size=size,
            context_length=1024,
            slots=slots,
        )
        for model in models
    )
    return Member(
        id=NodeId(name.encode().ljust(16, b"\0")),
        name=name,
        state=State.ALIVE,
        routable=routable,
        reason=reason,
        last_seen=0.0,
        models=held,
        load=tuple(ModelState(name=model.name, digest=model.digest, state="ready", active=active, slots=slots) for model in held),
    )


def renamed(member: Member, *models: Model) -> Member:
    """`member` with other models and no live load."""
    return msgspec.structs.replace(member, models=models, load=())
