"""Text as it is shown while tokens come in: whole characters, no stop strings."""

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.worker.text import Text


def shown(pieces: list[bytes], stops: list[str]) -> tuple[str, bool]:
    text = Text(stops)
    out = ""
    for piece in pieces:
        out += text.push(piece)
        if text.stopped:
            return out, True
    return out + text.finish(), text.stopped


def test_a_character_split_over_tokens_comes_whole() -> None:
    text = Text()

    assert [text.push(bytes([byte])) for byte in "é€".encode()] == ["", "é", "", "", "€"]


def test_half_a_character_at_the_end_is_replaced() -> None:
    text = Text()

    assert text.push("a€".encode()[:2]) == "a"
    assert text.finish() == "\ufffd"


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    text = Text(["END"])

    assert [text.push(piece) for piece in (b"the E", b"N", b"d. E")] == ["the ", "", "ENd. "]
    assert text.finish() == "E"


def test_of_several_stop_strings_the_first_in_the_text_is_named() -> None:
    text = Text(["more", "END"])
    text.push(b"so END more")

    assert text.stop == 1


def test_a_stop_string_over_several_tokens_ends_the_text_before_it() -> None:
    assert shown([b"so E", b"N", b"D more"], ["END"]) == ("so ", True)


def test_the_earliest_stop_string_counts() -> None:
    assert shown([b"one two three"], ["three", "two"]) == ("one ", True)


def test_nothing_comes_after_a_stop() -> None:
    text = Text(["."])
    text.push(b"a.b")

    assert (text.push(b"c"), text.finish()) == ("", "")


@settings(max_examples=50)
@given(st.text(alphabet="ab€", max_size=30), st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3), st.data())
def test_the_cut_does_not_depend_on_how_the_text_was_split(whole: str, stops: list[str], data: st.DataObject) -> None:
    encoded = whole.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=10)))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    text, stopped = shown(pieces, stops)

    # Which stop string counts may depend on the split (one that ends earlier is seen earlier), but never where text leaks.
    assert whole.startswith(text)
    assert stopped == any(stop in whole for stop in stops)
    assert not any(stop in text for stop in stops)
    if not stopped:
        assert text == whole
    else:
        assert any(whole[len(text) :].startswith(stop) for stop in stops)
