"""Text to tokens and back, in the shapes of llama-server and vLLM."""

import json
from typing import Any

import pytest
from api.serving import CLOSE, SECRET, FakeNode, post
from api.test_api_app import ask

from meshnode.api.app import App
from meshnode.api.tokens import MAX_TOKENS, detokenize_request, first_token_request, tokenize_request
from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import Message
from meshnode.testing import FakeWorker


def tokenized(*models: str, **fields: object) -> tuple[str | tuple[int, ...] | None, tuple[Message, ...], bool]:
    measured = tokenize_request(json.dumps(fields).encode(), request_id="r1", models=models or ["m"])
    assert (measured.request.model, measured.request.echo, measured.request.sampling.max_tokens) == ("m", True, 0)
    return measured.request.prompt, measured.request.messages, measured.with_first


def test_both_servers_shapes_are_read() -> None:
    assert tokenized(content="Hi") == ("Hi", (), False)
    assert tokenized(content="Hi", add_special=True) == ("Hi", (), True)
    assert tokenized("a", "b", model="m", prompt="Hi") == ("Hi", (), True)
    assert tokenized(prompt="Hi", add_special_tokens=False) == ("Hi", (), False)
    assert tokenized(messages=[{"role": "user", "content": "Hi"}]) == (None, (Message(role="user", content="Hi"),), True)


def test_tokens_are_a_prompt() -> None:
    request = detokenize_request(b'{"tokens":[1,2]}', request_id="r1", models=["m"])

    assert (request.prompt, request.echo, request.sampling.max_tokens) == ((1, 2), True, 0)
    assert first_token_request(request).prompt == ""


@pytest.mark.parametrize("name", ["with_pieces", "return_token_strs"])
def test_what_cannot_be_told_is_refused_by_name(name: str) -> None:
    with pytest.raises(Unsupported, match=name):
        tokenized(content="Hi", **{name: True})
    with pytest.raises(Unsupported, match="parse_special"):
        tokenized(content="Hi", parse_special=False)


@pytest.mark.parametrize(
    ("fields", "models", "param"),
    [
        ({}, ["m"], "prompt"),
        ({"content": "Hi"}, [], "model"),
        ({"content": "Hi"}, ["a", "b"], "model"),
        ({"messages": []}, ["m"], "messages"),
    ],
)
def test_what_is_missing_is_named(fields: dict[str, object], models: list[str], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenize_request(json.dumps(fields).encode(), request_id="r1", models=models)

    assert caught.value.param == param


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], "a", [1.5], [1] * (MAX_TOKENS + 1)])
def test_what_are_no_tokens_is_refused(tokens: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        detokenize_request(json.dumps({"tokens": tokens}).encode(), request_id="r1", models=["m"])

    assert caught.value.param == "tokens"


async def asked(path: bytes, worker: FakeWorker, **fields: object) -> Any:
    app = App(FakeNode({"holder": worker}), admin_secret=SECRET, hosts=frozenset())
    head, body = await ask(app, post(json.dumps(fields).encode(), CLOSE, path=path))
    assert head.startswith("HTTP/1.1 200")
    return json.loads(body)


@pytest.mark.parametrize("root", [b"", b"/v1"])
async def test_the_first_token_of_every_prompt_is_left_out_where_it_is_not_wanted(root: bytes) -> None:
    worker = FakeWorker()

    assert (await asked(root + b"/tokenize", worker, content="ab"))["tokens"] == [97, 98]
    assert (await asked(root + b"/tokenize", worker, prompt="ab")) == {"tokens": [1, 97, 98], "count": 3, "max_model_len": 1024}
    assert (await asked(root + b"/detokenize", worker, tokens=[97, 98])) == {"content": "ab", "prompt": "ab"}
