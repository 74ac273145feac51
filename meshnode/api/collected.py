"""A whole answer in the making, before a dialect gives it its form (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from meshnode.errors import InternalError
from meshnode.inference import Chunk, End, Event, Finish, TokenLogprob, ToolCall

MAX_ANSWER = 16 * 1024 * 1024
"""Kept of an unstreamed answer, whatever a serving node sends: far beyond what any model's context holds."""
_CHUNK_COST = 64
_LOGPROB_COST = 160
"""What the objects take beside their text, in bytes, roughly."""


@dataclass
class Choice:
    """One of the answers to a request."""

    index: int
    finish: Finish = Finish.STOP
    stop: int | None = None
    """Which stop string of the request ended it."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    texts: list[str] = field(default_factory=list, repr=False)
    thoughts: list[str] = field(default_factory=list, repr=False)
    pieces: dict[int, list[ToolCall]] = field(default_factory=dict, repr=False)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    @property
    def calls(self) -> list[ToolCall]:
        """Each in one piece."""
        return [joined(self.pieces[index]) for index in sorted(self.pieces)]


def joined(pieces: Sequence[ToolCall]) -> ToolCall:
    """The pieces of one call as one."""
    return ToolCall(
        index=pieces[0].index,
        id="".join(piece.id for piece in pieces),
        name="".join(piece.name for piece in pieces),
        arguments="".join(piece.arguments for piece in pieces),
    )


class Collected:
    """`add` the events of an answer; `choices` and `end` are complete once `End` was among them."""

    def __init__(self) -> None:
        self._size = 0
        self._choices: dict[int, Choice] = {}
        self._end: End | None = None

    @property
    def end(self) -> End:
        """Raises InternalError when the events did not come to their end."""
        if self._end is None:
            raise InternalError("The answer ended without its end.")
        return self._end

    @property
    def choices(self) -> list[Choice]:
        """By index."""
        return [self._choices[index] for index in sorted(self._choices)]

    def add(self, batch: Iterable[Event]) -> None:
        """Raises InternalError when it grows beyond all bounds."""
        for event in batch:
            if isinstance(event, Chunk):
                self._size += _cost(event)
                if self._size > MAX_ANSWER:
                    raise InternalError(
                        f"The answer is longer than {MAX_ANSWER} characters.", hint="Set max_tokens, or stream it."
                    )
                self._add(event)
            elif isinstance(event, End):
                self._end = event

    def _add(self, chunk: Chunk) -> None:
        choice = self._choices.setdefault(chunk.choice, Choice(chunk.choice))
        choice.texts.append(chunk.text)
        choice.thoughts.append(chunk.reasoning)
        choice.logprobs += chunk.logprobs
        for piece in chunk.tool_calls:
            choice.pieces.setdefault(piece.index, []).append(piece)
        if chunk.finish is not None:
            choice.finish, choice.stop = chunk.finish, chunk.stop


def _cost(chunk: Chunk) -> int:
    calls = sum(len(piece.id + piece.name + piece.arguments) + _CHUNK_COST for piece in chunk.tool_calls)
    tokens = sum(
        len(token.text) + sum(len(each.text) for each in token.top) + _LOGPROB_COST * (1 + len(token.top))
        for token in chunk.logprobs
    )
    return len(chunk.text) + len(chunk.reasoning) + _CHUNK_COST + calls + tokens
