"""From a rendered prompt to tokens, so that only the template can name control tokens (pure).

A prompt in which no message spells a control token, not even together with the template's text beside it, is tokenised whole:
then it is exactly what llama.cpp itself would make of it. Otherwise it is cut at the control tokens that the template wrote, and
everything between them is plain text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from meshnode.worker.protocol import Region

Piece = tuple[str, bool]
"""Text, and whether control tokens in it are to be recognised."""


class Tokenizer:
    """`tokenize(text, parse_special)` is the model's, `controls` the texts of its control tokens."""

    def __init__(self, tokenize: Callable[[str, bool], list[int]], *, controls: Sequence[str], first: int | None) -> None:
        self._tokenize = tokenize
        self._first = first
        longest_first = sorted((control for control in controls if control), key=len, reverse=True)
        self._controls = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))") if longest_first else None

    def tokens(self, regions: Sequence[Region]) -> list[int]:
        """The prompt's tokens, beginning with the token that the model wants first."""
        tokens = [token for text, special in pieces(regions, self._controls) for token in self._tokenize(text, special)]
        if self._first is not None and tokens[:1] != [self._first]:
            tokens.insert(0, self._first)
        return tokens


def pieces(regions: Sequence[Region], controls: re.Pattern[str] | None) -> Iterator[Piece]:
    """`regions` in pieces to tokenise one by one. `controls` finds every place where a control token is spelt."""
    text = "".join(region.text for region in regions)
    spelt = [match.span(1) for match in controls.finditer(text)] if controls else []
    starts, ends = _theirs(regions)
    genuine = [(start, end) for start, end in spelt if bisect_left(starts, end) == bisect_right(ends, start)]
    if len(genuine) == len(spelt):
        yield text, True
        return
    at = 0
    for start, end in genuine:
        if start < at:
            continue  # inside the one before
        if at < start:
            yield text[at:start], False
        yield text[start:end], True
        at = end
    if at < len(text):
        yield text[at:], False


def _theirs(regions: Sequence[Region]) -> tuple[list[int], list[int]]:
    """Where messages' texts start and end: a span is clear of them when as many start before its end as end by its start."""
    starts, ends, at = [], [], 0
    for region in regions:
        if not region.ours and region.text:
            starts.append(at)
            ends.append(at + len(region.text))
        at += len(region.text)
    return starts, ends
