"""What is known of one generation: its choices, and of each the tokens, the text and where its KV cache is (pure).

    queued --slot--> reading --all but the newest token in the KV cache--> drawing --end, stop string, limit--> gone
       ^                |                                                     |
       '--parked--------'-----------------------------------------------------'

A choice is queued without its tokens' keys and values, with a copy of them in `saved`, or with what a slot may still hold. That
makes no difference but in time: what is missing is read again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from meshnode.errors import InvalidRequest
from meshnode.inference import Finish, Timings, Usage
from meshnode.worker.job import Job
from meshnode.worker.reader import NOTHING, Reader, Said
from meshnode.worker.runtime import Runtime
from meshnode.worker.sampling import Constraint, Logits, Sampler
from meshnode.worker.slots import Slot
from meshnode.worker.text import Text


@dataclass(eq=False)
class Choice:
    """One sequence. Of its tokens, the newest drawn one is never in the KV cache: it is decoded in the next step."""

    generation: "Generation"
    sampler: Sampler
    limit: int
    """Tokens of the answer."""
    due: float
    """See `schedule.due`."""
    text: Text
    constraint: Constraint | None
    reader: Reader
    tokens: list[int]
    """The prompt's, then the `drawn` ones of the answer."""
    drawn: int = 0
    slot: Slot | None = None
    """None while it is queued, and when it is gone."""
    saved: bytearray | None = field(default=None, repr=False)
    """The keys and values of its first `kept` tokens, while it is parked."""
    kept: int = 0
    unsent: Said = NOTHING
    """What comes with the next token's."""
    finish: Finish | None = None

    @property
    def missing(self) -> int:
        """Tokens that must be decoded before one can be drawn."""
        return len(self.tokens) - (self.slot.count if self.slot else 0)

    def draw(self, logits: Logits) -> int | None:
        """The next token; None when the answer can only end. Raises InvalidRequest where it cannot even do that."""
        if self.constraint is None:
            return self.sampler.draw(logits, self.drawn, self.tokens)
        token = self.sampler.draw_within(self.constraint, logits, self.drawn, self.tokens)
        if token is None and not self.constraint.complete:
            raise InvalidRequest(
                "The grammar or schema asks for what no token of this model can begin here.", param="response_format"
            )
        return token

    def accept(self, token: int, runtime: Runtime) -> Said:
        """Take `token` as the next one of the answer; what may be shown now. Sets `finish` when it is the last.

        Raises InvalidRequest for one that does not follow the constraint, which only another node can have drawn.
        """
        if self.constraint is not None:
            self.constraint.accept(token)
        self.tokens.append(token)
        self.drawn += 1
        ended = runtime.ends(token)
        piece = self.generation.job.form.controls.get(token) or runtime.piece(token)
        said = self.reader.push("" if ended else self.text.push(piece))
        final = self.constraint is not None and self.constraint.final
        if ended or self.text.stopped or self.reader.complete or final:
            self.finish = Finish.STOP
        elif self.drawn >= self.limit:
            self.finish = Finish.LENGTH
        else:
            return said
        return said + self._last()

    def end(self) -> Said:
        """There is no further token; what was held back."""
        self.finish = Finish.STOP
        return self._last()

    def _last(self) -> Said:
        said = self.reader.push(self.text.finish()) + self.reader.finish()
        if self.finish is Finish.STOP and self.reader.called:
            self.finish = Finish.TOOL_CALLS
        return said

    def replay(self, tokens: Iterable[int], runtime: Runtime) -> None:
        """Take what was drawn elsewhere; what comes after the answer's end is none of it."""
        for token in tokens:
            self.unsent += self.accept(token, runtime)
            if self.finish is not None:
                return


@dataclass(eq=False)
class Generation:
    """All choices of a job."""

    job: Job
    submitted: float
    choices: tuple[Choice, ...] = ()
    held: list[Choice] = field(default_factory=list)
    """Those that will share what the first one reads."""
    left: int = 0
    """Choices that have not finished."""
    admitted: float | None = None
    first: float | None = None
    """When it was first drawn for."""
    cached: int = 0
    reported: float = float("-inf")

    def usage(self) -> Usage:
        drawn = sum(choice.drawn for choice in self.choices)
        return Usage(prompt_tokens=len(self.job.prompt), completion_tokens=drawn, cached_tokens=self.cached)

    def timings(self, now: float) -> Timings:
        """What did not happen took no time: an answer that ended on another node is neither read nor drawn."""
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first is None else self.first
        return Timings(
            queue_ms=(admitted - self.submitted) * 1000, prefill_ms=(first - admitted) * 1000, decode_ms=(now - first) * 1000
        )


def generation_of(job: Job, *, submitted: float, due: float, context_length: int) -> Generation:
    """The answer to `job` before its first token. The prompt must be shorter than the context."""
    generation = Generation(job=job, submitted=submitted, left=job.n)
    room = context_length - len(job.prompt)
    limit = room if job.max_tokens is None else min(room, job.max_tokens)
    generation.choices = tuple(
        Choice(
            generation=generation,
            sampler=replace(job.sampler, choice=index) if index else job.sampler,
            limit=limit,
            due=due,
            text=Text(job.stops),
            reader=Reader(job.form, index, job.resume[index] if job.resume else None),
            constraint=job.constraint() if job.constraint else None,
            tokens=list(job.prompt),
        )
        for index in range(job.n)
    )
    return generation
