"""Anthropic's messages: every part that is known, and clear words for every other."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode import tools
from meshnode.api.anthropic import count_request, messages_request
from meshnode.api.anthropic_error import error_object, status_of
from meshnode.api.collected import Collected
from meshnode.api.message import Identity, MessageStream, message
from meshnode.errors import (
    ContextTooLong,
    InternalError,
    InvalidRequest,
    LinkLost,
    MeshnodeError,
    ModelNotFound,
    Overloaded,
    RequestError,
    Unauthorized,
    Unsupported,
)
from meshnode.inference import Chunk, End, Event, Finish, Message, Phase, Progress, Request, Sampling, ToolCall, Usage

USER = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object"}}
IDENTITY = Identity(id="msg_1", request_id="req-1", stops=("END",))
END = End(usage=Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4))


def mapped(*messages: object, **fields: object) -> Request:
    body = {"model": "m", "max_tokens": 5, "messages": messages or [USER], **fields}
    return messages_request(json.dumps(body).encode(), request_id="r1").request


def test_a_plain_request() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop_sequences": ["END", ""]}

    assert mapped(system="Be brief.", **fields) == Request(
        id="r1",
        model="m",
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi")),
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=3, max_tokens=5, stop=("END",)),
    )


def test_blocks_of_text_are_joined_and_results_of_tools_are_turns_in_their_places() -> None:
    request = mapped(
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "b", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "b"},
                {"type": "text", "text": "And"},
                {"type": "text", "text": "now?", "cache_control": {"type": "ephemeral"}},
            ],
        },
        system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
    )

    system, _, assistant, *rest = request.messages
    assert system.content == "Be\nbrief."
    assert assistant.content == "Let me look."
    assert [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls_of(assistant)] == [
        ("a", "weather", {"city": "Oslo"}),
        ("b", "now", {}),
    ]
    assert rest == [
        Message(role="tool", content="rain", tool_call_id="a"),
        Message(role="tool", content="", tool_call_id="b"),
        Message(role="user", content="And\nnow?"),
    ]


def calls_of(turn: Message) -> tuple[tools.Call, ...]:
    return tools.calls(turn.tool_calls or "", "")


def test_tools_are_written_as_openai_writes_them() -> None:
    request = mapped(tools=[WEATHER, {"type": "custom", "name": "now", "input_schema": {}}])

    assert json.loads(request.tools or "") == [
        {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "now", "parameters": {}}},
    ]
    assert request.tool_choice is None


@pytest.mark.parametrize(
    ("choice", "ours"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_every_choice_of_a_tool_has_one_of_ours(choice: dict[str, object], ours: object) -> None:
    request = mapped(tools=[WEATHER], tool_choice={**choice, "disable_parallel_tool_use": True})

    assert json.loads(request.tool_choice or "") == ours
    assert request.parallel_tool_calls is False
    assert mapped(tools=[WEATHER], tool_choice=choice).parallel_tool_calls is True


@pytest.mark.parametrize(
    ("thinking", "ours"),
    [
        (None, None),
        ({"type": "enabled", "budget_tokens": 2000}, True),
        ({"type": "adaptive"}, True),
        ({"type": "disabled"}, False),
    ],
)
def test_thinking_can_be_asked_for_and_forbidden(thinking: object, ours: bool | None) -> None:
    assert mapped(thinking=thinking).thinking is ours


def test_a_schema_for_the_answer() -> None:
    format_ = mapped(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}}).response_format

    assert (format_.kind, json.loads(format_.schema or "")) == ("json_schema", {"type": "object"})


def test_what_is_only_counted_needs_no_max_tokens() -> None:
    request = count_request(json.dumps({"model": "m", "messages": [USER], "tools": [WEATHER]}).encode(), request_id="r1")

    assert request.sampling == Sampling(max_tokens=0)
    assert request.tools == mapped(tools=[WEATHER]).tools


def test_what_does_nothing_is_listed() -> None:
    body = {"model": "m", "max_tokens": 5, "messages": [USER], "metadata": {"user_id": "me"}, "service_tier": "auto"}

    assert messages_request(json.dumps(body).encode(), request_id="r1").ignored == ("metadata", "service_tier")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}, USER]},
            "messages[0].content[0].name",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": []}]}, USER]},
            "messages[0].content[0].input",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}] * 17_000}]},
            "messages",
        ),
        ({"tools": [{"name": "no name"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [{**WEATHER, "input_schema": []}]}, "tools[0].input_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        mapped(**fields)

    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]}]},
            "messages[0].content[0].content[0].type",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "The answer is ("}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        mapped(**fields)

    assert caught.value.param == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking"])},
        optional={"text": JSON, "id": st.just("a"), "name": st.just("f"), "input": JSON, "tool_use_id": JSON, "content": JSON},
    ),
    max_size=3,
)
TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": BLOCKS | JSON}), max_size=3)
NAMES = ("system", "tools", "tool_choice", "thinking", "output_config", "stream", "stop_sequences", "top_k", "container")


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NAMES), JSON), turns=TURNS)
def test_any_json_is_a_request_that_can_cross_the_mesh_or_is_refused(fields: dict[str, Any], turns: Any) -> None:
    try:
        request = mapped(**{"messages": turns, **fields})
    except RequestError:
        return

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request
    assert all(calls_of(turn) for turn in request.messages if turn.tool_calls)


# Answers


def whole(*events: Event) -> Any:
    collected = Collected()
    collected.add(events)
    return json.loads(message(collected, "m", identity=IDENTITY))


def streamed(*events: Event) -> list[dict[str, Any]]:
    """The events of a stream, whose names in the `event:` lines must be those in their data."""
    stream = MessageStream(IDENTITY)
    stream.begin("m")
    written = stream.encode(events)
    found = []
    for lines in written.decode().removesuffix("\n\n").split("\n\n"):
        name, data = lines.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


THOUGHT = Chunk(choice=0, text="", reasoning="Hm.")
TEXT = Chunk(choice=0, text="Let me look.")
CALLS = (
    Chunk(choice=0, text="", tool_calls=(ToolCall(0, "a", "weather", '{"city":'),)),
    Chunk(choice=0, text="", tool_calls=(ToolCall(0, "", "", ' "Oslo"}'), ToolCall(1, "b", "now", ""))),
    Chunk(choice=0, text="", finish=Finish.TOOL_CALLS),
)


def test_a_whole_answer_has_a_block_for_each_kind_of_content() -> None:
    assert whole(THOUGHT, TEXT, *CALLS, END) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}},
            {"type": "tool_use", "id": "b", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 3,
        },
    }


def test_a_stream_opens_and_closes_a_block_for_each_kind_of_content() -> None:
    events = streamed(Progress(phase=Phase.PREFILL, done=9, total=9), THOUGHT, TEXT, TEXT, *CALLS, END)

    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0), ("content_block_delta", 0), ("content_block_stop", 0),
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_delta", 1), ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_delta", 2), ("content_block_delta", 2), ("content_block_stop", 2),
        ("content_block_start", 3), ("content_block_stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]  # fmt: skip
    assert events[0]["message"]["usage"]["input_tokens"] == 9
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == whole(END)["usage"]


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (Chunk(choice=0, text="", finish=Finish.STOP), "end_turn", None),
        (Chunk(choice=0, text="", finish=Finish.STOP, stop=0), "stop_sequence", "END"),
        (Chunk(choice=0, text="", finish=Finish.STOP, stop=1), "end_turn", None),
        (Chunk(choice=0, text="", finish=Finish.LENGTH), "max_tokens", None),
        (Chunk(choice=0, text="", finish=Finish.CONTENT_FILTER), "refusal", None),
    ],
)
def test_why_an_answer_ended(last: Chunk, reason: str, sequence: str | None) -> None:
    ending = {"stop_reason": reason, "stop_sequence": sequence}

    assert ending.items() <= whole(last, END).items()
    assert streamed(last, END)[-2]["delta"] == ending


def test_arguments_that_are_no_object_are_kept() -> None:
    def made(arguments: str) -> object:
        return whole(Chunk(choice=0, text="", tool_calls=(ToolCall(0, "a", "f", arguments),)), END)["content"][0]["input"]

    assert made("[1]") == {"arguments": [1]}
    assert made("{oops") == {"arguments": "{oops"}


def test_an_answer_without_its_end_is_an_error() -> None:
    with pytest.raises(InternalError):
        whole(TEXT)


def test_until_the_message_has_started_only_comments_go_out_and_pings_afterwards() -> None:
    stream = MessageStream(IDENTITY)
    assert stream.waiting(None) == b": keep-alive\n\n"
    stream.begin("m")
    stream.encode((TEXT,))

    assert stream.waiting(None) == b'event: ping\ndata: {"type":"ping"}\n\n'


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error"),
        (Unauthorized("x"), 401, "authentication_error"),
        (ModelNotFound("x"), 404, "not_found_error"),
        (Overloaded("x"), 529, "overloaded_error"),
        (LinkLost("x"), 502, "api_error"),
        (InternalError("x"), 500, "api_error"),
    ],
)
def test_errors_have_anthropics_types_and_statuses(error: MeshnodeError, status: int, kind: str) -> None:
    assert status_of(error) == status
    assert json.loads(error_object(error, "req-1")) == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req-1",
    }


def test_a_conversation_too_long_is_told_in_the_words_that_agents_look_for() -> None:
    assert json.loads(error_object(ContextTooLong("9 tokens"), "r"))["error"]["message"] == "prompt is too long: 9 tokens"
