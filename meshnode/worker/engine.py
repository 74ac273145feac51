"""Continuous batching: which sequence gets which rows of the next batch, and what its tokens become.

The engine owns the slots of a `Runtime` and runs in steps. A job waits in a first-in-first-out queue until a slot is free, then

    waiting --slot free--> prefill --whole prompt in the KV cache--> decode --end of generation, stop string, limit--> gone

and at any moment a cancel takes it out at once. A step is one batch: a row for every decoding stream first, then pieces of the
oldest prompts in what room is left. Prefill is cut so that a step takes about `STEP_S`: so long at most does a cancel, a new
request or a progress report wait. A slot keeps its tokens when its stream is gone, and a new prompt that begins alike takes them
over; should the model's memory not allow the cut, the slot is emptied instead.

Of a stream's tokens, all but the newest are in the KV cache: the newest is drawn but not decoded until the next step. So a prompt
of P tokens can be answered with at most `context_length` - P tokens.

Nothing here knows llama.cpp, sockets or the wall clock. What a step brings is a list of (stream, event); an exception in place of
an event is the end of that stream alone. What the runtime raises is nobody's in particular and ends the process.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from meshnode.errors import ContextTooLong, InternalError, MeshnodeError, Overloaded
from meshnode.inference import Chunk, End, Event, Finish, Phase, Progress, Timings, TokenLogprob, Usage
from meshnode.worker.answer import PLAIN, Answer, Form, Said
from meshnode.worker.logprobs import of_token
from meshnode.worker.sampling import Logits, Sampler
from meshnode.worker.text import Text

MAX_WAITING = 64
"""Beyond that a request is better off elsewhere. A guess: at four slots, some minutes of waiting."""
STEP_S = 0.5
"""Aim for a step with prefill in it. Longer reads prompts a little faster, shorter is more responsive."""
PROGRESS_S = 0.8
"""Between progress reports; with a step of `STEP_S` on top it stays near a second."""
FIRST_PREFILL = 128
MIN_PREFILL = 32
"""Prompt tokens in a step before the speed is known, and at least."""
_MEMORY = 0.9
"""Weight of the past in the running average of the decode rate."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence in a batch; the last one's logits are wanted when `last`."""

    slot: int
    start: int
    tokens: Sequence[int]
    last: bool


class Runtime(Protocol):
    """A loaded model with `slots` sequences of `context_length` tokens each."""

    slots: int
    context_length: int
    batch_size: int

    def decode(self, spans: Sequence[Span]) -> Sequence[Logits]:
        """Run one batch; the logits of every span with `last`, in order. They are valid until the next call."""
        ...

    def cut(self, slot: int, length: int) -> bool:
        """Forget all but the first `length` tokens of a slot; False when the model cannot, and nothing has changed."""
        ...

    def piece(self, token: int) -> bytes:
        """The text of a token; empty for control tokens."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the model says with `token` that it is done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sequence to generate, as `Engine.submit` takes it."""

    stream: int
    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives are wanted beside each token's log-probability; None: not even that."""
    form: Form = PLAIN


@dataclass(eq=False)
class _Stream:
    job: Job
    limit: int
    submitted: float
    text: Text
    answer: Answer
    tokens: list[int] = field(default_factory=list)
    """In the KV cache, plus the newest drawn one once decoding."""
    slot: int = -1
    drawn: int = 0
    cached: int = 0
    admitted: float = 0.0
    first: float = 0.0
    reported: float = float("-inf")

    @property
    def decoding(self) -> bool:
        return self.drawn > 0

    @property
    def missing(self) -> int:
        """Tokens of the prompt that are not in the KV cache yet."""
        return len(self.job.prompt) - len(self.tokens)


Happening = tuple[int, Event | MeshnodeError]


