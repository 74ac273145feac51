"""Ollama's official client against the demo model, on the node that serves it and on one that only forwards."""

import http.client
import json
from collections.abc import Callable
from typing import Any

import ollama
import pytest
from processes import NodeProcess

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = "Tell me a story about a fox."
COLD = {"temperature": 0}


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    return f"rain in {city}"


def raw(node: NodeProcess, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
    host, _, port = node.api_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request(method, path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {key.lower(): value for key, value in answer.getheaders()}, content


@pytest.mark.parametrize("model", ["demo", "demo:latest"])
def test_a_chat_answers_with_every_field(ollama_client: ollama.Client, model: str) -> None:
    answer = ollama_client.chat(model=model, messages=QUESTION, options=COLD)

    assert "Paris" in (answer.message.content or "")
    assert (answer.model, answer.message.role, answer.done, answer.done_reason) == (model, "assistant", True, "stop")
    assert answer.created_at
    assert answer.prompt_eval_count
    assert answer.eval_count
    assert answer.eval_duration
    assert answer.prompt_eval_duration
    assert (answer.total_duration or 0) >= answer.eval_duration + answer.prompt_eval_duration


def test_a_stream_is_the_whole_answer_in_lines(ollama_client: ollama.Client) -> None:
    *pieces, last = list(ollama_client.chat(model="demo", messages=QUESTION, options=COLD, stream=True))
    whole = ollama_client.chat(model="demo", messages=QUESTION, options=COLD)

    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert not any(piece.done for piece in pieces)
    assert (last.done, last.done_reason, last.eval_count) == (True, "stop", whole.eval_count)


async def test_the_async_client(node: NodeProcess) -> None:
    client = ollama.AsyncClient(host=node.api_address)
    text = ""
    async for piece in await client.chat(model="demo", messages=QUESTION, options=COLD, stream=True):
        text += piece.message.content or ""

    assert "Paris" in text


def test_generate_whole_and_streamed(ollama_client: ollama.Client) -> None:
    whole = ollama_client.generate(model="demo", prompt=STORY, options={**COLD, "num_predict": 8})
    pieces = list(ollama_client.generate(model="demo", prompt=STORY, options={**COLD, "num_predict": 8}, stream=True))

    assert (whole.done_reason, whole.eval_count) == ("length", 8)
    assert "".join(piece.response or "" for piece in pieces) == whole.response


def test_a_raw_prompt_is_what_the_template_would_make(ollama_client: ollama.Client) -> None:
    spelt = f"<|im_start|>user\n{STORY}<|im_end|>\n<|im_start|>assistant\n"
    options = {**COLD, "num_predict": 8}

    assert (
        ollama_client.generate(model="demo", prompt=spelt, raw=True, options=options).response
        == ollama_client.generate(model="demo", prompt=STORY, options=options).response
    )


def test_options_of_drawing_and_of_loading(ollama_client: ollama.Client) -> None:
    options: dict[str, Any] = {"seed": 3, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "num_ctx": 1024, "num_predict": 8}
    first, second = (ollama_client.generate(model="demo", prompt=STORY, options=options, keep_alive="5m") for _ in range(2))

    assert first.response == second.response


def test_an_answer_ends_before_a_stop_string(ollama_client: ollama.Client) -> None:
    answer = ollama_client.generate(model="demo", prompt=STORY, options={**COLD, "stop": [" fox"], "num_predict": 40})

    assert " fox" not in (answer.response or "")
    assert answer.done_reason == "stop"


def test_tools_as_functions(ollama_client: ollama.Client) -> None:
    """The demo model is too small to call well: what it makes of it is a call or text, never an error."""
    call: Any = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
    result = {"role": "tool", "tool_name": "weather", "content": "rain"}
    for messages in (QUESTION, [*QUESTION, call, result]):
        answer = ollama_client.chat(model="demo", messages=messages, tools=[weather], options={**COLD, "num_predict": 20})

        assert answer.done


@pytest.mark.parametrize("think", [None, False, True])
def test_a_model_that_cannot_think_answers_all_the_same(ollama_client: ollama.Client, think: bool | None) -> None:
    assert "Paris" in (ollama_client.chat(model="demo", messages=QUESTION, think=think, options=COLD).message.content or "")


def test_log_probabilities(ollama_client: ollama.Client) -> None:
    answer = ollama_client.chat(model="demo", messages=QUESTION, options=COLD, logprobs=True, top_logprobs=2)

    assert "".join(token.token for token in answer.logprobs or ()) == answer.message.content
    assert all(len(token.top_logprobs or ()) == 2 for token in answer.logprobs or ())


def test_an_answer_follows_a_schema_or_is_json(ollama_client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Paris", "Rome"]}},
        "required": ["name"],
        "additionalProperties": False,
    }
    answer = ollama_client.chat(model="demo", messages=QUESTION, format=schema, options=COLD)
    begun = ollama_client.generate(model="demo", prompt=STORY, format="json", options={**COLD, "num_predict": 5})

    assert json.loads(answer.message.content or "")["name"] in {"Paris", "Rome"}
    assert (begun.response or "").startswith("{")


def test_embeddings_of_one_text_and_of_several(ollama_client: ollama.Client) -> None:
    several = ollama_client.embed(model="demo", input=["a fox", "an owl"])
    one = ollama_client.embed(model="demo:latest", input="a fox")
    older = ollama_client.embeddings(model="demo", prompt="a fox")

    assert len(several.embeddings) == 2
    assert list(several.embeddings[0]) == pytest.approx(list(one.embeddings[0]), abs=1e-5)
    assert list(older.embedding) == pytest.approx(list(one.embeddings[0]), abs=1e-5)
    assert one.prompt_eval_count
    assert one.model == "demo:latest"
    with pytest.raises(ollama.ResponseError, match="`input` holds an empty text"):
        ollama_client.embed(model="demo", input="")


def test_models_are_listed_running_and_shown(ollama_client: ollama.Client) -> None:
    (listed,) = ollama_client.list().models
    (running,) = ollama_client.ps().models
    shown = ollama_client.show("demo")

    assert listed.model == running.model == running.name == "demo:latest"
    assert listed.digest
    assert len(listed.digest) == 64
    assert (listed.size or 0) > 100_000
    assert listed.details is not None
    assert listed.details.format == "gguf"
    assert running.context_length
    assert running.expires_at is not None
    assert shown.modelinfo is not None
    assert shown.modelinfo["unknown.context_length"] == running.context_length
    assert "completion" in (shown.capabilities or [])
    assert ollama_client.show("demo:latest").modelinfo == shown.modelinfo


def test_without_a_prompt_the_model_is_loaded(ollama_client: ollama.Client) -> None:
    assert ollama_client.generate(model="demo").done_reason == "load"
    assert ollama_client.chat(model="demo").done_reason == "load"
    assert ollama_client.generate(model="demo", keep_alive=0).done_reason == "unload"


def test_the_greeting_the_version_and_head(node: NodeProcess) -> None:
    assert raw(node, "GET", "/")[::2] == (200, b"Ollama is running")
    assert raw(node, "HEAD", "/")[::2] == (200, b"")
    assert raw(node, "HEAD", "/api/tags")[0] == 200
    version = json.loads(raw(node, "GET", "/api/version")[2])["version"]
    assert tuple(map(int, version.split("."))) > (0, 6, 4)


def test_without_a_word_about_it_an_answer_is_streamed(node: NodeProcess) -> None:
    status, headers, body = raw(node, "POST", "/api/generate", {"model": "demo", "prompt": STORY, "options": {"num_predict": 4}})
    lines = [json.loads(line) for line in body.splitlines()]

    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert body.endswith(b"\n")


# Errors


def test_an_unknown_model_is_404_as_a_text(node: NodeProcess, ollama_client: ollama.Client) -> None:
    asks: tuple[Callable[[], object], ...] = (
        lambda: ollama_client.chat(model="nonsense", messages=QUESTION),
        lambda: list(ollama_client.chat(model="nonsense", messages=QUESTION, stream=True)),
        lambda: ollama_client.show("nonsense"),
        lambda: ollama_client.generate(model="nonsense"),
    )
    for ask in asks:
        with pytest.raises(ollama.ResponseError, match="nonsense") as caught:
            ask()
        assert caught.value.status_code == 404
    assert set(json.loads(raw(node, "POST", "/api/chat", {"model": "nonsense", "messages": QUESTION})[2])) == {"error"}


def test_a_wrong_option_is_400_and_named(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature") as caught:
        ollama_client.chat(model="demo", messages=QUESTION, options={"temperature": 9})

    assert caught.value.status_code == 400


def test_an_image_is_refused_by_name(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="images"):
        ollama_client.chat(model="demo", messages=[{"role": "user", "content": "What is it?", "images": [b"\x89PNG"]}])


def test_the_library_is_not_changed_over_http(ollama_client: ollama.Client) -> None:
    changes: tuple[Callable[[], object], ...] = (
        lambda: ollama_client.pull("demo"),
        lambda: ollama_client.push("demo"),
        lambda: ollama_client.copy("demo", "other"),
        lambda: ollama_client.delete("demo"),
    )
    for change in changes:
        with pytest.raises(ollama.ResponseError, match="not provided") as caught:
            change()
        assert caught.value.status_code == 501
