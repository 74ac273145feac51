"""An answer collected whole, and what bounds it."""

from typing import Any

import msgspec
import pytest

from meshnode.api import collected as collecting
from meshnode.api.collected import Collected
from meshnode.api.completion import ChunkStream, Identity, completion
from meshnode.errors import InternalError
from meshnode.inference import Alternative, Chunk, End, Finish, TokenLogprob, ToolCall, Usage

IDENTITY = Identity(id="chatcmpl-1", created=1)
END = End(usage=Usage(prompt_tokens=2, completion_tokens=3))


def test_choices_are_put_together_in_their_order() -> None:
    collected = Collected()
    collected.add((Chunk(choice=1, text="b"), Chunk(choice=0, text="a"), Chunk(choice=1, text="c", finish=Finish.LENGTH)))
    collected.add((Chunk(choice=0, text="", finish=Finish.STOP), END))
    answer = msgspec.json.decode(completion(collected, "m", identity=IDENTITY))

    assert [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]] == [
        ("a", "stop"),
        ("bc", "length"),
    ]
    assert answer["usage"]["total_tokens"] == 5


def test_an_answer_without_its_end_is_an_error() -> None:
    with pytest.raises(InternalError):
        completion(Collected(), "m", identity=IDENTITY)


def test_an_answer_without_log_probabilities_says_null_and_one_with_them_shows_part_of_a_character() -> None:
    half = TokenLogprob(7, b"\xf0\x9f", -0.5, (Alternative(8, b"a", -1.5),))
    collected = Collected()
    collected.add((Chunk(choice=0, text="", logprobs=(half,)), Chunk(choice=1, text="b"), END))
    first, second = msgspec.json.decode(completion(collected, "m", identity=IDENTITY))["choices"]

    assert first["logprobs"] == {
        "content": [
            {
                "token": "\N{REPLACEMENT CHARACTER}",
                "logprob": -0.5,
                "bytes": [0xF0, 0x9F],
                "top_logprobs": [{"token": "a", "logprob": -1.5, "bytes": [97]}],
            }
        ],
        "refusal": None,
    }
    assert second["logprobs"] is None


def test_log_probabilities_count_towards_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MAX_ANSWER", 10_000)
    likely = TokenLogprob(7, b"x" * 200, -0.5)
    with pytest.raises(InternalError, match="longer than"):
        Collected().add([Chunk(choice=0, text="", logprobs=(likely,))] * 30)


@pytest.mark.parametrize("text", ["x" * 100, ""])
def test_whatever_a_serving_node_sends_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(collecting, "MAX_ANSWER", 10_000)
    collected = Collected()
    with pytest.raises(InternalError, match="longer than"):
        collected.add(Chunk(choice=number, text=text) for number in range(1000))


CALLS = (
    Chunk(choice=0, text="", reasoning="I should "),
    Chunk(choice=0, text="", reasoning="ask."),
    Chunk(choice=0, text="", tool_calls=(ToolCall(0, "call_a", "weather", '{"city":'), ToolCall(1, "call_b", "now", "{}"))),
    Chunk(choice=0, text="", tool_calls=(ToolCall(0, "", "", '"Oslo"}'),), finish=Finish.TOOL_CALLS),
    END,
)


def test_an_answer_of_calls_alone_has_no_content_and_its_reasoning_apart() -> None:
    collected = Collected()
    collected.add(CALLS)
    (choice,) = msgspec.json.decode(completion(collected, "m", identity=IDENTITY))["choices"]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "I should ask.",
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
            {"id": "call_b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    }


def test_a_plain_answer_mentions_neither_calls_nor_reasoning() -> None:
    collected = Collected()
    collected.add((Chunk(choice=0, text="", finish=Finish.STOP), END))
    (choice,) = msgspec.json.decode(completion(collected, "m", identity=IDENTITY))["choices"]

    assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}


def test_the_pieces_of_a_call_say_what_it_is_once() -> None:
    stream = ChunkStream(IDENTITY, include_usage=False)
    stream.begin("m")
    *lines, done, _ = stream.encode(CALLS).split(b"\n\n")
    events = [msgspec.json.decode(line.removeprefix(b"data: ")) for line in lines]

    assert done == b"data: [DONE]"
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "I should "},
        {"reasoning_content": "ask."},
        {
            "tool_calls": [
                {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}},
                {"index": 1, "id": "call_b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
        {},
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("piece", [{"reasoning": "x" * 600}, {"tool_calls": (ToolCall(0, "", "", "x" * 600),)}])
def test_reasoning_and_calls_count_towards_the_bound(monkeypatch: pytest.MonkeyPatch, piece: dict[str, Any]) -> None:
    monkeypatch.setattr(collecting, "MAX_ANSWER", 10_000)
    with pytest.raises(InternalError, match="longer than"):
        Collected().add([Chunk(choice=0, text="", **piece)] * 16)
