"""An answer collected whole, and what bounds it."""

import msgspec
import pytest

from meshnode.api import completion
from meshnode.api.completion import Collected, Identity
from meshnode.errors import InternalError
from meshnode.inference import Alternative, Chunk, End, Finish, TokenLogprob, Usage

IDENTITY = Identity(id="chatcmpl-1", created=1, model="m")
END = End(usage=Usage(prompt_tokens=2, completion_tokens=3))


def test_choices_are_put_together_in_their_order() -> None:
    collected = Collected()
    collected.add((Chunk(choice=1, text="b"), Chunk(choice=0, text="a"), Chunk(choice=1, text="c", finish=Finish.LENGTH)))
    collected.add((Chunk(choice=0, text="", finish=Finish.STOP), END))
    answer = msgspec.json.decode(collected.completion(IDENTITY))

    assert [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]] == [
        ("a", "stop"),
        ("bc", "length"),
    ]
    assert answer["usage"]["total_tokens"] == 5


def test_an_answer_without_its_end_is_an_error() -> None:
    with pytest.raises(InternalError):
        Collected().completion(IDENTITY)


def test_an_answer_without_log_probabilities_says_null_and_one_with_them_shows_part_of_a_character() -> None:
    half = TokenLogprob(7, b"\xf0\x9f", -0.5, (Alternative(8, b"a", -1.5),))
    collected = Collected()
    collected.add((Chunk(choice=0, text="", logprobs=(half,)), Chunk(choice=1, text="b"), END))
    first, second = msgspec.json.decode(collected.completion(IDENTITY))["choices"]

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
    monkeypatch.setattr(completion, "MAX_ANSWER", 10_000)
    likely = TokenLogprob(7, b"x" * 200, -0.5)
    with pytest.raises(InternalError, match="longer than"):
        Collected().add([Chunk(choice=0, text="", logprobs=(likely,))] * 20)


@pytest.mark.parametrize("text", ["x" * 100, ""])
def test_whatever_a_serving_node_sends_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(completion, "MAX_ANSWER", 10_000)
    collected = Collected()
    with pytest.raises(InternalError, match="longer than"):
        collected.add(Chunk(choice=number, text=text) for number in range(1000))
