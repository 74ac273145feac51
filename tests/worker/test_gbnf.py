"""Grammars as text: what they accept, where they are wrong, and that hostile ones are refused at once."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numpy")

from meshnode.worker.automaton import Automaton
from meshnode.worker.gbnf import MAX_GRAMMAR, MAX_REPETITIONS, GrammarError
from meshnode.worker.network import network


def accepts(grammar: str, text: str) -> bool:
    automaton = Automaton(network(grammar))
    automaton.granted = 1_000_000
    state = automaton.start
    for byte in text.encode():
        state = automaton.step(state, byte)
    return automaton.complete(state)


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ('root ::= "a" | "bc"', ["a", "bc"], ["", "b", "ab", "abc"]),
        ('root ::= "a"* "b"+ "c"?', ["b", "aabbc", "bc"], ["", "a", "ac", "bcc"]),
        ('root ::= ("ab" | "c"){2}', ["abab", "abc", "cc"], ["", "c", "ccc"]),
        ('root ::= [a-c]{2,3} "."', ["ab.", "abc."], ["a.", "abca.", "ad."]),
        ('root ::= "x"{2,}', ["xx", "xxxxx"], ["", "x"]),
        ('root ::= "x"{0}', [""], ["x"]),
        ('root ::= "" | ("a"?){3}', ["", "a", "aaa"], ["aaaa"]),
        ('root ::= "(" root ")" | [^()\\n]', ["x", "((ß))"], ["(x", "x)", "\n", "()"]),
        ('root ::= list\nlist ::= item tail\ntail ::= [,] list | ""\nitem ::= .', ["x", "x,y,世"], ["", "x,", "xy"]),
        ('# first\nroot ::= # of\n  ( "a" # all\n | "b" )\n\n', ["a", "b"], ["ab"]),
        (
            r'root ::= "\x41\u00e4\U0001F4A9\t\"\\\n\r" [\]\-a] [x-]',
            ['Aä\U0001f4a9\t"\\\n\r]-', 'Aä\U0001f4a9\t"\\\n\r-x'],
            ["A"],
        ),
        ("root ::= [ä-ü]+", ["äöü"], ["a", "ý", "aä"]),
        ('root ::= "a" "b"{2} "c"', ["abbc"], ["ababc", "abc"]),
    ],
)
def test_a_grammar_accepts_its_texts_and_no_others(grammar: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts(grammar, text)] == []
    assert [text for text in wrong if accepts(grammar, text)] == []


@given(
    st.lists(st.sampled_from(["a", "b", "(a|b)", "a*", "(ab)+", "b?", "a{2,3}", "(a|ba){0,2}"]), max_size=4),
    st.text("ab", max_size=8),
)
def test_what_looks_like_a_regular_expression_accepts_as_it_does(parts: list[str], text: str) -> None:
    grammar = " ".join(re.sub(r"([ab])", r'"\1" ', part) for part in parts)

    assert accepts(f"root ::= {grammar}\n", text) == bool(re.fullmatch("".join(parts), text))


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("", "line 1, column 1: there is no rule `root`"),
        ('start ::= "a"', "line 1, column 14: there is no rule `root`"),
        ('root ::= "a', "line 1, column 12: the grammar ends in the middle of a text"),
        ("root ::= [a", "line 1, column 12: the grammar ends in the middle of a text or a class"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: the rule `root` is there already"),
        ('root ::= "a"\n\nb = "c"', "line 3, column 3: `::=` is missing before '='"),
        ("root ::= b c\nb ::= [x]", "line 1, column 12: there is no rule `c`"),
        ('root ::= ("a" | "b"\nb ::= "c"', "line 2, column 3: ':' cannot stand here"),
        ('root ::= ("a" | "b"', "line 1, column 20: `)` is missing before the end"),
        ('root ::= "a" )', "line 1, column 14: ')' cannot stand here"),
        ('root ::= "a" %', "line 1, column 14: '%' cannot stand here"),
        ('root ::= "a"\0', r"line 1, column 13: '\x00' cannot stand here"),
        ("root ::= *", "line 1, column 10: `*` has nothing before it"),
        ('root ::= "a"**', "line 1, column 14: a repetition is repeated only within parentheses"),
        ('root ::= "a"{5,3}', "line 1, column 13: at least 5 times and at most 3 is never"),
        ('root ::= "a"{,3}', "line 1, column 13: a repetition is {3}, {3,} or {3,5}"),
        ('root ::= "a"{999999999}', f"line 1, column 13: more than {MAX_REPETITIONS} repetitions"),
        ('root ::= "a"{9999999999}', "line 1, column 13: a repetition is"),
        (r'root ::= "\q"', "line 1, column 11: no such escape"),
        (r'root ::= "\u12"', "line 1, column 11: no such escape"),
        (r'root ::= "\uD800"', "this stands for no character"),
        (r'root ::= "\U00110000"', "this stands for no character"),
        ("root ::= [z-a]", "the range goes backwards"),
        ("root ::= []", "line 1, column 10: a class without any character"),
        ("root ::= <|im_end|>", "line 1, column 10: references to tokens are not supported"),
        ("root ::= !<[1]>", "references to tokens are not supported"),
        ('root ::= root "a" | "b"', "line 1, column 1: the rule `root` can begin with itself"),
        ('root ::= "x" b\nb ::= d? [e]* (b) "y" | "x"\nd ::= e\ne ::= "z" |', "line 2, column 1: the rule `b` can begin"),
        ('root ::= ("a"? root)+', "line 1, column 1: the rule `root` can begin with itself"),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_place(grammar: str, said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)):
        network(grammar)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("root ::= " + "(" * 30_000, "parentheses within each other"),
        ('root ::= "a"' + "?" * 30_000, "a repetition is repeated"),
        ('root ::= "' + "a" * 30_000 + '"\nb ::= "' + "a" * 30_000 + '"', "too large up to here"),
        ('root ::= (("a" "b"){20000} "c"){20000}', "too large up to here"),
        ("root ::= " + "[^a]{0,16000} " * 3, "too large up to here"),
        ("#" * (MAX_GRAMMAR + 1), "larger than"),
        ("#" + "世" * (MAX_GRAMMAR // 2), "larger than"),
        (
            "\n".join(["root ::= a0"] + [f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(2000)] + ["a2000 ::= root"]),
            "begin with itself",
        ),
    ],
    ids=["deep", "repeated repetition", "long", "square", "cubic", "comment", "wide comment", "long way round"],
)
def test_a_hostile_grammar_is_refused(grammar: str, said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        network(grammar)


def test_repeating_a_long_text_shares_it() -> None:
    assert len(network('root ::= "' + "a" * 1000 + '"{1000}').nodes) < 3000


@given(st.text(st.sampled_from('ab"[]()|*+?{}0123,.:=\\-^ \n#rot'), max_size=60))
def test_any_text_is_a_grammar_or_refused(text: str) -> None:
    for grammar in (text, f"root ::= {text}"):
        with suppress(GrammarError):
            network(grammar)
