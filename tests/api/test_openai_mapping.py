"""OpenAI's chat request to ours, by plain calls: what is taken, what is refused and under which name."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.api.completion import ChunkStream
from meshnode.api.openai import chat_request
from meshnode.api.openai_error import error_object
from meshnode.errors import InvalidRequest, ModelUnavailable, RequestError, Unsupported
from meshnode.inference import MAX_BIASES, MAX_SCHEMA, Bias, Logprobs, Message, Request, ResponseFormat, Sampling

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MANY_NESTED = b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":' + b"[" * 100_000 + b"}"


def mapped(*messages: dict[str, Any], **fields: Any) -> Request:
    body = {"model": "m", "messages": list(messages or [USER]), **fields}
    return chat_request(json.dumps(body).encode(), request_id="r1", created=1).request


def test_the_fields_of_a_full_request_arrive() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    schema = {"type": "object"}
    request = mapped(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=40, seed=-7, stop=["a", "b"], n=2, tools=tools, tool_choice="auto",
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}, logprobs=True, top_logprobs=3,
    )  # fmt: skip

    assert request == Request(
        id="r1",
        model="m",
        messages=(Message(role="user", content="Hi"),),
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=40, seed=-7, max_tokens=9, stop=("a", "b")),
        n=2,
        tools=json.dumps(tools),
        tool_choice='"auto"',
        response_format=ResponseFormat(kind="json_schema", schema=json.dumps(schema)),
        logprobs=Logprobs(top=3),
    )


def test_a_grammar_is_an_answers_format_as_well() -> None:
    expected = ResponseFormat(kind="grammar", schema="root ::= [a]")

    assert mapped(grammar="root ::= [a]").response_format == expected
    assert mapped(grammar="root ::= [a]", response_format={"type": "text"}).response_format == expected
    assert mapped(grammar="", response_format={"type": "json_object"}).response_format == ResponseFormat(kind="json_object")


def test_null_and_empty_are_the_same_as_absent() -> None:
    fields = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options")
    more = (
        "n",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "grammar",
        "logprobs",
        "top_logprobs",
        *EXTENDED,
        "logit_bias",
        "ignore_eos",
    )

    assert mapped(**dict.fromkeys(fields + more)) == mapped()
    assert mapped(tools=[], stop=[], logit_bias={}, ignore_eos=False) == mapped(stop="") == mapped()


EXTENDED = {
    "min_p": (0.05, 0, 1, "from 0 to 1"),
    "typical_p": (0.9, 0.001, 1, "above 0 to 1"),
    "repeat_penalty": (1.1, 0.1, 10, "from 0.1 to 10"),
    "repeat_last_n": (32, -1, 2**31 - 1, "from -1 to 2147483647"),
    "presence_penalty": (0.5, -2, 2, "from -2 to 2"),
    "frequency_penalty": (-0.5, -2, 2, "from -2 to 2"),
}
"""A value of each, the ends of what is allowed, and the words for that."""


@pytest.mark.parametrize("name", EXTENDED)
def test_every_field_of_drawing_arrives_up_to_its_bounds(name: str) -> None:
    value, low, high, _ = EXTENDED[name]

    for number in (value, low, high):
        assert mapped(**{name: number}).sampling == Sampling(**{name: number})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXTENDED)
@pytest.mark.parametrize("beyond", [-3, 2**31])
def test_beyond_its_bounds_a_field_is_named_with_them_and_with_what_was_given(name: str, beyond: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"`{name}` must be {EXTENDED[name][3]}, not {beyond}") as caught:
        mapped(**{name: beyond})

    assert caught.value.param == name


def test_a_typical_p_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="above 0 to 1, not 0"):
        mapped(typical_p=0)


def test_biases_arrive_by_token_and_the_end_can_be_forbidden() -> None:
    request = mapped(logit_bias={"50256": -100, "0": 1.5}, ignore_eos=True)

    assert request.sampling == Sampling(logit_bias=(Bias(50256, -100.0), Bias(0, 1.5)), ignore_eos=True)


@pytest.mark.parametrize(
    ("biases", "param", "words"),
    [
        ({"7": 100.5}, "logit_bias[7]", "from -100 to 100, not 100.5"),
        ({"7": -101}, "logit_bias[7]", "from -100 to 100, not -101"),
        ({"seven": 1}, "logit_bias", "`seven`"),
        ({"-1": 1}, "logit_bias", "`-1`"),
        ({"": 1}, "logit_bias", "token ids"),
        ({"\u0663": 1}, "logit_bias", "token ids"),
        ({"1" * 11: 1}, "logit_bias", "token ids"),
        ({"7": "x"}, "logit_bias", "float"),
        ({"7": 1, "x" * 70_000: 1}, "logit_bias", "larger than 65536 bytes"),
        ({str(token): 1 for token in range(MAX_BIASES + 1)}, "logit_bias", f"at most {MAX_BIASES}"),
    ],
)
def test_a_bias_that_makes_no_sense_is_named(biases: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        mapped(logit_bias=biases)

    assert caught.value.param == param


def test_unknown_fields_are_ignored() -> None:
    assert mapped({**USER, "extra": 1}, user="me", store=False, metadata={"a": "b"}, reasoning_effort="low") == mapped()


def test_max_completion_tokens_wins_over_the_older_name() -> None:
    assert mapped(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7
    assert mapped(max_tokens=5).sampling.max_tokens == 5


def test_one_stop_string_is_a_list_of_one() -> None:
    assert mapped(stop="\n").sampling.stop == ("\n",)


def test_parts_of_text_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert mapped({"role": "user", "content": parts}).messages[0].content == "a\nb"


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_every_role_is_kept(role: str) -> None:
    assert mapped({"role": role, "content": "x", "tool_call_id": "c"}).messages[0].role == role


def test_a_conversation_with_tool_calls_keeps_their_json() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\u00fc"}'}}]
    asked, told = mapped(
        {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "tool_call_id": "call_1", "content": "4"}
    ).messages

    assert (asked.role, asked.content) == ("assistant", "")
    assert json.loads(asked.tool_calls or "") == calls
    assert told == Message(role="tool", content="4", tool_call_id="call_1")


def test_of_an_assistants_calls_only_what_is_known_is_passed_on() -> None:
    (message,) = mapped({"role": "assistant", "tool_calls": [{**CALL, "index": 0, "function": {"name": "f", "x": [1]}}]}).messages

    assert json.loads(message.tool_calls or "") == [{**CALL, "function": {"name": "f", "arguments": ""}}]


@pytest.mark.parametrize("choice", ["none", "auto", "required", {"type": "function", "function": {"name": "f"}}])
def test_every_choice_of_a_tool_is_passed_on(choice: object) -> None:
    request = mapped(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)

    assert json.loads(request.tool_choice or "") == choice
    assert request.parallel_tool_calls is False
    assert mapped(tools=[TOOL], tool_choice=choice).parallel_tool_calls is True


def test_stream_and_usage_are_told_apart_from_the_request() -> None:
    body = {"model": "m", "messages": [USER], "stream": True, "stream_options": {"include_usage": True}}
    asked = chat_request(json.dumps(body).encode(), request_id="r1", created=1)

    assert isinstance(asked.stream, ChunkStream)
    assert asked.request == mapped()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "c"}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": [3]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0]"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 129}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"tools": [{**TOOL, "extra": "x" * 2**20}]}, "tools"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": "maybe", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": "function", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": ""}}, "tools": [TOOL]}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {}, "tools": [TOOL]}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * MAX_SCHEMA}}}},
            "response_format.json_schema.schema",
        ),
        ({"grammar": 3}, "grammar"),
        ({"grammar": "世" * (MAX_SCHEMA // 2)}, "grammar"),
        ({"grammar": "root ::= [a]", "response_format": {"type": "json_object"}}, "grammar"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"min_p": "0.1"}, "min_p"),
        ({"repeat_last_n": 0.5}, "repeat_last_n"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"logit_bias": [1]}, "logit_bias"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        mapped(**fields)

    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"tools": [TOOL, {"type": "web_search"}]}, "tools[1].type"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        mapped(**fields)

    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"text"', b"{'model': 'm'}", b"\xff\xfe", b'{"model":"m"} x', b"[" * 100_000, MANY_NESTED,
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[{"a":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[{"a":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"logit_bias":{"\xff":1}}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"temperature":1e999}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    ],
)  # fmt: skip
def test_what_is_not_a_json_object_of_text_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        chat_request(body, request_id="r1", created=1)


def test_a_long_wrong_value_is_not_sent_back_whole() -> None:
    with pytest.raises(InvalidRequest) as caught:
        mapped({"role": "x" * 1_000_000, "content": "x"})

    assert len(caught.value.message) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "n", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "frequency_penalty", "logit_bias",
    "min_p", "repeat_last_n", "grammar",
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "x"])}, optional={"content": JSON, "tool_calls": JSON}
    )
)


@settings(max_examples=40, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NAMES), JSON), messages=MESSAGES | JSON)
def test_any_json_is_a_request_that_can_cross_the_mesh_or_is_refused(fields: dict[str, Any], messages: Any) -> None:
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    with suppress(RequestError):
        request = chat_request(body, request_id="r1", created=1).request

        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request
        schema = request.response_format.schema if request.response_format.kind == "json_schema" else None
        assert all(json.loads(text) for text in (request.tools, schema) if text is not None)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_refused_in_words(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        chat_request(body, request_id="r1", created=1)


def test_the_error_object_has_openais_four_fields_and_the_hint_in_its_message() -> None:
    error = ModelUnavailable("Nobody has it.", hint="Start a node.", retry_after=5)

    assert json.loads(error_object(error)) == {
        "error": {
            "message": "Nobody has it. Start a node.",
            "type": "overloaded_error",
            "param": None,
            "code": "model_unavailable",
        }
    }
