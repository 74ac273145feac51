"""Sets of characters against what Python's own encoder writes."""

from hypothesis import example, given
from hypothesis import strategies as st

from meshnode.worker.utf8 import MAX_CODE_POINT, byte_ranges, complement

CODES = st.integers(0, MAX_CODE_POINT)
RANGES = st.lists(st.tuples(CODES, CODES).map(lambda pair: (min(pair), max(pair))), max_size=4)


def spelt(ranges: list[tuple[int, int]], data: bytes) -> bool:
    sequences = byte_ranges(complement(complement(ranges)))
    return any(
        len(sequence) == len(data) and all(low <= byte <= high for (low, high), byte in zip(sequence, data, strict=True))
        for sequence in sequences
    )


@given(RANGES, st.characters(exclude_categories=["Cs"]))
@example([(0, 0x7F)], "\x80")
@example([(0x80, 0x10FFFF)], "\x7f")
@example([(0x7FF, 0x800)], "ࠀ")
def test_a_character_is_written_by_the_ranges_that_hold_it_alone(ranges: list[tuple[int, int]], character: str) -> None:
    inside = any(low <= ord(character) <= high for low, high in ranges)

    assert spelt(ranges, character.encode()) == inside


@given(RANGES)
def test_a_complement_of_a_complement_holds_the_same_without_surrogates(ranges: list[tuple[int, int]]) -> None:
    once = complement(ranges)

    assert complement(complement(once)) == once
    assert not any(low <= 0xDFFF and high >= 0xD800 for low, high in once)


@given(st.binary(max_size=5))
def test_no_bytes_are_a_character_but_those_of_utf_8(data: bytes) -> None:
    try:
        valid = len(data.decode()) == 1
    except UnicodeDecodeError:
        valid = False

    assert spelt([(0, MAX_CODE_POINT)], data) == valid
