"""In every dialect the pieces of a stream, joined, are the whole answer, however a serving node cuts it."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.api import completion, lines, message, text_completion
from meshnode.api.collected import Collected
from meshnode.api.dialect import Stream
from meshnode.inference import Chunk, End, Event, Finish, ToolCall, Usage

END = End(usage=Usage(prompt_tokens=9, completion_tokens=3))
OPENAI = completion.Identity(id="1", created=1)
ANTHROPIC = message.Identity(id="1", request_id="r", stops=())
OLLAMA = lines.Form(model="m", created_at="now", chat=True)
ECHO = text_completion.Echo(prompts=("Once ",))


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """One choice: thoughts and text as they come, then calls in pieces, then its end."""
    said = draw(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=5))
    chunks: list[Event] = [Chunk(choice=0, text=text, reasoning=reasoning) for text, reasoning in said]
    for index in range(draw(st.integers(0, 3))):
        arguments = json.dumps(draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)))
        cut = draw(st.integers(0, len(arguments)))
        first, rest = ToolCall(index, f"id{index}", "f", arguments[:cut]), ToolCall(index, "", "", arguments[cut:])
        joined = draw(st.booleans())
        chunks += [Chunk(choice=0, text="", tool_calls=calls) for calls in ([(first, rest)] if joined else [(first,), (rest,)])]
    return [*chunks, Chunk(choice=0, text="", finish=draw(st.sampled_from(Finish))), END]


def streamed(stream: Stream, events: Sequence[Event]) -> list[bytes]:
    stream.begin("m")
    return [piece for event in events for piece in stream.encode((event,)).split(b"\n") if piece.strip()]


def data(pieces: list[bytes]) -> list[Any]:
    return [json.loads(line[6:]) for line in pieces if line.startswith(b"data: {")]


def collected(events: Sequence[Event]) -> Collected:
    whole = Collected()
    whole.add(events)
    return whole


@settings(max_examples=60, deadline=None)
@given(answers())
def test_openais_chat(events: list[Event]) -> None:
    whole = json.loads(completion.completion(collected(events), "m", identity=OPENAI))["choices"][0]
    choices = [each["choices"][0] for each in data(streamed(completion.ChunkStream(OPENAI, include_usage=False), events))]
    deltas = [choice["delta"] for choice in choices]
    calls: dict[int, str] = {}
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls", ())):
        calls[piece["index"]] = calls.get(piece["index"], "") + piece["function"]["arguments"]

    assert "".join(delta.get("content") or "" for delta in deltas) == (whole["message"]["content"] or "")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == whole["message"].get("reasoning_content", "")
    assert list(calls.values()) == [call["function"]["arguments"] for call in whole["message"].get("tool_calls", ())]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


@settings(max_examples=60, deadline=None)
@given(answers())
def test_anthropics_messages(events: list[Event]) -> None:
    whole = json.loads(message.message(collected(events), "m", identity=ANTHROPIC))
    said = data(streamed(message.MessageStream(ANTHROPIC), events))
    blocks: list[dict[str, Any]] = []
    for event in said:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                field = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}[delta["type"]]
                blocks[-1][field] += delta[field if field != "json" else "partial_json"]

    for kind in ("text", "thinking"):
        texts = ["".join(block[kind] for block in each if block["type"] == kind) for each in (blocks, whole["content"])]
        assert texts[0] == texts[1]
    inputs = [json.loads(block["json"] or "{}") for block in blocks if block["type"] == "tool_use"]
    assert inputs == [block["input"] for block in whole["content"] if block["type"] == "tool_use"]
    assert said[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert [event["type"] for event in said].count("content_block_stop") == len(blocks)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_ollamas_chat(events: list[Event]) -> None:
    whole = json.loads(lines.whole(collected(events), "m", form=OLLAMA))
    said = [json.loads(line) for line in streamed(lines.LineStream(OLLAMA), events)]
    messages = [line["message"] for line in said]

    assert "".join(each["content"] for each in messages) == whole["message"]["content"]
    assert "".join(each.get("thinking", "") for each in messages) == whole["message"].get("thinking", "")
    assert [call for each in messages for call in each.get("tool_calls", ())] == whole["message"].get("tool_calls", [])
    assert {key: value for key, value in said[-1].items() if key != "message"} == {
        key: value for key, value in whole.items() if key != "message"
    }


@settings(max_examples=60, deadline=None)
@given(answers())
def test_openais_completions(events: list[Event]) -> None:
    whole = json.loads(text_completion.text_completion(collected(events), "m", identity=OPENAI, echo=ECHO))["choices"][0]
    said = data(streamed(text_completion.TextStream(OPENAI, include_usage=False, echo=ECHO), events))

    assert "".join(each["choices"][0]["text"] for each in said) == whole["text"]
    assert said[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
