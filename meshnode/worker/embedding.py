"""Texts to vectors, many texts in one batch, a batch a step (pure).

Requests wait in the order in which they came. A batch takes texts from the front of the queue, also of several requests, until it
has `STEP_TOKENS` or a longer text alone: a text is never split, for models that are not causal see it whole, and its mean is made
in one go. So a step is short, and the model's answers go on between two steps.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meshnode.errors import ContextTooLong, InternalError, InvalidRequest, MeshnodeError, Overloaded
from meshnode.inference import Chunk, End, Event, Finish, Usage, vector_text

STEP_TOKENS = 512
"""Of a batch, where no single text is longer. More is not faster on a processor."""
MAX_WAITING = 64

Vectors = NDArray[np.float32]
Happening = tuple[int, Event | MeshnodeError]


class EmbeddingRuntime(Protocol):
    """A loaded model that makes vectors of texts: of at most `sequences` at once, with `max_tokens` tokens in all."""

    sequences: int
    max_tokens: int

    def embed(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """One row for each text, of no particular length."""
        ...


@dataclass(eq=False)
class _Waiting:
    stream: int
    texts: deque[Sequence[int]]
    """Those that are in no batch yet."""
    count: int
    tokens: int
    done: int = 0
    failed: bool = False


class Embedder:
    def __init__(self, runtime: EmbeddingRuntime) -> None:
        self._runtime = runtime
        self._queue: deque[_Waiting] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def submit(self, stream: int, texts: Sequence[Sequence[int]]) -> None:
        """Queue the tokens of `texts`. Raises InvalidRequest, ContextTooLong or Overloaded, and then has changed nothing."""
        for index, text in enumerate(texts):
            if not text:
                raise InvalidRequest(f"`input[{index}]` is empty.", param="input")
            if len(text) > self._runtime.max_tokens:
                message = f"`input[{index}]` has {len(text)} tokens; {self._runtime.max_tokens} are the model's limit here."
                raise ContextTooLong(message, hint="Cut it into shorter texts.", param="input")
        if not texts:
            raise InvalidRequest("`input` is empty.", param="input")
        if len(self._queue) >= MAX_WAITING:
            raise Overloaded(f"{len(self._queue)} requests for embeddings are waiting already.", retry_after=5)
        self._queue.append(_Waiting(stream, deque(texts), len(texts), sum(map(len, texts))))

    def cancel(self, stream: int) -> None:
        """An unknown one is gone already."""
        self._queue = deque(waiting for waiting in self._queue if waiting.stream != stream)

    def step(self) -> list[Happening]:
        """Run one batch."""
        batch = self._batch()
        vectors = _unit(self._runtime.embed([text for _, text in batch]))
        happened: list[Happening] = []
        for (waiting, _), vector in zip(batch, vectors, strict=True):
            happened += self._arrived(waiting, vector)
        self._queue = deque(waiting for waiting in self._queue if waiting.texts)
        return happened

    def _batch(self) -> list[tuple[_Waiting, Sequence[int]]]:
        batch: list[tuple[_Waiting, Sequence[int]]] = []
        tokens = 0
        for waiting in self._queue:
            while waiting.texts:
                tokens += len(waiting.texts[0])
                if batch and (tokens > STEP_TOKENS or len(batch) == self._runtime.sequences):
                    return batch
                batch.append((waiting, waiting.texts.popleft()))
        return batch

    def _arrived(self, waiting: _Waiting, vector: Vectors) -> list[Happening]:
        if waiting.failed:
            return []
        if not np.isfinite(vector).all():
            waiting.texts.clear()
            waiting.failed = True
            return [(waiting.stream, InternalError("The model made no numbers of a text."))]
        text = vector_text(vector.astype("<f4").tobytes())
        happened: list[Happening] = [(waiting.stream, Chunk(choice=waiting.done, text=text, finish=Finish.STOP))]
        waiting.done += 1
        if waiting.done == waiting.count:
            happened.append((waiting.stream, End(usage=Usage(prompt_tokens=waiting.tokens, completion_tokens=0))))
        return happened


def _unit(vectors: Vectors) -> Vectors:
    """Of length 1 each, as OpenAI's are; a vector of zeros stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
