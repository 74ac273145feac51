"""What of an answer has been passed on, so that another node with the same weights can go on with it (pure; design D12).

The other node reads prompt and drawn tokens as one prompt, and draws on: the draw depends on seed, choice and position alone
(SPEC 11), so the rest is what the first node would have said, as far as both compute alike.
"""

from dataclasses import dataclass, field

from meshnode.inference import Chunk, Resume

MAX_TOKENS = 1 << 20
"""As many as a request may carry."""


@dataclass
class _Choice:
    tokens: list[int] = field(default_factory=list)
    chars: int = 0
    reasoning: int = 0
    arguments: int = 0
    finished: bool = False

    def resume(self) -> Resume:
        return Resume(
            token_ids=tuple(self.tokens),
            emitted_chars=self.chars,
            emitted_reasoning=self.reasoning,
            emitted_arguments=self.arguments,
        )


class Spoken:
    """An answer under way."""

    def __init__(self, choices: int) -> None:
        self._choices = {index: _Choice() for index in range(choices)}
        self._tokens = 0
        self._known = True
        self.begun = False

    def hear(self, chunk: Chunk) -> bool:
        """Whether `chunk` is to be passed on: who goes on with an answer says once more that a choice is finished."""
        choice = self._choices.get(chunk.choice)
        if choice is not None and choice.finished:
            return False
        self.begun = True
        self._tokens += len(chunk.token_ids)
        self._known = self._known and choice is not None and self._tokens <= MAX_TOKENS
        if choice is not None and self._known:
            choice.tokens += chunk.token_ids
            choice.chars += len(chunk.text)
            choice.reasoning += len(chunk.reasoning)
            choice.arguments += sum(len(call.arguments) for call in chunk.tool_calls)
            choice.finished = chunk.finish is not None
        return True

    def resume(self) -> tuple[Resume, ...] | None:
        """Where to go on, for each choice; None where that is not known, since text came without its tokens."""
        if not self._known or not self._tokens:
            return None
        return tuple(choice.resume() for choice in self._choices.values())
