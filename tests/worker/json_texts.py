"""Texts by chance that a grammar accepts."""

from random import Random

from meshnode.worker.automaton import DEAD, Automaton
from meshnode.worker.network import network

CLOSING = b'"}]'


def automaton_of(grammar: str) -> Automaton:
    automaton = Automaton(network(grammar))
    automaton.granted = 10_000_000
    return automaton


def accepts(automaton: Automaton, text: str) -> bool:
    state = automaton.start
    for byte in text.encode():
        state = automaton.step(state, byte)
    return automaton.complete(state)


def some_text(automaton: Automaton, rng: Random, length: int = 200) -> str | None:
    """Soon beyond `length` what is open gets closed; None where that takes too long."""
    state, text = automaton.start, bytearray()
    while not automaton.final(state) and not (automaton.complete(state) and rng.random() < 0.3):
        following = [(byte, after) for byte in range(256) if (after := automaton.step(state, byte)) != DEAD]
        ending = [each for each in following if each[0] in CLOSING or automaton.complete(each[1])]
        if not following or len(text) > 5 * length:
            return None
        byte, state = rng.choice(ending if ending and len(text) > length else following)
        text.append(byte)
    return text.decode()
