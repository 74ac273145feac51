"""Continuous batching: which sequence gets which rows of the next batch, and what its tokens become.

The engine owns the slots of a `Runtime` and runs in steps. A job waits in a queue (`schedule`) until a slot is free and the KV
cache has room for its prompt and a usual answer, then its prompt is read and its answer drawn token by token (`generation`). A
step is one batch: a row for every decoding stream, and pieces of prompts in what room is left. While anybody decodes, these are
cut so that a step stays short (`speed`). Cancels take effect between steps.

Answers may grow longer than expected. Then room is made: what slots without a stream keep is forgotten (`slots`), after that the
last stream due is parked. It leaves its slot, keeps a copy of its KV cache in main memory, `MAX_PARKED` bytes for all, or beyond
that its tokens alone, and goes back to the queue. The first one due is never parked, so somebody always comes to an end.

Of several choices the first one reads the prompt; the others share its KV cache and draw from the same logits, or, where nothing
can be shared or no slot is free, wait in the queue as any sequence that begins alike.

Nothing here knows llama.cpp, sockets or the wall clock. What a step brings is a list of (stream, event); an exception in place of
an event is the end of that stream alone. What the runtime raises is nobody's in particular and ends the process.
"""

from bisect import insort
from collections.abc import Callable, Iterable

from meshnode.errors import ContextTooLong, InternalError, MeshnodeError, Overloaded
from meshnode.inference import Chunk, End, Event, Phase, Progress, TokenLogprob
from meshnode.worker import schedule
from meshnode.worker.generation import Choice, Generation, generation_of
from meshnode.worker.job import Job
from meshnode.worker.logprobs import of_token
from meshnode.worker.reader import NOTHING, Said
from meshnode.worker.runtime import NoRoom, Runtime, Span
from meshnode.worker.sampling import Logits
from meshnode.worker.slots import EVICTED_AT_ONCE, Slots
from meshnode.worker.speed import Speed

MAX_WAITING = 64
"""Beyond that a request is better off elsewhere. A guess: at four slots, some minutes of waiting."""
MAX_PARKED = 512 * 1024 * 1024
"""Bytes, at most. Some 4,000 tokens of an 8 B model: copied in milliseconds a thousand, and read again in seconds."""
LOAD_S = 0.1
"""For so long the remaining work is taken to be as it was: it is a sum over all who wait."""
PROGRESS_S = 0.8
"""Between progress reports; with a long step on top it stays below two seconds."""

Happening = tuple[int, Event | MeshnodeError]


