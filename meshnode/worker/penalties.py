"""What a row of logits loses for tokens that were there already, and what a request adds to tokens that it names (pure).

Both are functions of the request and of the token ids alone, the last ones of the prompt and those of the answer so far: a
continuation on another node that replays the ids penalises alike. Sums are made in double precision and rounded to single once
for each token, so that nodes agree to the last bit.

Sources: repetition as llama.cpp's `llama_sampler_penalties_apply` (Keskar et al. 2019, with its divide-or-multiply by sign) over
a window that spans prompt and answer; presence and frequency as OpenAI's API reference has them, over the answer alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_LAST = 64
"""llama.cpp's `repeat_last_n`: some sentences. More keeps punctuation and small words away, less lets phrases come back."""

_Row = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """`repeat` (above 0; 1: none) concerns the `last` tokens of prompt and answer (-1: all); the others, the answer; 0: none."""

    repeat: float = 1.0
    last: int = DEFAULT_LAST
    presence: float = 0.0
    frequency: float = 0.0

    @property
    def repeats(self) -> bool:
        return self.repeat != 1 and self.last != 0

    @property
    def counts(self) -> bool:
        return self.presence != 0 or self.frequency != 0

    def apply(self, row: _Row, tokens: Sequence[int], answered: int) -> None:
        """Change `row` (a logit for each token of the vocabulary); the last `answered` of `tokens` are the answer's.

        repeat:    l > 0: l / repeat, else l * repeat       for each token of the window
        counts:    l - frequency * count - presence         for each token of the answer
        """
        if self.repeats:
            seen = _ids(set(tokens[-self.last :] if self.last > 0 else tokens))
            logits = row[seen].astype(np.float64)
            row[seen] = np.where(logits > 0, logits / self.repeat, logits * self.repeat)
        if self.counts and answered:
            assert answered <= len(tokens), "the answer is part of the sequence"
            counts = Counter(tokens[len(tokens) - answered :])
            row[_ids(counts)] -= self.frequency * np.fromiter(counts.values(), np.float64, len(counts)) + self.presence


NO_PENALTIES = Penalties()


class Bias:
    """What is added to the logits of some tokens; minus infinity forbids one."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._tokens = _ids(biases)
        self._values = np.fromiter(biases.values(), np.float64, len(biases))

    def apply(self, row: _Row) -> None:
        """Change `row`. Every token must be one of the vocabulary."""
        row[self._tokens] += self._values


def _ids(tokens: Iterable[int]) -> NDArray[np.intp]:
    return np.fromiter(tokens, np.intp)
