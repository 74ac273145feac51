"""Answers that follow a schema or a grammar: the official client against a real worker with a model of random weights.

Nothing such a model writes makes sense, so what is right about its answers is the schema's doing.
"""

import json
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("llama_cpp")

from api.serving import SECRET, FakeNode
from api.test_openai_client import ASK, with_client
from api.tiny_worker import tiny_worker
from pydantic import BaseModel, Field


class Kind(StrEnum):
    CAT = "cat"
    DOG = "dog"


class Paw(BaseModel):
    side: bool
    claws: int = Field(ge=0, le=6)


class Animal(BaseModel):
    kind: Kind
    legs: int = Field(ge=0, le=8)
    weight: float | None
    paws: list[Paw] = Field(max_length=2)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with tiny_worker(tmp_path) as worker:
        yield FakeNode({"holder": worker})


async def test_the_client_parses_answers_into_a_model(node: FakeNode) -> None:
    def use(client: openai.OpenAI) -> list[Animal | None]:
        parsed = (
            client.chat.completions.parse(model="m", messages=ASK, seed=seed, temperature=2, response_format=Animal)
            for seed in range(4)
        )
        return [each.choices[0].message.parsed for each in parsed]

    animals = await with_client(node, use)

    assert all(isinstance(animal, Animal) for animal in animals)
    assert len({animal.model_dump_json() for animal in animals if animal}) > 1


async def test_a_stream_is_the_same_answer_in_pieces(node: FakeNode) -> None:
    schema = {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 5, "maxItems": 9}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "letters", "strict": True, "schema": schema}}

    def use(client: openai.OpenAI) -> tuple[str, str]:
        whole = client.chat.completions.create(model="m", messages=ASK, seed=1, response_format=asked)
        pieces = client.chat.completions.create(model="m", messages=ASK, seed=1, response_format=asked, stream=True)
        return whole.choices[0].message.content or "", "".join(piece.choices[0].delta.content or "" for piece in pieces)

    whole, streamed = await with_client(node, use)

    assert whole == streamed
    assert 5 <= len(json.loads(whole)) <= 9


async def test_a_grammar_of_llama_servers_is_followed(node: FakeNode) -> None:
    answer = await with_client(
        node,
        lambda client: client.chat.completions.create(
            model="m", messages=ASK, extra_body={"grammar": 'root ::= ("yes" | "no") "!"'}
        ),
        api_key=SECRET,
    )

    assert answer.choices[0].message.content in {"yes!", "no!"}
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"multipleOf": 2}}}}}},
            "response_format.json_schema.schema",
            "at `/properties/a/multipleOf`",
        ),
        ({"grammar": 'root ::= "a" | b'}, "grammar", "line 1, column 16: there is no rule `b`"),
        ({"grammar": 'root ::= "a"{5,3}'}, "grammar", "line 1, column 13"),
    ],
)
async def test_what_cannot_be_followed_is_a_bad_request_that_names_the_place(
    node: FakeNode, fields: dict[str, object], param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="is wrong") as caught:
        await with_client(
            node, lambda client: client.chat.completions.create(model="m", messages=ASK, extra_body=fields), api_key=SECRET
        )

    assert caught.value.param == param
    assert said in caught.value.message
