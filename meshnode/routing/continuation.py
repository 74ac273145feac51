"""What of an answer has been passed on, so that another node with the same weights can go on with it (pure; design D12).

The other node reads prompt and drawn tokens as one prompt, and draws on: the draw depends on seed, choice and position alone
(SPEC 11), so the rest is what the first node would have said, as far as both compute alike.
"""

from meshnode.inference import Chunk, Resume

MAX_TOKENS = 1 << 20
"""As many as a request may carry."""


class Spoken:
    """The one choice of an answer under way."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._chars = 0
        self._reasoning = 0
        self._arguments = 0
        self._known = True

    @property
    def begun(self) -> bool:
        return bool(self._tokens or self._chars or self._reasoning or self._arguments or not self._known)

    def hear(self, chunk: Chunk) -> None:
        """`chunk` is passed on."""
        self._known = self._known and chunk.choice == 0 and len(self._tokens) + len(chunk.token_ids) <= MAX_TOKENS
        if self._known:
            self._tokens += chunk.token_ids
            self._chars += len(chunk.text)
            self._reasoning += len(chunk.reasoning)
            self._arguments += sum(len(call.arguments) for call in chunk.tool_calls)

    def resume(self) -> Resume | None:
        """Where to go on; None where that is not known: text came without its tokens, or for several choices."""
        if not self._known or not self._tokens:
            return None
        return Resume(
            token_ids=tuple(self._tokens),
            emitted_chars=self._chars,
            emitted_reasoning=self._reasoning,
            emitted_arguments=self._arguments,
        )
