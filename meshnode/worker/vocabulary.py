"""The tokens of a model as bytes, to be held against a grammar one by one or all at once."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from meshnode.worker.automaton import DEAD, Automaton


class Vocabulary:
    """`pieces` are the bytes that each token adds to an answer, empty for control tokens; `ending` are the tokens that end it."""

    def __init__(self, pieces: Sequence[bytes], ending: Collection[int]) -> None:
        self.size = len(pieces)
        self.ending = frozenset(ending)
        self._pieces = pieces
        self._lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self._offsets = np.cumsum(self._lengths) - self._lengths
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self._ending = np.fromiter(self.ending, np.int64, len(self.ending))

    def after(self, automaton: Automaton, state: int, token: int) -> int:
        """The state after `token`, which does not end the answer; DEAD when it does not fit. Raises Exhausted."""
        piece = self._pieces[token]
        for byte in piece:
            state = automaton.step(state, byte)
        return state if piece else DEAD

    def allowed(self, automaton: Automaton, state: int) -> NDArray[np.bool_]:
        """Of each token, whether it fits. Byte by byte, all tokens together; those that fit no more are left behind.

        Raises Exhausted.
        """
        alive = np.flatnonzero(self._lengths)
        fits = np.zeros(len(self._lengths), np.bool_)
        states = np.full(len(alive), state, np.int32)
        index = 0
        while alive.size:
            states = automaton.learn(states, self._bytes[self._offsets[alive] + index])
            lives = states != DEAD
            alive, states = alive[lives], states[lives]
            index += 1
            ended = self._lengths[alive] == index
            fits[alive[ended]] = True
            alive, states = alive[~ended], states[~ended]
        fits[self._ending] = automaton.complete(state)
        return fits