class Engine:
    """Streams over the slots of `runtime`. Not thread-safe; `clock` gives seconds."""

    def __init__(self, runtime: Runtime, *, clock: Callable[[], float], max_waiting: int = MAX_WAITING) -> None:
        self._runtime = runtime
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting: deque[_Stream] = deque()
        self._active: list[_Stream] = []
        self._idle: dict[int, list[int]] = {slot: [] for slot in range(runtime.slots)}
        """Free slots and what their KV cache still holds, the longest unused first."""
        self._prefill_rate = FIRST_PREFILL / STEP_S
        self.tokens_per_s = 0.0
        """Of all streams together while decoding, a running average; kept while idle, 0 before the first token."""

    @property
    def busy(self) -> bool:
        """Whether `step` has work."""
        return bool(self._active or self._waiting)

    @property
    def kv_free_tokens(self) -> int:
        """Room in the KV cache; what idle slots keep counts as free."""
        used = sum(len(stream.tokens) for stream in self._active)
        return self._runtime.slots * self._runtime.context_length - used

    def submit(self, job: Job) -> None:
        """Queue `job`. Raises ContextTooLong or Overloaded, and then has changed nothing."""
        room = self._runtime.context_length - len(job.prompt)
        if room < 1:
            limit = self._runtime.context_length
            message = (
                f"The prompt has {len(job.prompt)} tokens; with at least one for the answer, {limit} are the model's limit here."
            )
            raise ContextTooLong(message, hint="Shorten the messages.", param="messages")
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already.", retry_after=5)
        limit = room if job.max_tokens is None else min(room, job.max_tokens)
        answer = Answer(job.form, job.sampler.choice)
        self._waiting.append(_Stream(job=job, limit=limit, submitted=self._clock(), text=Text(job.stops), answer=answer))

    def cancel(self, stream: int) -> None:
        """Take `stream` out before the next step; an unknown one is gone already."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting.job.stream != stream)
        for active in self._active:
            if active.job.stream == stream:
                self._retire(active)
                return

    def step(self) -> list[Happening]:
        """Run one batch. What happened is in order within each stream."""
        self._admit()
        reports = self._progress()
        decoding = [stream for stream in self._active if stream.decoding]
        spans = [Span(stream.slot, len(stream.tokens) - 1, stream.tokens[-1:], True) for stream in decoding]
        prefilling = self._prefill(self._runtime.batch_size - len(spans))
        if not spans and not prefilling:
            return reports

        before = self._clock()
        rows = self._runtime.decode(spans + [span for _, span in prefilling])
        now = self._clock()

        self._measure(now - before, len(decoding), sum(len(span.tokens) for _, span in prefilling))
        for stream, span in prefilling:
            stream.tokens += span.tokens
        complete = [stream for stream, span in prefilling if span.last]
        for stream, logits in zip(decoding + complete, rows, strict=True):
            reports += self._advance(stream, logits, now)
        return reports

    def _admit(self) -> None:
        while self._waiting and self._idle:
            stream = self._waiting.popleft()
            prompt = stream.job.prompt
            # The last token of the prompt is always decoded: its logits give the first token of the answer.
            shared = {slot: _common(tokens, prompt, len(prompt) - 1) for slot, tokens in self._idle.items()}
            slot = max(shared, key=lambda slot: shared[slot])  # the first of equals is the longest unused
            if not self._runtime.cut(slot, shared[slot]):
                self._runtime.cut(slot, 0)
                shared[slot] = 0
            del self._idle[slot]
            stream.slot, stream.cached, stream.admitted = slot, shared[slot], self._clock()
            stream.tokens = list(prompt[: shared[slot]])
            self._active.append(stream)

    def _progress(self) -> list[Happening]:
        now = self._clock()
        reports: list[Happening] = []
        for stream in (*self._active, *self._waiting):
            if stream.decoding or now - stream.reported < PROGRESS_S:
                continue
            stream.reported = now
            phase = Phase.QUEUED if stream.slot < 0 else Phase.PREFILL
            reports.append((stream.job.stream, Progress(phase=phase, done=len(stream.tokens), total=len(stream.job.prompt))))
        return reports

    def _prefill(self, room: int) -> list[tuple[_Stream, Span]]:
        room = min(room, max(MIN_PREFILL, int(self._prefill_rate * STEP_S)))
        spans: list[tuple[_Stream, Span]] = []
        for stream in self._active:
            count = min(room, stream.missing)
            if stream.decoding or count <= 0:
                continue
            start = len(stream.tokens)
            spans.append((stream, Span(stream.slot, start, stream.job.prompt[start : start + count], count == stream.missing)))
            room -= count
        return spans

    def _measure(self, took: float, decoded: int, prefilled: int) -> None:
        took = max(took, 1e-6)
        if prefilled >= MIN_PREFILL:
            self._prefill_rate = prefilled / took
        if decoded and not prefilled:
            rate = decoded / took
            self.tokens_per_s = _MEMORY * self.tokens_per_s + (1 - _MEMORY) * rate if self.tokens_per_s else rate

    def _advance(self, stream: _Stream, logits: Logits, now: float) -> Iterable[Happening]:
        """Draw the next token of `stream`. A bug in here is that stream's alone."""
        try:
            return self._draw(stream, logits, now)
        except Exception as error:
            self._retire(stream)
            return [(stream.job.stream, InternalError(f"The worker failed to draw a token: {type(error).__name__}."))]

    def _draw(self, stream: _Stream, logits: Logits, now: float) -> list[Happening]:
        token = stream.job.sampler.draw(logits, stream.drawn, stream.tokens)
        if not stream.decoding:
            stream.first = now
        stream.tokens.append(token)
        stream.drawn += 1
        ended = self._runtime.ends(token)
        piece = stream.job.form.controls.get(token) or self._runtime.piece(token)
        said = stream.answer.push("" if ended else stream.text.push(piece))
        finish: Finish | None = None
        if ended or stream.text.stopped or stream.answer.complete:
            finish = Finish.STOP
        elif stream.drawn >= stream.limit:
            finish = Finish.LENGTH
        logprobs = () if ended else self._logprobs(stream.job, logits, token)
        if finish is None:
            return [(stream.job.stream, _chunk(stream, token, said, logprobs))]
        said += stream.answer.push(stream.text.finish()) + stream.answer.finish()
        if finish is Finish.STOP and stream.answer.called:
            finish = Finish.TOOL_CALLS
        self._retire(stream)
        chunk = msgspec.structs.replace(_chunk(stream, token, said, logprobs), finish=finish)
        return [(stream.job.stream, chunk), (stream.job.stream, self._end(stream, now))]

    def _logprobs(self, job: Job, logits: Logits, token: int) -> tuple[TokenLogprob, ...]:
        return () if job.logprobs is None else (of_token(logits, token, job.logprobs, self._runtime.piece),)

    def _end(self, stream: _Stream, now: float) -> End:
        usage = Usage(prompt_tokens=len(stream.job.prompt), completion_tokens=stream.drawn, cached_tokens=stream.cached)
        timings = Timings(
            queue_ms=(stream.admitted - stream.submitted) * 1000,
            prefill_ms=(stream.first - stream.admitted) * 1000,
            decode_ms=(now - stream.first) * 1000,
        )
        return End(usage=usage, timings=timings)

    def _retire(self, stream: _Stream) -> None:
        """Free the slot; it keeps what its KV cache holds, which is all but a token drawn last."""
        self._active.remove(stream)
        self._idle[stream.slot] = stream.tokens[:-1] if stream.decoding else stream.tokens


def _chunk(stream: _Stream, token: int, said: Said, logprobs: tuple[TokenLogprob, ...]) -> Chunk:
    return Chunk(
        choice=stream.job.sampler.choice,
        text=said.text,
        token_ids=(token,),
        logprobs=logprobs,
        reasoning=said.reasoning,
        tool_calls=said.calls,
    )


def _common(tokens: Sequence[int], prompt: Sequence[int], limit: int) -> int:
    """How many tokens both begin with, at most `limit`."""
    count = 0
    for ours, theirs in zip(tokens, prompt[:limit], strict=False):
        if ours != theirs:
            break
        count += 1
    return count
