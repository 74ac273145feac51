"""OpenAI's embeddings: what is asked as types, what comes back as its object, and the official client against a real worker."""

import base64
import json
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from api.serving import FakeNode
from api.test_openai_client import ASK, with_client
from api.tiny_worker import tiny_worker
from encoder_model import WIDTH, make_encoder

from meshnode.api.embeddings import Collected, EmbeddingsRequest, embeddings_request
from meshnode.errors import InternalError, InvalidRequest
from meshnode.inference import MAX_INPUTS, Chunk, End, Event, Finish, Request, Usage


def asked(**fields: Any) -> EmbeddingsRequest:
    return embeddings_request(json.dumps({"model": "m", **fields}).encode(), request_id="r1")


def packed(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


END = End(usage=Usage(prompt_tokens=5, completion_tokens=0))


def test_texts_become_a_request_without_messages() -> None:
    assert asked(input="hi").request == Request(id="r1", model="m", messages=(), inputs=("hi",))
    assert asked(input=["a", "b"], encoding_format="base64", dimensions=3) == EmbeddingsRequest(
        request=Request(id="r1", model="m", messages=(), inputs=("a", "b")), base64=True, dimensions=3
    )
    assert asked(input="hi", user="somebody", encoding_format=None) == asked(input="hi", encoding_format="float")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": [1, 2]}, "input[0]"),
        ({"input": [[1, 2]]}, "input[0]"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": "3"}, "dimensions"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(**fields)

    assert caught.value.param == param
    assert param in caught.value.message


def test_vectors_are_shown_in_order_however_they_came() -> None:
    first, second = packed(0.5, -1), packed(2, 0)
    collected = Collected(asked(input=["a", "b"]))
    collected.add([Chunk(choice=1, text=second[:3]), Chunk(choice=0, text=first, finish=Finish.STOP)])
    collected.add([Chunk(choice=1, text=second[3:], finish=Finish.STOP), END])

    assert json.loads(collected.response("m")) == {
        "object": "list",
        "model": "m",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 0.0]},
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_other_dimensions_than_wanted_are_refused_with_both_numbers() -> None:
    fitting = Collected(asked(input="a", dimensions=2))
    fitting.add([Chunk(choice=0, text=packed(1, 0), finish=Finish.STOP)])

    with pytest.raises(InvalidRequest, match="have 2 dimensions, not 3") as caught:
        Collected(asked(input="a", dimensions=3)).add([Chunk(choice=0, text=packed(1, 0), finish=Finish.STOP)])
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("text", ["words", "AAA=", "AAAAA", "ä"])
def test_what_is_no_vector_is_an_error(text: str) -> None:
    with pytest.raises(InternalError):
        Collected(asked(input="a")).add([Chunk(choice=0, text=text, finish=Finish.STOP)])


def test_a_missing_vector_or_end_is_an_error() -> None:
    vector = Chunk(choice=0, text=packed(1), finish=Finish.STOP)
    cases: list[list[Event]] = [[vector], [END], [vector, Chunk(choice=2, text=packed(1), finish=Finish.STOP), END]]
    for events in cases:
        collected = Collected(asked(input=["a", "b"]))
        collected.add(events)
        with pytest.raises(InternalError):
            collected.response("m")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    pytest.importorskip("llama_cpp")
    async with tiny_worker(tmp_path) as worker:
        yield FakeNode({"holder": worker})


async def test_the_official_client_gets_the_same_vectors_in_every_way(node: FakeNode) -> None:
    texts = ["hello world", "the quick brown fox", "hello world"]

    def use(client: openai.OpenAI) -> tuple[list[list[float]], list[list[float]], list[float], int]:
        many = client.embeddings.create(model="m", input=texts)  # as base64, which the client asks for by itself
        plain = client.embeddings.create(model="m", input=texts, encoding_format="float")
        single = client.embeddings.create(model="m", input=texts[1])
        client.chat.completions.create(model="m", messages=ASK, max_tokens=2)
        assert [each.index for each in many.data] == [0, 1, 2]
        return (
            [each.embedding for each in many.data],
            [each.embedding for each in plain.data],
            single.data[0].embedding,
            many.usage.prompt_tokens,
        )

    many, plain, single, tokens = await with_client(node, use)

    assert many == plain
    assert many[0] == pytest.approx(many[2], abs=1e-4)
    assert many[1] == pytest.approx(single, abs=1e-4)
    assert many[0] != pytest.approx(many[1], abs=1e-2)
    assert [math.hypot(*vector) for vector in many] == pytest.approx([1] * 3, abs=1e-5)
    assert tokens > 3


async def test_what_the_model_cannot_embed_is_a_bad_request_with_both_numbers(node: FakeNode) -> None:
    with pytest.raises(openai.BadRequestError, match=r"`input\[1\]` has \d+ tokens; \d+ are the model's limit") as long:
        await with_client(node, lambda client: client.embeddings.create(model="m", input=["a", "hello " * 20_000]))
    with pytest.raises(openai.BadRequestError, match="have 64 dimensions, not 3") as other:
        await with_client(node, lambda client: client.embeddings.create(model="m", input="a", dimensions=3))

    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    assert other.value.param == "dimensions"


async def test_a_model_that_only_embeds_does_so_and_says_that_it_writes_no_text(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")

    def use(client: openai.OpenAI) -> list[int]:
        with pytest.raises(openai.BadRequestError, match=r"writes no text\. Ask /v1/embeddings"):
            client.chat.completions.create(model="m", messages=ASK)
        return [len(each.embedding) for each in client.embeddings.create(model="m", input=["hello world", "the fox"]).data]

    async with tiny_worker(tmp_path, make_encoder) as worker:
        assert await with_client(FakeNode({"holder": worker}), use) == [WIDTH, WIDTH]
