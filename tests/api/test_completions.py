"""OpenAI's older completions: plain prompts, several at once, and the older form of log-probabilities."""

import json
import math

import openai
import pytest
from api.serving import FakeNode
from api.test_openai_client import node_of, with_client
from openai.types import Completion
from openai.types.chat import ChatCompletionStreamOptionsParam

from meshnode.api.prompts import MAX_PROMPTS, completion_request
from meshnode.api.text_completion import logprobs_object
from meshnode.errors import InvalidRequest, LinkLost, Unsupported
from meshnode.inference import Alternative, Logprobs, Request, Sampling, TokenLogprob
from meshnode.testing import FakeWorker


def mapped(**fields: object) -> tuple[Request, ...]:
    body = {"model": "m", "prompt": "Once", **fields}
    return completion_request(json.dumps(body).encode(), request_id="r1", created=1).requests


def test_a_plain_prompt_and_the_short_answer_that_older_clients_count_on() -> None:
    assert mapped() == (Request(id="r1", model="m", messages=(), prompt="Once", sampling=Sampling(max_tokens=16)),)
    assert mapped(max_tokens=5)[0].sampling.max_tokens == 5


def test_each_of_several_prompts_is_a_request_of_its_own() -> None:
    assert [(request.id, request.prompt) for request in mapped(prompt=["a", "b"])] == [("r1", "a"), ("r1-1", "b")]


def test_a_prompt_may_be_token_ids_and_so_may_each_of_several() -> None:
    assert [request.prompt for request in mapped(prompt=[1, 50256])] == [(1, 50256)]
    assert [request.prompt for request in mapped(prompt=[[1], [2, 3]])] == [(1,), (2, 3)]


def test_log_probabilities_are_a_number_here() -> None:
    assert mapped(logprobs=3)[0].logprobs == Logprobs(top=3)
    assert mapped(logprobs=0)[0].logprobs == Logprobs(top=0)
    assert mapped()[0].logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2], "echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        mapped(**fields)

    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 0}, "n"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        mapped(**fields)

    assert caught.value.param == param


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidRequest, match="`prompt` is missing"):
        completion_request(b'{"model":"m"}', request_id="r1", created=1)


def test_tokens_that_are_parts_of_a_character_stay_apart_and_have_their_places() -> None:
    first = TokenLogprob(1, b"a", -0.5, (Alternative(1, b"a", -0.5), Alternative(2, b"\xf0", -1), Alternative(3, b"\xf1", -2)))

    assert logprobs_object([first, TokenLogprob(2, b"\xf0", -1.0)], 7) == {
        "tokens": ["a", "bytes:\\xf0"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"a": -0.5, "bytes:\\xf0": -1, "bytes:\\xf1": -2}, {}],
        "text_offset": [7, 8],
    }


# Through the official client


async def test_an_unstreamed_completion() -> None:
    answer = await with_client(node_of(FakeWorker()), lambda client: client.completions.create(model="m", prompt="Once upon"))

    assert (answer.object, answer.model) == ("text_completion", "m")
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello from a fake worker.", "stop")
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)


async def test_a_streamed_completion_with_usage() -> None:
    chunks = await with_client(
        node_of(FakeWorker()),
        lambda client: list(
            client.completions.create(model="m", prompt="Once", stream=True, stream_options={"include_usage": True})
        ),
    )

    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello from a fake worker."
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 5 + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_the_prompt_is_said_again_where_asked_for() -> None:
    node = node_of(FakeWorker(["x"]))
    whole = await with_client(node, lambda client: client.completions.create(model="m", prompt=["One ", "Two "], echo=True))
    pieces = await with_client(
        node, lambda client: list(client.completions.create(model="m", prompt="One ", echo=True, stream=True))
    )

    assert [choice.text for choice in whole.choices] == ["One x", "Two x"]
    assert [chunk.choices[0].text for chunk in pieces] == ["One ", "x"]


@pytest.mark.parametrize("stream", [False, True])
async def test_many_prompts_are_one_answer_with_a_choice_for_each(*, stream: bool) -> None:
    node = node_of(FakeWorker(["a", "b"]))
    prompts = [f"number {index}" for index in range(10)]

    def use(client: openai.OpenAI) -> list[Completion]:
        if stream:
            options: ChatCompletionStreamOptionsParam = {"include_usage": True}
            return list(client.completions.create(model="m", prompt=prompts, stream=True, stream_options=options))
        return [client.completions.create(model="m", prompt=prompts)]

    chunks = await with_client(node, use)
    texts: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] = texts.get(choice.index, "") + choice.text

    assert texts == dict.fromkeys(range(10), "ab")
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [40]


async def test_the_failure_of_one_prompt_is_that_of_all_and_the_others_end() -> None:
    worker = FakeWorker(fail_after=2, failure=lambda: LinkLost("The peer went away."))
    with pytest.raises(openai.InternalServerError, match="went away") as caught:
        await with_client(node_of(worker), lambda client: client.completions.create(model="m", prompt=["a"] * 10))

    assert caught.value.status_code == 502
    assert worker.finished + worker.cancelled == len(worker.requests)


async def test_an_unknown_model_is_404_for_many_prompts_too() -> None:
    with pytest.raises(openai.NotFoundError):
        await with_client(FakeNode({}), lambda client: client.completions.create(model="x", prompt=["a", "b"]))


async def test_the_older_form_of_log_probabilities() -> None:
    answer = await with_client(
        node_of(FakeWorker()), lambda client: client.completions.create(model="m", prompt="Once", logprobs=2)
    )
    likely = answer.choices[0].logprobs
    assert likely is not None

    assert likely.tokens == ["Hello", " from", " a", " fake", " worker", "."]
    assert likely.text_offset == [0, 5, 10, 12, 17, 24]
    assert (likely.token_logprobs or [])[0] == pytest.approx(math.log(0.5))
    assert list((likely.top_logprobs or [])[0]) == ["Hello", " from"]
