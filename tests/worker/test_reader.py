"""What models write, as each family writes it, and what is only like it; whole and in pieces."""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.inference import MAX_ARGUMENTS_PIECE, MAX_TOOL_CALLS
from meshnode.worker.dialect import Dialect, dialect_of
from meshnode.worker.reader import Form, Reader, Said

KINDS = {"add": {"a": "integer", "b": "integer"}, "say": {"text": "string"}, "now": {}}
HERMES = dialect_of("tools <tool_call> <think></think>", takes_tools=True)
CODER = dialect_of("tools <tool_call> <function= <parameter=", takes_tools=True)
MISTRAL = dialect_of("tools [TOOL_CALLS] [THINK][/THINK]", takes_tools=True)
LLAMA = dialect_of("tools <|python_tag|>", takes_tools=True)
OTHER = dialect_of("tools <|tool_call|>", takes_tools=True)
NOTHING = dialect_of("tools", takes_tools=True)
DIALECTS = (HERMES, CODER, MISTRAL, LLAMA, OTHER, NOTHING)

ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
CODED = "<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>"
SAY = '{"name": "say", "arguments": {"text": "</tool_call> } \\" ] \\\\"}}'


def form(dialect: Dialect = HERMES, **changes: Any) -> Form:
    return Form(**{"thinking": dialect.thinking, "marks": dialect.marks, "kinds": KINDS, "seed": "r", **changes})


def joined(parts: Iterable[Said]) -> Said:
    return sum(parts, Said())


def read(form: Form, *pieces: str) -> Said:
    answer = Reader(form)
    return joined([*map(answer.push, pieces), answer.finish()])


def made(said: Said) -> list[tuple[str, object]]:
    """The calls' names, and their arguments as values."""
    names = {call.index: call.name for call in said.calls if call.id}
    return [
        (name, json.loads("".join(call.arguments for call in said.calls if call.index == index))) for index, name in names.items()
    ]


THREE = ("add", {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("dialect", "written"),
    [
        (HERMES, f"<tool_call>\n{ADD}\n</tool_call>"),
        (HERMES, f"<tool_call>{ADD}"),
        (HERMES, f"  {ADD}"),
        (HERMES, f"<tool_call>[{ADD}]</tool_call>"),
        (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>'),
        (HERMES, '<tool_call>{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}</tool_call>'),
        (CODER, f"<tool_call>\n{CODED}\n</tool_call>"),
        (CODER, "<function=add><parameter=a>1</parameter><parameter=b>2</parameter></function>"),
        (CODER, f"<tool_call>{ADD}</tool_call>"),
        (MISTRAL, f"[TOOL_CALLS][{ADD}]"),
        (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}, "id": "abcdefghi"}]'),
        (MISTRAL, f"[TOOL_CALLS]{ADD}"),
        (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}'),
        (MISTRAL, '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1, "b": 2}'),
        (MISTRAL, '[TOOL_CALLS]add{"a": 1, "b": 2}'),
        (LLAMA, '{"name": "add", "parameters": {"a": 1, "b": 2}}'),
        (LLAMA, '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1, "b": 2}}'),
        (OTHER, f"<|tool_call|>[{ADD}]<|/tool_call|>"),
        (NOTHING, ADD),
        (NOTHING, f'{{"tool_call": {ADD}}}'),
        (NOTHING, f'{{"tool_calls": [{ADD}]}}'),
    ],
)  # fmt: skip
def test_each_familys_call_is_a_call_and_nothing_else(dialect: Dialect, written: str) -> None:
    for pieces in ([written], list(written)):
        said = read(form(dialect), *pieces)

        assert made(said) == [THREE]
        assert (said.text, said.reasoning) == ("", "")


@pytest.mark.parametrize(
    ("dialect", "written"),
    [
        (HERMES, f"Both.\n<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{SAY}\n</tool_call>\n"),
        (HERMES, f"Both. <tool_call>[{ADD},{SAY}]</tool_call>"),
        (MISTRAL, f"Both.[TOOL_CALLS][{ADD}, {SAY}]"),
        (MISTRAL, 'Both.[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}[TOOL_CALLS]say[ARGS]{"text": "</tool_call> } \\" ] \\\\"}'),
        (LLAMA, f"Both.<|python_tag|>{ADD}; {SAY}"),
    ],
)
def test_several_calls_come_in_their_order_behind_the_text(dialect: Dialect, written: str) -> None:
    said = read(form(dialect), written)

    assert said.text == "Both."
    assert made(said) == [THREE, ("say", {"text": '</tool_call> } " ] \\'})]
    assert [call.index for call in said.calls] == [0, 1]


