"""OpenAI's official client against the demo model, on the node that serves it and on one that only forwards."""

from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from processes import NodeProcess

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def text_of(client: openai.OpenAI, messages: list[ChatCompletionMessageParam] = STORY, **options: Any) -> str:
    answer = client.chat.completions.create(model="demo", messages=messages, **{"temperature": 0, "max_tokens": 12, **options})
    return answer.choices[0].message.content or ""


# Models


def test_models_are_listed_once_and_found_by_name(openai_client: openai.OpenAI) -> None:
    models = list(openai_client.models.list())
    model = openai_client.models.retrieve("demo")

    assert [each.id for each in models] == ["demo"]
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "meshnode")
    assert model.created > 0
    meta: Any = model.to_dict()["meta"]
    assert meta["nodes"] == ["holder"]
    assert meta["context_length"] > 0


def test_an_unknown_model_is_404_in_openais_words(openai_client: openai.OpenAI) -> None:
    for ask in (
        lambda: openai_client.models.retrieve("nonsense"),
        lambda: openai_client.chat.completions.create(model="nonsense", messages=QUESTION),
        lambda: openai_client.completions.create(model="nonsense", prompt="Once"),
    ):
        with pytest.raises(openai.NotFoundError, match="The model `nonsense` does not exist") as caught:
            ask()
        assert (caught.value.code, caught.value.type, caught.value.param) == ("model_not_found", "invalid_request_error", "model")


# Chat completions


def test_a_chat_answers_with_every_field(openai_client: openai.OpenAI) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(model="demo", messages=QUESTION, temperature=0)
    answer = raw.parse()
    (choice,) = answer.choices

    assert "Paris" in (choice.message.content or "")
    assert (answer.object, answer.model, choice.index, choice.finish_reason) == ("chat.completion", "demo", 0, "stop")
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    assert (choice.message.role, choice.message.refusal, choice.message.tool_calls, choice.logprobs) == ("assistant",) + (
        None,
    ) * 3
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert raw.headers["x-meshnode-node"] == "holder"
    assert raw.headers["x-request-id"]
    assert int(raw.headers["openai-processing-ms"]) >= 0


def test_a_stream_is_the_whole_answer_in_pieces(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="demo", messages=STORY, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    *pieces, usage = list(stream)

    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text_of(openai_client)
    assert (pieces[0].choices[0].delta.role, pieces[0].choices[0].delta.content) == ("assistant", "")
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert pieces[-1].choices[0].delta.content is None
    assert len({(piece.id, piece.created, piece.model) for piece in [*pieces, usage]}) == 1
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 12
    assert all(piece.usage is None for piece in pieces)


def test_the_stream_helper(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(model="demo", messages=QUESTION, temperature=0) as stream:
        assert "Paris" in (stream.get_final_completion().choices[0].message.content or "")


async def test_the_async_client(node: NodeProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://{node.api_address}/v1", api_key="unused") as client:
        stream = await client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert "Paris" in text


def test_the_newer_name_of_max_tokens_counts(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="demo", messages=STORY, max_completion_tokens=3)

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_several_choices_have_their_indices_whole_and_streamed(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="demo", messages=STORY, n=2, seed=7, max_tokens=8)
    texts: dict[int, str] = {}
    for chunk in openai_client.chat.completions.create(model="demo", messages=STORY, n=2, seed=7, max_tokens=8, stream=True):
        texts[chunk.choices[0].index] = texts.get(chunk.choices[0].index, "") + (chunk.choices[0].delta.content or "")

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert texts == {choice.index: choice.message.content for choice in answer.choices}


@pytest.mark.parametrize("stop", [" fox", [" fox", "never"]])
def test_an_answer_ends_before_a_stop_string(openai_client: openai.OpenAI, stop: Any) -> None:
    whole = text_of(openai_client, max_tokens=30)
    assert " fox" in whole
    answer = openai_client.chat.completions.create(model="demo", messages=STORY, temperature=0, max_tokens=30, stop=stop)

    assert answer.choices[0].message.content == whole.partition(" fox")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_repeats_an_answer(openai_client: openai.OpenAI) -> None:
    assert text_of(openai_client, temperature=1.5, seed=3) == text_of(openai_client, temperature=1.5, seed=3)


def test_log_probabilities_and_their_bytes(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3)
    likely = answer.choices[0].logprobs
    assert likely is not None
    tokens = likely.content or []

    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode() == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def test_a_bias_and_penalties_change_what_is_drawn(openai_client: openai.OpenAI) -> None:
    plain = text_of(openai_client)
    assert text_of(openai_client, frequency_penalty=2, presence_penalty=2, max_tokens=12) is not None
    with pytest.raises(openai.BadRequestError, match="token 99999999"):
        text_of(openai_client, logit_bias={"99999999": 1})
    assert text_of(openai_client, logit_bias={str(token): -100 for token in range(100, 400)}) != plain


class City(pydantic.BaseModel):
    name: Literal["Paris", "Rome"]
    large: bool


def test_an_answer_is_parsed_by_its_schema(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.parse(model="demo", messages=QUESTION, response_format=City, temperature=0)

    assert isinstance(answer.choices[0].message.parsed, City)
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_in_json_without_a_schema_begins_an_object(openai_client: openai.OpenAI) -> None:
    """The demo model does not come to the object's end by itself."""
    assert text_of(openai_client, QUESTION, response_format={"type": "json_object"}).startswith("{")


def test_embeddings_come_as_the_client_asks_for_them(openai_client: openai.OpenAI) -> None:
    """By default that is base64, which the client undoes."""
    by_default = openai_client.embeddings.create(model="demo", input=["a fox", "an owl"])
    plain = openai_client.embeddings.create(model="demo", input="a fox", encoding_format="float")

    assert [each.index for each in by_default.data] == [0, 1]
    assert by_default.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "weather"}}])