class Engine:
    """Streams over the slots of `runtime`. Not thread-safe; `clock` gives seconds."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        clock: Callable[[], float],
        max_waiting: int = MAX_WAITING,
        max_parked: int = MAX_PARKED,
    ) -> None:
        self.speed = Speed()
        self.parked_bytes = 0
        self._runtime = runtime
        self._clock = clock
        self._max_waiting = max_waiting
        self._max_parked = max_parked
        self.slots = Slots(runtime)
        self._share = runtime.pool // runtime.slots
        self._queue: list[Choice] = []
        """In the order of `schedule.due`."""
        self._active: list[Choice] = []
        """In the order of their slots."""
        self._generations: dict[int, Generation] = {}
        """By stream, until their end."""
        self._silent: dict[int, Generation] = {}
        """Those whose readers see nothing: not begun, or parked."""
        self._complete: list[Generation] = []
        """Those of which a choice had ended on another node already."""
        self._remaining = (float("-inf"), 0.0)
        """When it was summed up, and the sum."""

    @property
    def busy(self) -> bool:
        """Whether `step` has work."""
        return bool(self._generations)

    @property
    def only_decodes(self) -> bool:
        """Whether all whom the next step serves have begun to answer."""
        return bool(self._active) and not self._silent and not self._queue

    @property
    def waiting(self) -> int:
        """Sequences without a slot, parked ones among them."""
        return len(self._queue)

    @property
    def free_slots(self) -> int:
        return self.slots.idle

    @property
    def kv_free_tokens(self) -> int:
        """Room in the KV cache; what idle slots keep counts as free."""
        return self._runtime.pool - self.slots.held(choice.slot for choice in self._active if choice.slot)

    @property
    def remaining_s(self) -> float:
        """Work that is left, of running and waiting sequences one after the other, in seconds."""
        now = self._clock()
        at, seconds = self._remaining
        if now - at >= LOAD_S or not seconds or not self.busy:
            choices = (*self._active, *self._queue)
            step_s, _ = self.speed.line()
            seconds = schedule.remaining_s(choices, prefill_rate=self.speed.prefill_rate, step_s=step_s)
            self._remaining = (now, seconds)
        return seconds

    def submit(self, job: Job) -> None:
        """Queue `job`. Raises ContextTooLong, Overloaded, or what its constraint says of a `resume`; then nothing has changed."""
        limit = self._runtime.context_length
        if len(job.prompt) >= limit:
            message = (
                f"The prompt has {len(job.prompt)} tokens; with at least one for the answer, {limit} are the model's limit here."
            )
            raise ContextTooLong(message, hint="Shorten the messages.", param="messages")
        waiting = sum(generation.admitted is None for generation in self._silent.values())
        if waiting >= self._max_waiting:
            raise Overloaded(f"{waiting} requests are waiting already.", retry_after=5)
        now = self._clock()
        generation = generation_of(job, submitted=now, due=schedule.due(now, job.priority), context_length=limit)
        for choice, resume in zip(generation.choices, job.resume or (), strict=False):
            choice.replay(resume.token_ids, self._runtime)
        self._generations[job.stream] = self._silent[job.stream] = generation
        going = [choice for choice in generation.choices if choice.finish is None]
        generation.left = len(going)
        if len(going) < job.n:
            self._complete.append(generation)
        if self._runtime.unified and not job.resume:
            generation.held = going[1:]
        for choice in going[: len(going) - len(generation.held)]:
            self._enqueue(choice)

    def cancel(self, stream: int) -> None:
        """Take `stream` out before the next step; an unknown one is gone already."""
        if generation := self._generations.pop(stream, None):
            self._silent.pop(stream, None)
            self._complete = [other for other in self._complete if other is not generation]
            for choice in generation.choices:
                self._drop(choice)

    def step(self) -> list[Happening]:
        """Run one batch. What happened is in order within each stream."""
        now = self._clock()
        happened = [event for generation in self._complete for event in self._ended_elsewhere(generation, now)]
        self._complete.clear()
        self._admit(now)
        happened += self._progress(now)
        decoding, reading = self._rows()
        rows = [(choice, 1) for choice in decoding] + reading
        if not rows:
            return happened
        if not self._runtime.unified:
            rows.sort(key=_slot_id)  # or llama.cpp runs the batch in pieces: one for each step back in the order
        spans = [_span(choice, count) for choice, count in rows]

        before = self._clock()
        try:
            logits = self._runtime.decode(spans)
        except NoRoom:
            self._relieve()
            return happened
        now = self._clock()

        self.speed.measure(now - before, decoded=len(decoding), read=sum(count for _, count in reading))
        for choice, count in rows:
            assert choice.slot
            self.slots.grow(choice.slot, count)
        complete = [choice for (choice, _), span in zip(rows, spans, strict=True) if span.last]
        for choice, row in zip(complete, logits, strict=True):
            happened += self._advance(choice, row, now)
        return happened

    def _enqueue(self, choice: Choice) -> None:
        insort(self._queue, choice, key=lambda choice: choice.due)

    def _admit(self, now: float) -> None:
        """The first one due goes first, even if others behind it would fit: else it might wait for ever."""
        while self._queue and self.slots.idle and self._fits(self._queue[0]):
            choice = self._queue.pop(0)
            if choice.saved is None or not self._restore(choice):
                choice.slot = self.slots.take(choice.tokens, len(choice.tokens) - 1)
            self._activate(choice)
            generation = choice.generation
            if generation.admitted is None:
                assert choice.slot
                generation.admitted, generation.cached = now, min(choice.slot.count, len(generation.job.prompt))

    def _fits(self, choice: Choice, *, shared: int = 0) -> bool:
        """Whether there is room for all but the `shared` tokens of it, as far as one can know. For one alone there always is."""
        if not self._active or not self._runtime.unified:
            return True
        held = self._runtime.pool - self.kv_free_tokens
        booked = sum(max(0, schedule.booked(other, self._share) - other.slot.count) for other in self._active if other.slot)
        return held + booked + schedule.booked(choice, self._share) - shared <= self._runtime.pool

    def _activate(self, choice: Choice) -> None:
        job = choice.generation.job
        assert choice.slot
        choice.slot.chain, choice.slot.chained = job.chain, len(job.prompt)
        insort(self._active, choice, key=lambda choice: choice.slot.id if choice.slot else 0)

    def _progress(self, now: float) -> list[Happening]:
        reports: list[Happening] = []
        for generation in self._silent.values():
            if now - generation.reported < PROGRESS_S:
                continue
            generation.reported = now
            first = generation.choices[0]
            done, phase = (first.slot.count, Phase.PREFILL) if first.slot else (0, Phase.QUEUED)
            reports.append((generation.job.stream, Progress(phase=phase, done=done, total=len(first.tokens))))
        return reports

    def _rows(self) -> tuple[list[Choice], list[tuple[Choice, int]]]:
        """Who decodes and what is read in the next step, once there is room for that."""
        while True:
            decoding, reading = schedule.rows(self._active)
            pieces: list[tuple[Choice, int]] = []
            if reading:
                room = min(self._runtime.batch_size - len(decoding), self.speed.prefill_room(len(decoding)))
                pieces = schedule.pieces(reading, room, self.speed.prefill_rate)
            if self.slots.make_room(len(decoding) + sum(count for _, count in pieces)):
                return decoding, pieces
            self._park(schedule.victim(self._active))

    def _relieve(self) -> None:
        """The runtime has less room than we thought: forget what is idle, or park. Raises NoRoom when there is nothing more."""
        used = self.slots.used
        if self.slots.evict(EVICTED_AT_ONCE) or self.slots.used < used:
            return
        if len(self._active) < 2:
            raise NoRoom("a single sequence does not fit into the KV cache")
        self._park(schedule.victim(self._active))

    def _park(self, choice: Choice) -> None:
        slot = choice.slot
        assert slot
        assert len(self._active) > 1, "alone, every sequence has room"
        choice.saved = self._runtime.save(slot.id, self._max_parked - self.parked_bytes) if slot.count else None
        self._active.remove(choice)
        choice.slot, choice.kept = None, slot.count
        if choice.saved is None:
            self.slots.release(slot)
        else:
            self.parked_bytes += len(choice.saved)
            self.slots.clear(slot)
        self._silent[choice.generation.job.stream] = choice.generation
        self._enqueue(choice)

    def _restore(self, choice: Choice) -> bool:
        """Put back what was saved; if that fails, it is read again as if it had not been."""
        saved, choice.saved = choice.saved, None
        assert saved is not None
        self.parked_bytes -= len(saved)
        if not self.slots.make_room(choice.kept):
            return False
        choice.slot = self.slots.refill(choice.tokens, choice.kept, lambda slot: self._runtime.restore(slot, saved))
        return choice.slot is not None

    def _advance(self, choice: Choice, logits: Logits, now: float) -> Iterable[Happening]:
        """Draw the next token of `choice`, and of those that waited for its prompt. A bug in here is that answer's alone."""
        generation = choice.generation
        if choice.slot is None:
            return []  # its answer failed with another choice
        try:
            drawing = [choice, *self._fork(choice)] if generation.held else [choice]
            return [event for each in drawing for event in self._draw(each, logits, now)]
        except MeshnodeError as error:
            self.cancel(generation.job.stream)
            return [(generation.job.stream, error)]
        except Exception as error:
            self.cancel(generation.job.stream)
            return [(generation.job.stream, InternalError(f"The worker failed to draw a token: {type(error).__name__}."))]

    def _fork(self, first: Choice) -> list[Choice]:
        """The prompt is read: who has a slot draws from the same logits, and the others wait for one."""
        assert first.slot
        held, first.generation.held = first.generation.held, []
        forked: list[Choice] = []
        for choice in held:
            choice.slot = self.slots.fork(first.slot, choice.tokens) if self._fits(choice, shared=first.slot.count) else None
            if choice.slot is None:
                self._enqueue(choice)
            else:
                self._activate(choice)
                forked.append(choice)
        return forked

    def _draw(self, choice: Choice, logits: Logits, now: float) -> list[Happening]:
        generation, job = choice.generation, choice.generation.job
        token = choice.draw(logits)
        if self._silent:
            self._silent.pop(job.stream, None)
        if generation.first is None:
            generation.first = now
        said = choice.end() if token is None else choice.accept(token, self._runtime)
        if choice.unsent is not NOTHING:
            said, choice.unsent = choice.unsent + said, NOTHING
        logprobs: tuple[TokenLogprob, ...] = ()
        if token is not None and job.logprobs is not None and not self._runtime.ends(token):
            logprobs = (of_token(logits, token, job.logprobs, self._runtime.piece),)
        chunk = _chunk(choice, said, () if token is None else (token,), logprobs)
        if choice.finish is None:
            return [(job.stream, chunk)]
        self._drop(choice)
        generation.left -= 1
        return [(job.stream, chunk)] if generation.left else [(job.stream, chunk), (job.stream, self._end(generation, now))]

    def _ended_elsewhere(self, generation: Generation, now: float) -> list[Happening]:
        stream = generation.job.stream
        ended: list[Happening] = [(stream, _chunk(choice, choice.unsent)) for choice in generation.choices if choice.finish]
        return ended if generation.left else [*ended, (stream, self._end(generation, now))]

    def _end(self, generation: Generation, now: float) -> End:
        del self._generations[generation.job.stream]
        self._silent.pop(generation.job.stream, None)
        return End(usage=generation.usage(), timings=generation.timings(now))

    def _drop(self, choice: Choice) -> None:
        """It is gone; its slot keeps what its KV cache holds, which is all but a token drawn last."""
        if choice.slot:
            self._active.remove(choice)
            self.slots.release(choice.slot)
            choice.slot = None
        elif choice in self._queue:
            self._queue.remove(choice)
            self.parked_bytes -= len(choice.saved or b"")
            choice.saved = None


def _chunk(choice: Choice, said: Said, tokens: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = ()) -> Chunk:
    return Chunk(
        choice=choice.sampler.choice,
        text=said.text,
        token_ids=tokens,
        finish=choice.finish,
        logprobs=logprobs,
        reasoning=said.reasoning,
        tool_calls=said.calls,
        stop=None if choice.finish is None else choice.text.stop,
    )


def _slot_id(row: tuple[Choice, int]) -> int:
    slot = row[0].slot
    assert slot
    return slot.id


def _span(choice: Choice, count: int) -> Span:
    slot, tokens = choice.slot, choice.tokens
    assert slot
    start = slot.count
    end = start + count
    return Span(slot.id, start, tokens[start:end], end == len(tokens))
