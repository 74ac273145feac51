"""Sets of characters, and the bytes that they are written with in UTF-8 (pure)."""

from collections.abc import Iterator, Sequence

Ranges = tuple[tuple[int, int], ...]
"""Code points from, to, both included; sorted, apart from each other, without surrogates."""

MAX_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_LENGTH_ENDS = (0x7F, 0x7FF, 0xFFFF, MAX_CODE_POINT)
"""The last code point of one, two, three and four bytes."""


def complement(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """All characters that are in none of `ranges`, which may overlap; twice, it puts them in order."""
    gaps = []
    after = 0
    for low, high in sorted((*ranges, _SURROGATES)):
        if after < low:
            gaps.append((after, low - 1))
        after = max(after, high + 1)
    if after <= MAX_CODE_POINT:
        gaps.append((after, MAX_CODE_POINT))
    return tuple(gaps)


def byte_ranges(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """Sequences of byte ranges: the characters of `ranges` are the byte strings with each byte in its range of some sequence.

    As Russ Cox's RE2 does it: a range is cut until first and last character differ only in bytes that run through all values.
    """
    for low, high in ranges:
        start = low
        for end in _LENGTH_ENDS:
            if start <= min(high, end):
                yield from _same_length(start, min(high, end))
                start = min(high, end) + 1


def _same_length(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    for bits in (6, 12, 18):
        mask = (1 << bits) - 1
        if low >> bits == high >> bits:
            break
        if low & mask:
            yield from _same_length(low, low | mask)
            yield from _same_length((low | mask) + 1, high)
            return
        if high & mask != mask:
            yield from _same_length(low, (high & ~mask) - 1)
            yield from _same_length(high & ~mask, high)
            return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
