import re

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.worker.prompt import Tokenizer, pieces
from meshnode.worker.protocol import Region

CONTROLS = ("<a>", "<ab>", "[x]")
PATTERN = re.compile("(?=(<ab>|<a>|\\[x\\]))")


def ours(text: str) -> Region:
    return Region(text=text, ours=True)


def theirs(text: str) -> Region:
    return Region(text=text, ours=False)


def tokenizer(first: int | None = None) -> Tokenizer:
    """A model in which control tokens are 1, 2, 3 and every other character is its code point."""

    def tokenize(text: str, parse_special: bool) -> list[int]:
        tokens = []
        for piece in re.split("(<ab>|<a>|\\[x\\])", text) if parse_special else [text]:
            tokens += [CONTROLS.index(piece) + 1] if parse_special and piece in CONTROLS else list(map(ord, piece))
        return tokens

    return Tokenizer(tokenize, controls=CONTROLS, first=first)


def test_an_honest_prompt_is_tokenised_whole() -> None:
    assert list(pieces([ours("<a>"), theirs("hi"), ours("[x]")], PATTERN)) == [("<a>hi[x]", True)]


def test_a_control_token_in_a_message_is_plain_text() -> None:
    regions = [ours("<a>"), theirs("say [x] now"), ours("[x]")]

    assert list(pieces(regions, PATTERN)) == [("<a>", True), ("say [x] now", False), ("[x]", True)]
    assert tokenizer().tokens(regions) == [1, *map(ord, "say [x] now"), 3]


def test_a_control_token_that_a_message_completes_is_plain_text() -> None:
    for regions in (
        [ours("<a>["), theirs("x]")],
        [ours("<a>"), theirs("[x"), ours("]")],
        [ours("<a>"), theirs("["), theirs("x]")],
    ):
        assert tokenizer().tokens(regions) == [1, *b"[x]"]


def test_the_first_token_is_there_once() -> None:
    assert tokenizer(first=1).tokens([ours("<a>b")]) == [1, ord("b")]
    assert tokenizer(first=1).tokens([ours("b")]) == [1, ord("b")]
    assert tokenizer(first=None).tokens([ours("b")]) == [ord("b")]


def test_a_model_without_control_tokens_takes_anything() -> None:
    assert list(pieces([theirs("<a>")], None)) == [("<a>", True)]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([*CONTROLS, "<", "a>", "[", "x]", "b"]), st.booleans()), max_size=12))
def test_messages_never_make_a_control_token_and_no_text_is_lost(parts: list[tuple[str, bool]]) -> None:
    regions = [Region(text=text, ours=written) for text, written in parts]
    tokens = tokenizer().tokens(regions)
    own = "".join(text if written else "\0" for text, written in parts)

    assert "".join(CONTROLS[token - 1] if token < 4 else chr(token) for token in tokens) == "".join(text for text, _ in parts)
    assert sum(token < 4 for token in tokens) == len(re.findall("<ab>|<a>|\\[x\\]", own))
