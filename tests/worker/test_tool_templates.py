"""Tools in templates as the families have them: what the model sees, and that a client's text is never the template's."""

import json

import pytest

pytest.importorskip("jinja2")

from hypothesis import given, settings
from hypothesis import strategies as st
from worker.tool_templates import ALL, CODER, DEEPSEEK, LLAMA, MISTRAL, QWEN

from meshnode.inference import Message
from meshnode.tools import Choice, Tools
from meshnode.worker.content import MAX_DEPTH, MAX_VALUES, Broken, Refused
from meshnode.worker.dialect import dialect_of, opening
from meshnode.worker.protocol import Region
from meshnode.worker.template import Template

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rom"]}}},
    },
}
TOOLS = json.dumps([WEATHER])


def called(arguments: str = '{"city": "Oslo"}', *, name: str = "weather", identity: str = "abcdefghi") -> Message:
    call = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
    return Message(role="assistant", content="", tool_calls=json.dumps([call]))


USER = Message(role="user", content="How is it in Oslo?")
RESULT = Message(role="tool", content="rain", tool_call_id="abcdefghi")


def regions(source: str, *messages: Message, tools: str | None = TOOLS) -> tuple[Region, ...]:
    return Template(source, bos="<s>", eos="</s>").render(messages, tools)


def rendered(source: str, *messages: Message, tools: str | None = TOOLS) -> str:
    return "".join(region.text for region in regions(source, *messages, tools=tools))


def test_qwen_sees_tools_calls_and_results() -> None:
    system = Message(role="system", content="Be kind.")
    assert rendered(QWEN, system, USER, called(), RESULT, RESULT) == (
        f"<|im_start|>system\nBe kind.\n\n<tools>\n{TOOLS}".replace("[{", "{", 1)[: -len("]")]
        + "\n</tools>\nCall with <tool_call></tool_call>.<|im_end|>\n<|im_start|>user\nHow is it in Oslo?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_llama_sees_tools_calls_and_results() -> None:
    prompt = rendered(LLAMA, USER, called(), RESULT)

    assert json.dumps(WEATHER, indent=4) in prompt
    assert '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>' in prompt
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"rain"<|eot_id|>' in prompt


def test_mistral_sees_tools_calls_and_results_and_says_which_ids_it_takes() -> None:
    assert rendered(MISTRAL, USER).startswith(
        '<s>[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "weather", "description": "How it is.", "parameters": {'
    )
    assert rendered(MISTRAL, USER, called(), RESULT).endswith(
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}]</s>'
        '[TOOL_RESULTS]{"content": rain, "call_id": "abcdefghi"}[/TOOL_RESULTS]'
    )
    with pytest.raises(Refused, match="length 9"):
        regions(MISTRAL, USER, called(identity="call_1"))


def test_a_template_that_wants_arguments_as_text_gets_them_so() -> None:
    assert '<call>weather\n```json\n{"city":  1}\n```<output>rain' in rendered(DEEPSEEK, USER, called('{"city":  1}'), RESULT)


def test_coder_sees_tools_and_calls_value_by_value() -> None:
    prompt = rendered(CODER, USER, called('{"city": "Oslo", "days": [1, 2]}'))

    assert '<name>city</name>\n<type>string</type>\n<enum>["Oslo", "Rom"]</enum>' in prompt
    assert (
        "<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n</function>" in prompt
    )


@pytest.mark.parametrize("source", ALL)
def test_without_tools_no_template_speaks_of_any(source: str) -> None:
    assert "weather" not in rendered(source, USER, tools=None)
    assert "How is it in Oslo?" in rendered(source, USER, tools=None)


def test_arguments_that_are_no_json_are_passed_on_as_text() -> None:
    for arguments in ('{"city": ', '{"city": "\\ud800"}', "[" * 100_000):
        assert json.dumps(arguments) in rendered(QWEN, USER, called(arguments))


def test_a_result_has_the_name_of_its_tool() -> None:
    source = "{% for m in messages %}{{ m.name if m.role == 'tool' }}{% endfor %}"

    assert rendered(source, USER, called(), RESULT) == "weather"
    named = Message(role="tool", content="", tool_call_id="abcdefghi", name="other")
    assert rendered(source, USER, called(), named) == "other"


def test_tools_and_arguments_that_nest_too_deep_are_refused() -> None:
    deep = '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    with pytest.raises(Refused, match="deeper than 64"):
        regions(QWEN, USER, tools=f'[{{"type":"function","function":{{"name":"f","parameters":{deep}}}}}]')
    with pytest.raises(Refused, match="deeper than 64"):
        regions(QWEN, USER, called(deep))


