"""Requests as other servers take them, and their streams read back: whole, cut anywhere, and hostile."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.api.completion import ChunkStream, Identity
from meshnode.api.openai import chat_request
from meshnode.bridges import openai_form, refusals, sse
from meshnode.bridges.openai_form import Reading
from meshnode.errors import ContextTooLong, InvalidRequest, ModelUnavailable, Overloaded, RemoteFailed, ServingError, Unsupported
from meshnode.inference import (
    Chunk,
    End,
    Event,
    Finish,
    Logprobs,
    Message,
    Request,
    ResponseFormat,
    Resume,
    Sampling,
    ToolCall,
    Usage,
)

ASK = Request(id="r", model="alias", messages=(Message(role="user", content="Hi"),))
TOOLS = '[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'
TEXT = st.text(max_size=12)
SAMPLING = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    top_k=st.none() | st.integers(0, 100),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.none() | st.integers(1, 1000),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=4).map(tuple),
    presence_penalty=st.none() | st.floats(-2, 2),
    ignore_eos=st.booleans(),
)
MESSAGES = st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXT)
REQUESTS = st.builds(
    Request,
    id=st.just("r"),
    model=st.just("m"),
    messages=st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXT), min_size=1, max_size=3).map(
        tuple
    ),
    sampling=SAMPLING,
    n=st.integers(1, 3),
    thinking=st.none() | st.booleans(),
    logprobs=st.none() | st.builds(Logprobs, top=st.integers(0, 20)),
    response_format=st.sampled_from([ResponseFormat(), ResponseFormat(kind="json_object")]),
)


@given(REQUESTS)
def test_a_request_read_back_by_our_own_api_is_the_same(request: Request) -> None:
    read = chat_request(openai_form.body(request, "m"), request_id="r", created=1)

    assert read.stream is not None
    assert read.ignored == ()
    assert read.request == request


def test_tools_and_earlier_calls_keep_their_text() -> None:
    calls = '[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\\"a\\":1}"}}]'
    request = msgspec.structs.replace(
        ASK,
        messages=(
            Message(role="assistant", content="", tool_calls=calls),
            Message(role="tool", content="7", tool_call_id="c1"),
        ),
        tools=TOOLS,
        tool_choice='"required"',
        parallel_tool_calls=False,
        response_format=ResponseFormat(kind="json_schema", schema='{"type":"object"}'),
    )
    sent = json.loads(openai_form.body(request, "theirs"))

    assert sent["model"] == "theirs"
    assert sent["messages"][0] == {"role": "assistant", "content": None, "tool_calls": json.loads(calls)}
    assert sent["messages"][1]["tool_call_id"] == "c1"
    assert sent["tools"] == json.loads(TOOLS)
    assert sent["tool_choice"] == "required"
    assert sent["parallel_tool_calls"] is False
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_nobody_asked_for_is_not_sent() -> None:
    assert set(json.loads(openai_form.body(ASK, "m"))) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"resume": Resume(token_ids=(1,), emitted_chars=1)}, "resume"),
        ({"inputs": ("text",)}, "input"),
        ({"prompt": "Once"}, "prompt"),
        ({"sampling": Sampling(max_tokens=0)}, "model"),
        ({"response_format": ResponseFormat(kind="grammar", schema="root ::= [a]")}, "response_format.type"),
    ],
)
def test_what_is_no_chat_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        openai_form.body(msgspec.structs.replace(ASK, **fields), "m")

    assert caught.value.param == param


CHUNKS = st.builds(Chunk, choice=st.just(0), text=TEXT, reasoning=TEXT).filter(lambda chunk: chunk.text or chunk.reasoning)


def whole(reading: Reading, data: bytes, *, step: int = 0) -> list[Event]:
    pieces = [data[at : at + step] for at in range(0, len(data), step)] if step else [data]
    return [*(event for piece in pieces for event in reading.take(piece)), *([] if reading.complete else reading.end())]


def joined(events: list[Event]) -> tuple[str, str, list[Event]]:
    chunks = [event for event in events if isinstance(event, Chunk)]
    rest = [event for event in events if isinstance(event, End)]
    return "".join(chunk.text for chunk in chunks), "".join(chunk.reasoning for chunk in chunks), list(rest)


@given(st.lists(CHUNKS, max_size=6), st.integers(0, 30), st.integers(0, 1000))
def test_what_our_own_api_streams_is_read_back_however_it_is_cut(chunks: list[Chunk], step: int, cached: int) -> None:
    usage = Usage(prompt_tokens=cached + 1, completion_tokens=len(chunks), cached_tokens=cached)
    said: list[Event] = [*chunks, Chunk(choice=0, text="", finish=Finish.LENGTH), End(usage=usage)]
    stream = ChunkStream(Identity(id="c", created=1), include_usage=True)
    stream.begin("m")
    events = whole(Reading("far"), stream.encode(said), step=step)

    assert joined(events) == joined(said)
    assert [event.finish for event in events if isinstance(event, Chunk) and event.finish] == [Finish.LENGTH]


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(finish: str | None = None, index: int = 0, **fields: object) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish}])


def test_a_stream_that_ends_without_finish_or_done_is_a_failure() -> None:
    reading = Reading("far")
    assert reading.take(delta(content="Once"))

    with pytest.raises(RemoteFailed, match="far ended its answer in the middle"):
        reading.end()


def test_a_stream_of_nothing_is_a_failure() -> None:
    with pytest.raises(RemoteFailed):
        Reading("far").end()


def test_one_choice_that_is_open_makes_the_end_a_failure() -> None:
    reading = Reading("far", choices=2)
    reading.take(delta("stop", 0, content="a") + delta(None, 1, content="b"))

    with pytest.raises(RemoteFailed):
        reading.end()


def test_a_finish_is_enough_and_so_is_done() -> None:
    finished = Reading("far")
    finished.take(delta("length", content="a"))
    done = Reading("far")
    events = done.take(delta(content="a") + b"data: [DONE]\n\n")

    assert isinstance(finished.end()[-1], End)
    assert events[-1] == End(usage=Usage(prompt_tokens=0, completion_tokens=1))
    assert [each.finish for each in events if isinstance(each, Chunk)] == [None, Finish.STOP]


def test_a_done_without_its_blank_line_counts() -> None:
    reading = Reading("far")
    reading.take(delta(content="a") + b"data: [DONE]")

    assert isinstance(reading.end()[-1], End)


@pytest.mark.parametrize(
    "data",
    [
        event(error={"message": "out of memory", "type": "server_error"}),
        b"data: {\n\n",
        b'data: {"choices":[{"index":1,"delta":{"content":"x"}}]}\n\n',
        b'data: {"choices":[{"index":-1,"delta":{"content":"x"}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":500,"function":{"name":"f"}}]}}]}\n\n',
        b"data: " + b"x" * (sse.MAX_EVENT + 1),
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_no_answer_is_the_remotes_failure(data: bytes) -> None:
    with pytest.raises(RemoteFailed, match="far"):
        Reading("far").take(data)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_make_it_fail_otherwise(data: bytes) -> None:
    reading = Reading("far")
    try:
        whole(reading, b"data: " + data)
    except RemoteFailed:
        return
    assert reading.complete


def test_a_server_that_does_not_stream_is_understood_too() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
    events = Reading("far").whole(json.dumps({"choices": [choice], "usage": usage}).encode())

    assert events == [
        Chunk(choice=0, text="Hello.", finish=Finish.STOP),
        End(usage=Usage(prompt_tokens=3, completion_tokens=2)),
    ]


def calls_of(*pieces: dict[str, object]) -> list[ToolCall]:
    reading = Reading("far")
    events = [event for piece in pieces for event in reading.take(delta(tool_calls=[piece]))]
    return [call for each in events if isinstance(each, Chunk) for call in each.tool_calls]


def test_calls_come_in_pieces_or_whole_numbered_or_not() -> None:
    pieces = calls_of(
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    )
    bare = calls_of(
        {"id": "a", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "function": {"name": "g", "arguments": "{}"}},
    )
    nameless = calls_of({"index": 0, "function": {"name": "f", "arguments": "{}"}})

    assert pieces == [ToolCall(0, "a", "f", ""), ToolCall(0, "", "", '{"x"'), ToolCall(0, "", "", ":1}")]
    assert bare == [ToolCall(0, "a", "f", "{}"), ToolCall(1, "b", "g", "{}")]
    assert nameless[0].id


def test_a_finish_that_only_says_stop_after_calls_is_one_of_calls() -> None:
    reading = Reading("far")
    reading.take(delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f"}}]))
    events = reading.take(delta("stop"))

    assert [each.finish for each in events if isinstance(each, Chunk)] == [Finish.TOOL_CALLS]


def test_log_probabilities_keep_their_bytes_and_their_bounds() -> None:
    token = {"token": "é", "bytes": [195], "logprob": -1e9, "top_logprobs": [{"token": "a", "logprob": 0.5}] * 30}
    reading = Reading("far")
    chunk = reading.take(event(choices=[{"delta": {"content": "é"}, "logprobs": {"content": [token]}}]))[0]

    assert isinstance(chunk, Chunk)
    assert chunk.logprobs[0].text == b"\xc3"
    assert chunk.logprobs[0].logprob == -9999.0
    assert len(chunk.logprobs[0].top) == 20
    assert chunk.logprobs[0].top[0].logprob == 0.0


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error":{"message":"no n","code":"unsupported","param":"n"}}', Unsupported),
        (400, b'{"error":{"message":"too long","code":"context_length_exceeded"}}', ContextTooLong),
        (422, b'{"detail":[{"msg":"bad field"}]}', InvalidRequest),
        (401, b'{"title":"Unauthorized","msg":"expired"}', RemoteFailed),
        (404, b'{"error":"model not found"}', ModelUnavailable),
        (429, b"", Overloaded),
        (502, b"<html>Bad Gateway</html>", RemoteFailed),
        (503, b"{}", ModelUnavailable),
        (302, b"", RemoteFailed),
    ],
)
def test_a_refusal_is_marked_with_the_remotes_name_and_says_whose_fault_it_is(
    status: int, body: bytes, kind: type[ServingError]
) -> None:
    error = refusals.error("far", status, body, retry_after="7")

    assert type(error) is kind
    assert error.message.startswith("far ")
    assert "<html>" not in error.message


def test_a_refusal_hides_our_key_and_is_cut() -> None:
    said = json.dumps({"error": {"message": "bad key sk-secret\x1b[2J " + "x" * 5000}}).encode()
    error = refusals.error("far", 401, said, secrets=["sk-secret"])

    assert "sk-secret" not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 700


def test_when_to_come_back_is_kept_within_reason() -> None:
    assert refusals.error("far", 429, b"", retry_after="12").retry_after == 12.0
    assert refusals.error("far", 429, b"", retry_after="Wed, 21 Oct 2015 07:28:00 GMT").retry_after is None
    assert refusals.error("far", 429, b"", retry_after="9" * 50).retry_after == 3600.0


@given(st.lists(st.text(alphabet="ab: \u2028é", max_size=8).filter(lambda text: text.strip()), max_size=5), st.integers(0, 9))
def test_events_are_found_however_they_are_cut(texts: list[str], step: int) -> None:
    data = b"".join(b": comment\r\nid: 1\r\ndata: %b\r\n\r\n" % text.encode() for text in texts)
    lines = sse.Lines()
    pieces = [data[at : at + step] for at in range(0, len(data), step)] if step else [data]

    assert [event for piece in pieces for event in lines.take(piece)] == [text.encode() for text in texts]
