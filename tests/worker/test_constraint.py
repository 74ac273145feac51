"""Tokens held against a grammar: one by one and all at once, within bounds whatever the grammar."""

import re
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

np = pytest.importorskip("numpy")

from meshnode.errors import InvalidRequest  # noqa: E402 - after the check for the extra
from meshnode.worker import automaton, constraint  # noqa: E402
from meshnode.worker.constraint import MAX_AUTOMATA, Constraint, Grammars  # noqa: E402
from meshnode.worker.vocabulary import Vocabulary  # noqa: E402

WORDS = ("", "a", "b", "ab", "aab", "ba", "[", "]", "[[", "[a", "a]]", ",", "世", " ")
PIECES = (*(word.encode() for word in WORDS), "世".encode()[:1], "世".encode()[1:], b"a" * 16, b"")
END = len(PIECES) - 1
"""The token that ends an answer; token 0 is a control token without any text."""
LISTS = 'root ::= item\nitem ::= "[" ( item ("," item)* )? "]" | "a"+ | "世"'
DOUBLING = 'root ::= "[" root "]" | "[" root ("a" | "]") | "b"'
"""Which of the alternatives a bracket belongs to shows only when it is closed: as many places as 2 to the depth."""


def grammars() -> Grammars:
    return Grammars(Vocabulary(PIECES, {END}))


def new(grammar: str) -> Constraint:
    return grammars().constraints(grammar)()


def token(text: str) -> int:
    return PIECES.index(text.encode())


def allowed(held: Constraint) -> list[int]:
    masked = held.masked(np.zeros(len(PIECES), np.float32))
    return [int(each) for each in np.flatnonzero(masked == 0)]


def follow(held: Constraint, *texts: str) -> Constraint:
    for text in texts:
        held.accept(token(text))
    return held


def test_only_tokens_that_go_on_are_allowed_and_the_end_only_where_it_is_one() -> None:
    held = new(LISTS)

    assert [PIECES[each].decode("utf-8", "replace") for each in allowed(held)] == ["a", "[", "[[", "[a", "世", "�", "a" * 16]
    assert END in allowed(follow(held, "a"))
    assert END not in allowed(follow(new(LISTS), "["))
    assert not held.final


def test_a_character_may_come_in_two_tokens() -> None:
    held = new(LISTS)
    first, second = PIECES.index("世".encode()[:1]), PIECES.index("世".encode()[1:])
    held.accept(first)

    assert allowed(held) == [second]
    assert not held.complete
    held.accept(second)
    assert held.complete
    assert held.final
    assert allowed(held) == [END]


@given(st.lists(st.integers(0, END), max_size=12), st.sampled_from([LISTS, DOUBLING, 'root ::= ("ab" | "a" | "b" "a")* "世"?']))
def test_all_tokens_at_once_are_those_one_by_one(wanted: Sequence[int], grammar: str) -> None:
    held = new(grammar)
    for each in wanted:
        one_by_one = [token for token in range(len(PIECES)) if held.allows(token)]
        assert allowed(held) == one_by_one
        if each in one_by_one:
            held.accept(each)


def test_a_token_that_does_not_fit_is_not_accepted() -> None:
    held = new(LISTS)
    for wrong in (token("]"), token(""), END):
        with pytest.raises(InvalidRequest, match="does not follow the grammar"):
            held.accept(wrong)

    held.accept(token("[a"))
    assert held.allows(token("a]]")) is False
    assert held.allows(token("]"))


def test_answers_by_the_same_grammar_share_what_was_found_out_and_nothing_else() -> None:
    shared = grammars()
    one, other = shared.constraints(LISTS)(), shared.constraints(LISTS)()
    follow(one, "[", "a")

    assert one._masks is other._masks
    assert allowed(other) == allowed(new(LISTS))


def test_only_so_many_grammars_are_kept() -> None:
    shared = grammars()
    for count in range(MAX_AUTOMATA + 5):
        shared.constraints(f'root ::= "a"{{{count}}}')

    assert len(shared._kept) == MAX_AUTOMATA


def test_a_full_automaton_is_left_for_an_empty_one_with_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = follow(new(LISTS), "[[", "[a", ",")
    monkeypatch.setattr(automaton, "MAX_STATES", 3)
    shared = grammars()
    moved = follow(shared.constraints(LISTS)(), "[[", "[a", ",")

    assert len(moved._masks.automaton._states) < 3
    assert allowed(moved) == allowed(plain)
    assert allowed(follow(moved, "a]]", "]")) == allowed(follow(plain, "a]]", "]")) == [END]
    assert shared.constraints(LISTS)()._masks is shared.constraints(LISTS)()._masks


def test_places_that_double_with_every_token_are_bounded() -> None:
    """llama.cpp's own grammars take seconds for the 14th bracket of the like, and four times as long for every further one."""
    held = new(DOUBLING)
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="does not follow"):
        follow(held, *["["] * 1000)

    assert time.process_time() - began < 2
    assert allowed(held) == [token("b"), token("ba")], "deeper is refused, so the answer closes what is open"
    follow(held, "b", *["]"] * 7)
    assert not held.complete
    follow(held, "]")
    assert held.complete


def test_depth_is_bounded() -> None:
    held = new('root ::= "[" root "]" | "b"')
    with pytest.raises(InvalidRequest):
        follow(held, *["["] * 10_000)

    assert allowed(held) == [token("b")]


def test_an_answer_may_take_so_much_work_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "GRANT", 50)
    held = new("root ::= " + "[a-c]? " * 60)

    with pytest.raises(InvalidRequest, match="too many possibilities"):
        allowed(held)


def test_a_grammar_that_is_too_much_from_the_start_is_refused() -> None:
    doubling = "\n".join(
        ["root ::= r0", *(f'r{each} ::= r{each + 1} "a" | r{each + 1} "b"' for each in range(40)), 'r40 ::= "x"']
    )

    with pytest.raises(InvalidRequest, match="too many possibilities"):
        new(doubling)


@pytest.mark.parametrize(
    "grammar", [r"root ::= [^\x00-\U0010FFFF]", "root ::= " + '"a"? ' * 2000], ids=["no text", "any of 2000"]
)
def test_a_grammar_that_nothing_can_begin_is_refused(grammar: str) -> None:
    with pytest.raises(InvalidRequest, match="to begin with"):
        new(grammar)


@given(
    st.lists(st.sampled_from(["a", "b", "(a|b)", "a*", "(ab)+", "b?", "a{2,3}", "(a|ba){0,2}"]), max_size=4),
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab"]), max_size=5),
)
def test_tokens_are_accepted_where_their_text_is(parts: list[str], words: list[str]) -> None:
    grammar = "root ::= " + " ".join(re.sub(r"([ab])", r'"\1" ', part) for part in parts) + "\n"
    held = new(grammar)
    fits = True
    for word in words:
        fits = fits and held.allows(token(word))
        if fits:
            held.accept(token(word))

    assert (fits and held.complete) == bool(re.fullmatch("".join(parts), "".join(words)))
