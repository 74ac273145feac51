"""Ollama's chat and generate: every part that is known, and clear words for every other."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode import tools
from meshnode.api import lines
from meshnode.api.collected import Collected
from meshnode.api.dialect import Asked
from meshnode.api.lines import Form, LineStream, whole
from meshnode.api.ollama import Loading, chat_request, generate_request, model_named, tagged
from meshnode.errors import InternalError, InvalidRequest, LinkLost, RequestError, Unsupported
from meshnode.inference import (
    Chunk,
    End,
    Event,
    Finish,
    Logprobs,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)

NOW = "2026-01-01T00:00:00Z"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
END = End(usage=Usage(prompt_tokens=9, completion_tokens=3), timings=Timings(queue_ms=1, prefill_ms=2, decode_ms=4.5))


def chat(**fields: object) -> Asked:
    asked = chat_request(json.dumps({"model": "m", "messages": [USER], **fields}).encode(), request_id="r1", now=NOW)
    assert isinstance(asked, Asked)
    return asked


def generate(**fields: object) -> Asked:
    asked = generate_request(json.dumps({"model": "m", "prompt": "Hi", **fields}).encode(), request_id="r1", now=NOW)
    assert isinstance(asked, Asked)
    return asked


def test_a_plain_chat_is_streamed_unless_told_otherwise() -> None:
    assert chat().request == Request(id="r1", model="m", messages=(Message(role="user", content="Hi"),))
    assert chat().stream is not None
    assert chat(stream=True).stream is not None
    assert chat(stream=False).stream is None


def test_generate_is_a_chat_of_one_turn() -> None:
    assert generate(system="Be brief.").request.messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi"),
    )


def test_a_raw_prompt_has_no_template() -> None:
    request = generate(raw=True, prompt="<s>Hi").request

    assert (request.prompt, request.messages) == ("<s>Hi", ())


def test_the_options_of_drawing() -> None:
    options = {
        "num_predict": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "seed": 4,
        "stop": ["END"] * 5, "repeat_penalty": 1.2, "repeat_last_n": 9, "presence_penalty": 0.3, "frequency_penalty": 0.4,
    }  # fmt: skip
    assert chat(options=options).request.sampling == Sampling(
        max_tokens=7,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        seed=4,
        stop=("END",) * 5,
        repeat_penalty=1.2,
        repeat_last_n=9,
        presence_penalty=0.3,
        frequency_penalty=0.4,
    )


@pytest.mark.parametrize("limit", [-1, -2, None])
def test_no_limit_is_none(limit: int | None) -> None:
    assert chat(options={"num_predict": limit}).request.sampling.max_tokens is None


def test_what_does_nothing_is_listed() -> None:
    assert chat(keep_alive="5m", options={"num_ctx": 8192, "num_gpu": 99, "seed": 1}, extra=1).ignored == (
        "extra",
        "keep_alive",
        "options.num_ctx",
        "options.num_gpu",
    )
    assert chat().ignored == ()


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        (None, ResponseFormat()),
        ("", ResponseFormat()),
        ("json", ResponseFormat(kind="json_object")),
        ({"type": "object"}, ResponseFormat(kind="json_schema", schema='{"type": "object"}')),
    ],
)
def test_the_formats_of_an_answer(asked: object, ours: ResponseFormat) -> None:
    assert chat(format=asked).request.response_format == ours
    assert generate(format=asked).request.response_format == ours


@pytest.mark.parametrize(("think", "ours"), [(None, None), (True, True), (False, False), ("high", True)])
def test_thinking_can_be_asked_for_and_forbidden(think: object, ours: bool | None) -> None:
    assert chat(think=think).request.thinking is ours


def test_log_probabilities() -> None:
    assert chat(logprobs=True, top_logprobs=2).request.logprobs == Logprobs(top=2)
    assert chat(logprobs=False).request.logprobs is None


def test_a_result_belongs_to_the_first_open_call_of_its_tool() -> None:
    def call(name: str, **arguments: object) -> dict[str, object]:
        return {"function": {"name": name, "arguments": arguments}}

    request = chat(
        messages=[
            USER,
            {"role": "assistant", "content": "", "tool_calls": [call("weather", city="Oslo"), call("now"), call("weather")]},
            {"role": "tool", "tool_name": "now", "content": "noon"},
            {"role": "tool", "tool_name": "weather", "content": "rain"},
            {"role": "tool", "content": "sun"},
        ],
        tools=[TOOL],
    ).request
    calls = tools.calls(request.messages[1].tool_calls or "", "")

    assert [(call.id, call.function.name) for call in calls] == [
        ("000000000", "weather"), ("000000001", "now"), ("000000002", "weather"),
    ]  # fmt: skip
    assert json.loads(calls[0].function.arguments) == {"city": "Oslo"}
    assert [(each.content, each.name, each.tool_call_id) for each in request.messages[2:]] == [
        ("noon", "now", "000000001"),
        ("rain", "weather", "000000000"),
        ("sun", None, "000000002"),
    ]
    assert json.loads(request.tools or "") == [TOOL]


@pytest.mark.parametrize(
    ("keep_alive", "unload"), [(None, False), ("5m", False), (-1, False), (0, True), ("0s", True), ("0", True)]
)
def test_without_a_prompt_the_model_is_to_be_loaded_or_unloaded(keep_alive: object, unload: bool) -> None:
    for asked in (
        chat_request(json.dumps({"model": "m", "keep_alive": keep_alive}).encode(), request_id="r1", now=NOW),
        generate_request(json.dumps({"model": "m", "prompt": "", "keep_alive": keep_alive}).encode(), request_id="r1", now=NOW),
    ):
        assert isinstance(asked, Loading)
        assert asked.unload is unload
        assert json.loads(lines.loaded(asked.form, unload=unload))["done_reason"] == ("unload" if unload else "load")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"options": {"temperature": 7}}, "options.temperature"),
        ({"options": {"top_k": "many"}}, "options.top_k"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": []}, "options"),
        ({"format": "yaml"}, "format"),
        ({"messages": [{"role": "developer", "content": ""}]}, "messages[0].role"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools[0].function.name"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)

    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


@pytest.mark.parametrize("name", ["suffix", "template", "images"])
def test_what_generate_cannot_do_is_refused_by_name(name: str) -> None:
    with pytest.raises(Unsupported) as caught:
        generate(**{name: ["x"] if name == "images" else "x"})

    assert caught.value.param == name


def test_images_and_mirostat_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"messages\[0\].images"):
        chat(messages=[{**USER, "images": ["x"]}])
    with pytest.raises(Unsupported, match=r"options.mirostat"):
        chat(options={"mirostat": 1})


@pytest.mark.parametrize(
    ("wanted", "known", "meant"),
    [
        ("m", {"m"}, "m"),
        ("m:latest", {"m"}, "m"),
        ("m", {"m:latest"}, "m:latest"),
        ("m:latest", {"m", "m:latest"}, "m:latest"),
        ("m:7b", {"m"}, "m:7b"),
        ("other:latest", {"m"}, "other"),
    ],
)
def test_a_name_means_the_same_with_latest_and_without(wanted: str, known: set[str], meant: str) -> None:
    assert model_named(wanted, known) == meant


def test_a_name_without_a_tag_is_shown_with_one() -> None:
    assert (tagged("m"), tagged("m:7b")) == ("m:latest", "m:7b")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("tools", "options", "format", "think", "stream", "keep_alive", "logprobs", "system", "raw", "prompt", "suffix")


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NAMES), JSON), messages=st.just([USER]) | JSON)
def test_any_json_is_a_request_that_can_cross_the_mesh_or_is_refused(fields: dict[str, Any], messages: Any) -> None:
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    for read in (chat_request, generate_request):
        try:
            asked = read(body, request_id="r1", now=NOW)
        except RequestError:
            continue
        if isinstance(asked, Asked):
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked.request), type=Request) == asked.request


# Answers

CHAT = Form(model="m", created_at=NOW, chat=True)
EVENTS: tuple[Event, ...] = (
    Chunk(choice=0, text="", reasoning="Hm."),
    Chunk(choice=0, text="Let me"),
    Chunk(choice=0, text=" look."),
    Chunk(choice=0, text="", tool_calls=(ToolCall(0, "a", "weather", '{"city":'),)),
    Chunk(choice=0, text="", tool_calls=(ToolCall(0, "", "", ' "Oslo"}'), ToolCall(1, "b", "now", ""))),
    Chunk(choice=0, text="", finish=Finish.TOOL_CALLS),
    END,
)
ENDING = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 7_500_000,
    "load_duration": 0,
    "prompt_eval_count": 9,
    "prompt_eval_duration": 2_000_000,
    "eval_count": 3,
    "eval_duration": 4_500_000,
}
CALLS = [
    {"function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}},
    {"function": {"index": 1, "name": "now", "arguments": {}}},
]


def answered(form: Form, *events: Event) -> Any:
    collected = Collected()
    collected.add(events)
    return json.loads(whole(collected, "served", form=form))


def streamed(form: Form, *events: Event) -> list[Any]:
    stream = LineStream(form)
    stream.begin("served")
    *lines, rest = stream.encode(events).split(b"\n")
    assert rest == b""
    return [json.loads(line) for line in lines]


def test_a_whole_chat() -> None:
    message = {"role": "assistant", "content": "Let me look.", "thinking": "Hm.", "tool_calls": CALLS}

    assert answered(CHAT, *EVENTS) == {"model": "m", "created_at": NOW, "message": message, **ENDING}


def test_a_whole_generate() -> None:
    form = Form(model="m", created_at=NOW, chat=False)

    assert answered(form, EVENTS[1], END) == {"model": "m", "created_at": NOW, "response": "Let me", **ENDING}


def test_the_lines_of_a_chat() -> None:
    *said, last = streamed(CHAT, *EVENTS)

    assert [line["message"] for line in said] == [
        {"role": "assistant", "content": "", "thinking": "Hm."},
        {"role": "assistant", "content": "Let me"},
        {"role": "assistant", "content": " look."},
        {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
        {"role": "assistant", "content": "", "tool_calls": CALLS[1:]},
    ]
    assert {(line["model"], line["created_at"], line["done"]) for line in said} == {("m", NOW, False)}
    assert last == {"model": "m", "created_at": NOW, "message": {"role": "assistant", "content": ""}, **ENDING}


def test_the_lines_of_a_generate_and_an_answer_cut_at_its_limit() -> None:
    form = Form(model="m", created_at=NOW, chat=False)
    first, last = streamed(form, Chunk(choice=0, text='quote "', finish=Finish.LENGTH), END)

    assert first == {"model": "m", "created_at": NOW, "response": 'quote "', "done": False}
    assert (last["response"], last["done_reason"]) == ("", "length")


def test_log_probabilities_are_beside_the_text() -> None:
    likely = Chunk(choice=0, text="a", logprobs=(TokenLogprob(1, b"a", -0.5),))
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}

    assert streamed(CHAT, likely, END)[0]["logprobs"] == [entry]
    assert answered(CHAT, likely, END)["logprobs"] == [entry]
    assert "logprobs" not in answered(CHAT, END)


def test_a_sign_of_life_is_a_line_that_says_nothing_and_a_failure_one_with_an_error() -> None:
    stream = LineStream(CHAT)

    assert json.loads(stream.waiting(None))["message"]["content"] == ""
    assert json.loads(stream.failed(LinkLost("Gone.", hint="Try again."))) == {"error": "Gone. Try again."}


def test_an_answer_without_its_end_is_an_error_and_arguments_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InternalError):
        answered(CHAT, EVENTS[1])
    monkeypatch.setattr(lines, "MAX_ANSWER", 1000)
    with pytest.raises(InternalError, match="longer than"):
        streamed(CHAT, *[Chunk(choice=0, text="", tool_calls=(ToolCall(0, "", "", "x" * 600),))] * 2)
