"""Which token comes next, drawn from one row of logits so that any node draws the same (pure).

The order is llama.cpp's, and written into the protocol (SPEC section 11), since a continuation must draw alike:

    bias               what the request adds to single tokens; what ends an answer may be forbidden
    penalties          for tokens that were there already: repetition, then frequency and presence
    temperature 0      or top_k 1: the likeliest token; nothing below matters
    top_k              the likeliest
    typical_p          those whose surprise is nearest to the expected one, until they hold `typical_p` of the probability
    top_p              the smallest set of the likeliest that holds `top_p` of what is left
    min_p              those at least `min_p` times as likely as the likeliest
    temperature        and one draw

The draw has no state: it is a hash of (seed, choice, position), where position counts the tokens of the answer from 0, so that a
continuation on another node goes on exactly where the first one stopped.

    u = first 8 bytes of SHA-256("meshnode-draw-v1" || seed || choice || position), little-endian, >> 11, / 2^53

with the seed as 8 bytes little-endian (modulo 2^64), choice and position as 4. The token is the first one, likeliest first and
the lower id first among equals, at which the cumulated probability exceeds u.

An answer that must follow a grammar is drawn as any other, and only the token that was drawn is held against the grammar. When it
does not fit, it is drawn again with the same u from logits in which all that do not fit are minus infinity, before everything
above: looking at all tokens is dear, and the model mostly keeps to the grammar by itself.

Every filter works on the at most `MAX_TOP_K` tokens that `top_k` left; bias and penalties on a copy of the row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meshnode.worker.penalties import NO_PENALTIES, Bias, Penalties

Logits = NDArray[np.float32]

DEFAULT_TEMPERATURE = 0.8
DEFAULT_TOP_P = 0.95
DEFAULT_TOP_K = 40
"""llama.cpp's own, used where neither the request nor the model's file says anything."""
MAX_TOP_K = 1000
"""Also what 0 ("all") means. Sorting a whole vocabulary takes milliseconds a token, and what is beyond has next to no weight."""


class Constraint(Protocol):
    """What an answer must follow. Each may raise a RequestError, which ends the answer."""

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        ...

    @property
    def final(self) -> bool:
        """Whether nothing can follow any more."""
        ...

    def allows(self, token: int) -> bool:
        """Whether `token` may be the next one."""
        ...

    def masked(self, logits: Logits) -> Logits:
        """A copy with minus infinity for every token that may not be the next one."""
        ...

    def accept(self, token: int) -> None:
        """`token` is the next one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the tokens of one choice are drawn; a temperature of 0 takes the likeliest token."""

    seed: int
    choice: int = 0
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = DEFAULT_TOP_K
    min_p: float = 0.0
    typical_p: float = 1.0
    penalties: Penalties = NO_PENALTIES
    bias: Bias | None = None

    def draw(self, logits: Logits, position: int, tokens: Sequence[int] = ()) -> int:
        """The token at `position` of the answer. `tokens` are the sequence so far: the prompt, then `position` of the answer."""
        row = self._adjusted(logits, position, tokens)
        if self.temperature <= 0 or self.top_k == 1:
            return int(np.argmax(row))
        likely = likeliest(row, self.top_k or MAX_TOP_K)
        likely = likely[row[likely] > -np.inf]
        if not likely.size:
            return 0  # as argmax: where nothing is possible, this is not either
        kept, scores = self._filtered(row, likely)
        total = np.cumsum(_softmax(scores / self.temperature))
        index = int(np.searchsorted(total, uniform(self.seed, self.choice, position) * total[-1], side="right"))
        return int(kept[min(index, len(scores) - 1)])

    def draw_within(self, constraint: Constraint, logits: Logits, position: int, tokens: Sequence[int] = ()) -> int | None:
        """As `draw`, for an answer that follows `constraint`; None when no token may be next."""
        token = self.draw(logits, position, tokens)
        if not constraint.allows(token):
            token = self.draw(constraint.masked(logits), position, tokens)
            if not constraint.allows(token):
                return None
        return token

    def _adjusted(self, logits: Logits, position: int, tokens: Sequence[int]) -> Logits:
        if self.bias is None and not (self.penalties.repeats or self.penalties.counts):
            return logits
        row = logits.copy()
        if self.bias is not None:
            self.bias.apply(row)
        self.penalties.apply(row, tokens, position)
        return row

    def _filtered(self, row: Logits, tokens: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens that may be drawn of these likeliest ones, likeliest first, and their logits."""
        scores = row[tokens].astype(np.float64)
        if self.typical_p < 1:
            typical = _typical(scores, self.typical_p)
            tokens, scores = tokens[typical], scores[typical]
        count = _nucleus(scores, self.top_p)
        if self.min_p > 0:
            count = min(count, int(np.searchsorted(-scores, -scores[0] - np.log(self.min_p), side="right")))
        return tokens[:count], scores[:count]


def uniform(seed: int, choice: int, position: int) -> float:
    """The draw of one position, in [0, 1)."""
    key = (seed % 2**64).to_bytes(8, "little") + choice.to_bytes(4, "little") + position.to_bytes(4, "little")
    digest = hashlib.sha256(b"meshnode-draw-v1" + key).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / 2**53


def likeliest(logits: Logits, count: int) -> NDArray[np.intp]:
    """The `count` likeliest tokens, likeliest first, the lower id first among equals.

    A full sort of a large vocabulary costs milliseconds. Split into columns, each column's maximum is one token, so the
    `count`-th largest maximum is a bar that at least `count` tokens reach, and seldom many more.
    """
    count = min(count, MAX_TOP_K, len(logits))
    columns = len(logits) // 32
    candidates = np.arange(len(logits))
    if columns > count:
        maxima = logits[: columns * 32].reshape(32, columns).max(axis=0)
        bar = np.partition(maxima, columns - count)[columns - count]
        candidates = np.flatnonzero(logits >= bar) if bar > -np.inf else _impossible_last(logits, count)
    order = np.lexsort((candidates, -logits[candidates]))
    return candidates[order[:count]]


def _impossible_last(logits: Logits, count: int) -> NDArray[np.intp]:
    """All tokens that are possible, and as many that are not as could be wanted: where a grammar leaves few, most are not."""
    return np.concatenate([np.flatnonzero(logits > -np.inf), np.flatnonzero(logits == -np.inf)[:count]])


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(scores - scores[0])
    return weights


def _nucleus(scores: NDArray[np.float64], top_p: float) -> int:
    """How many of the sorted `scores` it takes to hold `top_p` of their probability; at least one."""
    if top_p >= 1:
        return len(scores)
    total = np.cumsum(_softmax(scores))
    return int(np.searchsorted(total, top_p * total[-1], side="left")) + 1


def _typical(scores: NDArray[np.float64], typical_p: float) -> NDArray[np.intp]:
    """Indices of the locally typical ones of the sorted `scores`, in their order; at least one.

    Meister et al. 2022, as llama.cpp's `llama_sampler_typical_apply`: by the distance of -ln p from the entropy, nearest first,
    until more than `typical_p` of the probability is held.
    """
    weights = _softmax(scores)
    probabilities = weights / weights.sum()
    surprise = scores[0] - scores + np.log(weights.sum())
    entropy = np.sum(probabilities * np.where(probabilities > 0, surprise, 0))
    nearest = np.argsort(np.abs(surprise - entropy), kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[nearest]), typical_p, side="right")) + 1
    return np.sort(nearest[:count])