def test_arguments_stay_as_the_model_wrote_them() -> None:
    (call,) = read(form(), '<tool_call>{"name": "add", "arguments": {"b":2.50,  "a":"\\u00fc"}}</tool_call>').calls

    assert call.arguments == '{"b":2.50,  "a":"\\u00fc"}'


def test_values_in_tags_are_what_the_tool_wants() -> None:
    written = (
        "<function=say>\n<parameter=text>\n 12\n\n</parameter>\n<parameter=n>\n12\n</parameter>\n"
        '<parameter=o>{"x": [1]}</parameter><parameter=s>two words</parameter></function>'
    )

    assert made(read(form(CODER), written)) == [("say", {"text": " 12\n", "n": 12, "o": {"x": [1]}, "s": "two words"})]


@pytest.mark.parametrize(
    ("dialect", "written"),
    [
        (HERMES, "Plain text.\n"),
        (HERMES, " \n"),
        (HERMES, "a < b <tool"),
        (HERMES, "See <tool_call> there"),
        (HERMES, "<tool_call>"),
        (HERMES, '<tool_call>{"name": "add"'),
        (HERMES, '<tool_call>{"name": "add"}</tool_call> and more'),
        (HERMES, '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "add", "arguments": "x"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "a b", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "' + "x" * 129 + '", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "add", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}</tool_call>"),
        (HERMES, "<tool_call>[]</tool_call>"),
        (HERMES, "<tool_call><fun</tool_call>"),
        (HERMES, '{"name": "delete", "arguments": {}}'),
        (HERMES, '{"answer": {"a": [1, "}"]}} is the JSON'),
        (HERMES, "{x} [link](y)"),
        (HERMES, "[link](y)"),
        (HERMES, "Look: " + ADD),
        (CODER, "<function=add><parameter=a>1</function>"),
        (CODER, "<function=add>junk</function>"),
        (CODER, "<tool_call><funadd></function></tool_call>"),
        (CODER, "<function=add><parameter=a>1"),
        (MISTRAL, "[TOOL_CALLS] no"),
        (MISTRAL, "[TOOL_CALLS]two words{}"),
        (MISTRAL, "[TOOL_CALLS]" + "x" * 300 + "{}"),
        (MISTRAL, "[TOOL"),
        (LLAMA, '<|python_tag|>brave_search.call(query="x")'),
        (LLAMA, '{"name": "add", "parameters": 3}'),
    ],
)
def test_what_is_no_call_stays_text_whole(dialect: Dialect, written: str) -> None:
    for pieces in ([written], list(written)):
        assert read(form(dialect), *pieces) == Said(text=written)


def test_without_tools_calls_are_text_and_with_nothing_to_look_for_text_passes_at_once() -> None:
    written = f"<tool_call>{ADD}</tool_call>"

    assert read(form(kinds={}), written) == Said(text=written)
    assert Reader(Form()).push("a <") == Said(text="a <")


@pytest.mark.parametrize("dialect", [HERMES, MISTRAL])
@pytest.mark.parametrize("begun", [True, False])
def test_thoughts_are_told_from_text_also_when_the_prompt_began_them(dialect: Dialect, begun: bool) -> None:
    assert dialect.thinking
    opening, closing = dialect.thinking
    written = f"\nFirst,  <b>\n think. \n{closing}\n\n It is.\n"
    asked = form(dialect, begun=f"{opening}\n") if begun else form(dialect)
    for pieces in ([written], list(written)):
        said = read(asked, *pieces) if begun else read(asked, f" {opening}", *pieces)

        assert said == Said(text="It is.\n", reasoning="First,  <b>\n think.")


def test_thoughts_that_do_not_end_stay_thoughts_and_what_comes_after_text_is_none() -> None:
    assert read(form(), "<think>on and </thi") == Said(reasoning="on and </thi")
    assert read(form(), "So <think>no</think>") == Said(text="So <think>no</think>")


def test_a_call_may_follow_thoughts_and_is_none_inside_of_them() -> None:
    call = f"<tool_call>{ADD}</tool_call>"
    said = read(form(), f"<think>maybe {call}</think>\n\n{call}")

    assert (said.text, said.reasoning, made(said)) == ("", f"maybe {call}", [THREE])


def test_blanks_are_dropped_after_thoughts_and_kept_between_a_call_and_more_text() -> None:
    said = read(form(), f"<think>x</think>\n<tool_call>{ADD}</tool_call>\n\nMore.")

    assert (said.text, made(said)) == ("\n\nMore.", [THREE])


def test_an_answer_that_the_prompt_has_begun_to_call_goes_on_as_a_call() -> None:
    begun = {
        HERMES: '<tool_call>\n{"name": "add", "arguments": ',
        MISTRAL: '[TOOL_CALLS][{"name": "add", "arguments": ',
        LLAMA: '{"name": "add", "parameters": ',
    }
    for dialect, beginning in begun.items():
        rest = '{"a": 1, "b": 2}}' + "]" * (dialect is MISTRAL)
        assert made(read(form(dialect, begun=beginning), rest)) == [THREE]
        assert read(form(dialect, begun=beginning), "no") == Said(text=beginning + "no")


def test_where_one_call_is_wanted_the_answer_is_complete_with_it() -> None:
    answer = Reader(form(parallel=False))
    said = answer.push(f"<tool_call>[{ADD}, {SAY}]</tool_call><tool_call>{SAY}</tool_call> more")

    assert answer.complete
    said = joined([said, answer.push("x"), answer.finish()])
    assert (made(said), said.text) == ([THREE], "")


def test_ids_are_apart_by_request_choice_and_place_and_the_same_again() -> None:
    def ids(seed: str, choice: int = 0, *, short: bool = False) -> list[str]:
        answer = Reader(form(seed=seed, short_ids=short), choice)
        return [call.id for call in answer.push(f"<tool_call>[{ADD}, {SAY}]</tool_call>").calls]

    assert len({*ids("r"), *ids("s"), *ids("r", 1)}) == 6
    assert ids("r") == ids("r")
    assert all(each.startswith("call_") for each in ids("r"))
    assert all(len(each) == 9 and each.isalnum() for each in ids("r", short=True))
    assert MISTRAL.short_ids
    assert not HERMES.short_ids


def test_long_arguments_come_in_pieces_of_bounded_size() -> None:
    text = "ü" * 3 * MAX_ARGUMENTS_PIECE
    said = read(form(), '<tool_call>{"name": "say", "arguments": {"text": "' + text + '"}}</tool_call>')

    assert made(said) == [("say", {"text": text})]
    assert {len(call.arguments) for call in said.calls[:-1]} == {MAX_ARGUMENTS_PIECE}
    assert {call.name for call in said.calls[1:]} == {""}


def test_calls_beyond_the_bound_are_text() -> None:
    call = f"<tool_call>{ADD}</tool_call>"
    said = read(form(), call * (MAX_TOOL_CALLS + 1))

    assert len(said.calls) == MAX_TOOL_CALLS
    assert said.text == call
    many = f"<tool_call>[{','.join([ADD] * (MAX_TOOL_CALLS + 1))}]</tool_call>"
    assert read(form(), many) == Said(text=many)


PARTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[THINK]", "[/THINK]", "[ARGS]", "<|python_tag|>",
        "<function=", "<function=add>", "<parameter=a>", "</parameter>", "</function>", "<|tool_call|>", "<", "[", "]", "{", "}",
        '{"', '"', "\\", " ", "\n", ";", "a", "add", "1", "ü", ADD, SAY, f"[{ADD}]", '{"name": "add", "parameters": {}}',
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    dialect=st.sampled_from(DIALECTS),
    written=st.lists(PARTS, max_size=12).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    parallel=st.booleans(),
    begun=st.sampled_from(["", "<think>", "[TOOL_CALLS]", "<tool_call>", '{"name": "add", "parameters": ']),
)
def test_however_an_answer_is_cut_it_is_read_alike(
    *, dialect: Dialect, written: str, cuts: list[int], parallel: bool, begun: str
) -> None:
    asked = form(dialect, parallel=parallel, begun=begun)
    whole = read(asked, written)
    places = sorted({0, len(written), *(cut for cut in cuts if cut < len(written))})

    assert read(asked, *written) == whole
    assert read(asked, *(written[start:end] for start, end in pairwise(places))) == whole


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(DIALECTS), st.lists(PARTS, max_size=12).map("".join))
def test_no_letter_of_an_answer_without_calls_is_lost(dialect: Dialect, written: str) -> None:
    said = read(form(dialect), written)
    kept = said.reasoning + said.text
    for mark in dialect.thinking or ():
        written, kept = written.replace(mark, ""), kept.replace(mark, "")

    assert said.calls or "".join(kept.split()) == "".join(written.split())


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([HERMES, OTHER, LLAMA, NOTHING]),
    st.dictionaries(
        st.text(max_size=5), st.recursive(st.text() | st.integers(-9, 9) | st.none() | st.booleans(), st.lists), max_size=4
    ),
    st.booleans(),
)
def test_whatever_the_arguments_they_arrive(dialect: Dialect, arguments: dict[str, object], ascii_only: bool) -> None:
    body = json.dumps({"name": "say", "arguments": arguments}, ensure_ascii=ascii_only)
    mark = dialect.marks[0]
    written = mark.open + body + mark.close if dialect is not NOTHING else body

    for pieces in ([written], list(written)):
        said = read(form(dialect), *pieces)
        assert (made(said), said.text) == ([("say", arguments)], "")
