"""An answer held to a grammar: which tokens may come next, token by token."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from meshnode.errors import InvalidRequest
from meshnode.worker.automaton import DEAD, Automaton, Exhausted
from meshnode.worker.network import network
from meshnode.worker.sampling import Logits
from meshnode.worker.vocabulary import Vocabulary

GRANT = 150_000
"""Places that may be looked at in one go: 0.1 to 0.2 s, in which the model's other answers wait."""
REFILL = 10_000
"""For each token, up to `GRANT` again. For JSON and 150,000 tokens, a state not met before takes at most so many, then none."""
MAX_AUTOMATA = 8
"""Kept for other answers by the same grammar."""
MAX_MASKS = 256
"""Kept of an automaton; one is an eighth of the vocabulary in bytes."""


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exhausted:
        raise InvalidRequest(
            "The grammar or schema leaves too many possibilities open at once.",
            hint="Let alternatives differ in how they begin.",
            param="response_format",
        ) from None


class Masks:
    """For states of one automaton, which tokens may come next."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def of(self, state: int, vocabulary: Vocabulary) -> NDArray[np.bool_]:
        """Raises Exhausted."""
        packed = self._kept.get(state)
        if packed is None:
            allowed = vocabulary.allowed(self.automaton, state)
            if len(self._kept) < MAX_MASKS:
                self._kept[state] = np.packbits(allowed)
            return allowed
        return np.unpackbits(packed, count=vocabulary.size).view(np.bool_)


class Grammars:
    """Automata by the text of their grammar, the last used ones kept."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._kept: OrderedDict[str, Masks] = OrderedDict()

    def constraints(self, grammar: str) -> "Callable[[], Constraint]":
        """What makes one for each answer. Raises GrammarError, or InvalidRequest where nothing can be begun."""
        masks = self._kept.pop(grammar, None)
        if masks is None or masks.automaton.full:
            with _explained():
                masks = Masks(Automaton(network(grammar)))
            if masks.automaton.start == DEAD:
                raise InvalidRequest(
                    "The grammar or schema accepts no text, or has too many possibilities to begin with.", param="response_format"
                )
        self._kept[grammar] = masks
        if len(self._kept) > MAX_AUTOMATA:
            self._kept.popitem(last=False)
        return partial(Constraint, masks, self._vocabulary)


class Constraint:
    """One answer that follows a grammar (sampling.Constraint). All of these raise InvalidRequest for a grammar too ambiguous."""

    def __init__(self, masks: Masks, vocabulary: Vocabulary) -> None:
        self._masks = masks
        self._vocabulary = vocabulary
        self._state = masks.automaton.start
        self._grant = GRANT

    @property
    def complete(self) -> bool:
        return self._masks.automaton.complete(self._state)

    @property
    def final(self) -> bool:
        return self._masks.automaton.final(self._state)

    def allows(self, token: int) -> bool:
        return self.complete if token in self._vocabulary.ending else self._after(token) != DEAD

    def masked(self, logits: Logits) -> Logits:
        with self._granted():
            allowed = self._masks.of(self._state, self._vocabulary)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Raises InvalidRequest also for a token that does not fit, which only a continuation of another's answer can bring."""
        ends = token in self._vocabulary.ending
        state = self._state if ends else self._after(token)
        if state == DEAD or (ends and not self.complete):
            raise InvalidRequest("The answer so far does not follow the grammar.", param="resume")
        self._state = state
        self._grant = min(GRANT, self._grant + REFILL)
        if self._masks.automaton.full:
            self._move()

    def _after(self, token: int) -> int:
        with self._granted():
            return self._vocabulary.after(self._masks.automaton, self._state, token)

    def _move(self) -> None:
        """To an automaton of its own, with nothing in it but this state; others find out for themselves."""
        old = self._masks.automaton
        automaton = Automaton(old.network)
        self._state = automaton.enter(old.places(self._state), complete=self.complete)
        self._masks = Masks(automaton)

    @contextmanager
    def _granted(self) -> Iterator[None]:
        """Work as long as this answer may, and count what it took."""
        automaton = self._masks.automaton
        automaton.granted = self._grant
        try:
            with _explained():
                yield
        finally:
            self._grant = max(0, automaton.granted)
