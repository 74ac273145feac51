"""An answer collected whole, and what bounds it."""

import msgspec
import pytest

from meshnode.api import completion
from meshnode.api.completion import Collected, Identity
from meshnode.errors import InternalError
from meshnode.inference import Chunk, End, Finish, Usage

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


@pytest.mark.parametrize("text", ["x" * 100, ""])
def test_whatever_a_serving_node_sends_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(completion, "MAX_ANSWER", 10_000)
    collected = Collected()
    with pytest.raises(InternalError, match="longer than"):
        collected.add(Chunk(choice=number, text=text) for number in range(1000))
