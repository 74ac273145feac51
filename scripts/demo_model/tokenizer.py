"""Byte-level BPE as llama.cpp's `gpt2` tokenizer reads it: every text can be encoded, and long characters span tokens."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from demo_model.grammar import SPECIALS

NORMAL, CONTROL = 1, 3
"""Token types of the GGUF format."""
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
"""GPT-2's split into words, for ASCII; our text has nothing else."""
_PARTS = re.compile("(" + "|".join(re.escape(special) for special in SPECIALS) + ")")


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


SYMBOLS = _byte_symbols()


class Tokenizer:
    """Ids are: the 256 bytes, the merges in the order learnt, the special tokens."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.merges = merges
        plain = list(dict.fromkeys([*(SYMBOLS[byte] for byte in range(256)), *(left + right for left, right in merges)]))
        self.tokens = [*plain, *SPECIALS]
        self.types = [NORMAL] * len(plain) + [CONTROL] * len(SPECIALS)
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        self._rank = {merge: rank for rank, merge in enumerate(merges)}
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        parts = (part for part in _PARTS.split(text) if part)
        return [token for part in parts for token in ([self.ids[part]] if part in SPECIALS else self._encode_plain(part))]

    def _encode_plain(self, text: str) -> list[int]:
        return [token for word in _WORDS.findall(text) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._known:
            pieces = [SYMBOLS[byte] for byte in word.encode()]
            while len(pieces) > 1:
                best = min(range(len(pieces) - 1), key=lambda at: self._rank.get((pieces[at], pieces[at + 1]), len(self._rank)))
                if (pieces[best], pieces[best + 1]) not in self._rank:
                    break
                pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
            self._known[word] = [self.ids[piece] for piece in pieces]
        return self._known[word]


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent pairs, one after the other, ties to the greater pair."""
    words = Counter(
        word for text in texts for part in _PARTS.split(text) if part not in SPECIALS for word in _WORDS.findall(part)
    )
    spelled = [([SYMBOLS[byte] for byte in word.encode()], times) for word, times in words.items()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, times in spelled:
            for pair in pairwise(pieces):
                pairs[pair] += times
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = [(_merged(pieces, best), times) for pieces, times in spelled]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    if pair[0] not in pieces:
        return pieces
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