def test_tools_are_taken_with_every_choice(openai_client: openai.OpenAI, choice: Any) -> None:
    """The demo model is too small to call well: what it makes of it is a call or text, never an error."""
    answer = openai_client.chat.completions.create(
        model="demo", messages=QUESTION, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=40, temperature=0
    )
    message = answer.choices[0].message

    assert answer.choices[0].finish_reason in {"stop", "length", "tool_calls"}
    assert (answer.choices[0].finish_reason == "tool_calls") == bool(message.tool_calls)
    assert message.content is not None or message.tool_calls
    assert not (choice == "none" and message.tool_calls)


def test_a_call_and_its_result_can_be_sent_back(openai_client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = openai_client.chat.completions.create(model="demo", messages=messages, tools=[TOOL], max_tokens=5)

    assert answer.usage is not None


def test_every_role_and_parts_of_text_are_taken(openai_client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]},
    ]

    assert text_of(openai_client, messages)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    ],
)
def test_images_and_sound_are_refused_by_name(openai_client: openai.OpenAI, part: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        text_of(openai_client, [{"role": "user", "content": [part]}])

    assert caught.value.param == "messages[0].content[0].type"
    assert part["type"] in caught.value.message


def test_bookkeeping_is_ignored_and_listed(openai_client: openai.OpenAI) -> None:
    raw = openai_client.chat.completions.with_raw_response.create(
        model="demo", messages=QUESTION, max_tokens=1, user="me", metadata={"a": "b"}, store=False, extra_body={"unheard_of": 1}
    )

    assert raw.headers["x-meshnode-ignored"] == "metadata, store, unheard_of, user"


# Errors


def test_a_wrong_value_is_400_and_named(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        text_of(openai_client, temperature=9)

    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert caught.value.request_id


def test_a_conversation_too_long_names_the_largest_context(openai_client: openai.OpenAI) -> None:
    meta: Any = openai_client.models.retrieve("demo").to_dict()["meta"]
    with pytest.raises(openai.BadRequestError, match=f"{meta['context_length']} tokens") as caught:
        text_of(openai_client, [{"role": "user", "content": "word " * 9000}])

    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_path_and_a_wrong_method_are_error_objects(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.images.generate(prompt="a fox")
    assert caught.value.code == "not_found"
    with pytest.raises(openai.APIStatusError) as wrong:
        openai_client.models.delete("demo")
    assert (wrong.value.status_code, wrong.value.code) == (405, "method_not_allowed")


# Completions


def test_a_completion_goes_on_with_its_prompt(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="demo", prompt="Once upon a time", temperature=0, max_tokens=5, logprobs=1)
    pieces = list(
        openai_client.completions.create(model="demo", prompt="Once upon a time", temperature=0, max_tokens=5, stream=True)
    )

    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or ()) == answer.choices[0].text


def test_several_prompts_give_a_choice_each(openai_client: openai.OpenAI) -> None:
    one, two = "Once upon a time", "The fox"
    both = openai_client.completions.create(model="demo", prompt=[one, two], temperature=0, max_tokens=5, echo=True)

    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text.startswith(one)
    assert both.choices[1].text.startswith(two)


def test_a_prompt_as_token_ids_is_the_same_prompt(openai_client: openai.OpenAI) -> None:
    """Its ids come from `/v1/tokenize`, which gives the text back as well."""
    text = "Once upon a time"
    ids: list[int] = openai_client.post("/tokenize", body={"model": "demo", "prompt": text}, cast_to=dict[str, Any])["tokens"]
    plain, spelt = (
        openai_client.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=5) for prompt in (text, ids)
    )

    assert openai_client.post("/detokenize", body={"tokens": ids}, cast_to=dict[str, Any])["prompt"] == text
    assert plain.choices[0].text == spelt.choices[0].text
    assert plain.usage == spelt.usage
    with pytest.raises(openai.BadRequestError, match="token 99999999"):
        openai_client.completions.create(model="demo", prompt=[99999999])


def test_a_suffix_is_refused_by_name(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix"):
        openai_client.completions.create(model="demo", prompt="Once", suffix="end")