def test_tools_and_arguments_of_too_many_values_are_refused_and_long_texts_are_not() -> None:
    half = json.dumps({"a": [1] * (MAX_VALUES // 2)})
    with pytest.raises(Refused, match="more than 20000 values"):
        regions(QWEN, USER, called(half), called(half))

    assert len(rendered(QWEN, USER, called(half), called(json.dumps({"a": "x" * 1_000_000})))) > 1_000_000


def test_a_template_that_fails_on_calls_either_way_is_told_so() -> None:
    with pytest.raises(Broken):
        regions("{{ messages[0].tool_calls[0].function.nothing.at_all }}", called())


MARK = "\N{SNOWMAN}"
"""In every text of the client, and in no template."""
TEXT = st.sampled_from(["", "<|im_end|>", "</tool_call>", "[/INST]", '"', "\\", "x\ny", " "]).map(
    lambda text: f"{MARK}{text}{MARK}"
)
VALUES = st.recursive(
    TEXT | st.integers(-9, 9) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), source=st.sampled_from(ALL))
def test_no_text_of_tools_arguments_or_results_is_the_templates_own(data: st.DataObject, source: str) -> None:
    schemas = st.dictionaries(
        TEXT, st.fixed_dictionaries({"type": TEXT}, optional={"description": TEXT, "enum": VALUES}), max_size=2
    )
    function = {
        "name": data.draw(TEXT),
        "description": data.draw(TEXT),
        "parameters": {"type": "object", "properties": data.draw(schemas)},
    }
    arguments = json.dumps(data.draw(st.dictionaries(TEXT, VALUES, max_size=2)), ensure_ascii=data.draw(st.booleans()))
    messages = [
        Message(role="user", content=data.draw(TEXT)),
        called(arguments, name=data.draw(TEXT)),
        Message(role="tool", content=data.draw(TEXT), tool_call_id=data.draw(TEXT)),
        Message(role="user", content=data.draw(TEXT)),
    ]
    found = regions(source, *messages, tools=json.dumps([{"type": "function", "function": function}]))
    own = "".join(region.text for region in found if region.ours)

    assert MARK not in own
    assert "\\u2603" not in own
    assert sum(region.text.count(MARK) for region in found) >= 8


def test_marks_are_none_that_tools_or_arguments_use_even_escaped() -> None:
    private = "".join(chr(0xF0000 + index) for index in range(8))
    tool = json.dumps([{"type": "function", "function": {"name": "f", "description": private}}])

    assert all(private not in region.text or not region.ours for region in regions(QWEN, USER, tools=tool))
    found = regions(QWEN, USER, called(json.dumps({private: private})))
    assert [region.text for region in found if private in region.text] == [private, private]


def opened(source: str, choice: Choice, only: str = "") -> tuple[list[tuple[str, bool]], str]:
    prompt = regions(source, USER)
    forced, begun = opening(dialect_of(source, takes_tools=True), Tools(("weather",), choice, only), prompt)
    return [(region.text, region.ours) for region in forced], begun


def test_the_dialect_is_in_the_template() -> None:
    marks = [dialect_of(source, takes_tools=True).marks[0].open for source in (QWEN, LLAMA, MISTRAL, CODER)]

    assert marks == ["<tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<function="]
    assert dialect_of(DEEPSEEK, takes_tools=True).thinking == ("<think>", "</think>")
    assert dialect_of(QWEN, takes_tools=True).thinking is None
    assert dialect_of("[TOOL_CALLS] then [ARGS]", takes_tools=True).texts >= {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}
    assert dialect_of("no", takes_tools=False).marks[0].open == "<tool_call>"


def test_only_who_must_call_has_a_beginning_put_into_the_mouth() -> None:
    assert opened(QWEN, Choice.AUTO) == ([], "")
    assert opened(QWEN, Choice.NONE) == ([], "")
    assert opened(QWEN, Choice.REQUIRED) == ([('<tool_call>\n{"name": "', True)], '<tool_call>\n{"name": "')
    assert opened(CODER, Choice.FUNCTION, "weather")[1] == "<tool_call>\n<function=weather>\n"
    assert opened(LLAMA, Choice.FUNCTION, "weather")[1] == '{"name": "weather", "parameters": '
    assert opened(MISTRAL, Choice.FUNCTION, "weather") == (
        [('[TOOL_CALLS][{"name": "', True), ("weather", False), ('", "arguments": ', True)],
        '[TOOL_CALLS][{"name": "weather", "arguments": ',
    )
    assert opened(MISTRAL + "{# [ARGS] #}", Choice.FUNCTION, "weather")[1] == "[TOOL_CALLS]weather[ARGS]"


def test_thoughts_that_the_template_begins_are_known_and_ended_where_a_call_is_wanted() -> None:
    assert opened(DEEPSEEK, Choice.AUTO) == ([], "<think>")
    forced, begun = opened(DEEPSEEK, Choice.REQUIRED)

    assert forced == [("\n</think>\n\n", True), ('{"name": "', True)]
    assert begun == '{"name": "'


def test_a_client_cannot_begin_thoughts() -> None:
    dialect = dialect_of("<think></think>", takes_tools=False)

    assert not dialect.thinks([Region(text="<think>", ours=False)])
    assert not dialect.thinks([])
    assert dialect.thinks([Region(text="x<think>\n", ours=True)])
