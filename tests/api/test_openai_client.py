"""The official client, as people use it, against a node of fakes: over real sockets, in a thread."""

import math
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec
import openai
import pytest
import trio
from api.serving import SECRET, FakeNode, served
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessage,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
    ParsedChoice,
)

from meshnode import tools
from meshnode.api.app import App
from meshnode.errors import InternalError, LinkLost, MeshnodeError, Overloaded, WorkerFailed
from meshnode.inference import Bias, Chunk, Sampling, ToolCall
from meshnode.testing import FakeWorker

T = TypeVar("T")
ASK: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Say something."}]


async def with_client(node: FakeNode, use: Callable[[openai.OpenAI], T], *, api_key: str = "any") -> T:
    """What `use` makes of a client that does not retry; or its exception."""
    async with served(App(node, admin_secret=SECRET, hosts=frozenset())) as serving:

        def run() -> T:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key=api_key, max_retries=0) as client:
                return use(client)

        try:
            return await trio.to_thread.run_sync(run)
        except openai.APIError as error:
            failure = error
    raise failure


def node_of(worker: FakeWorker, **settings: str) -> FakeNode:
    return FakeNode({"holder": worker}, **settings)


async def test_an_unstreamed_chat() -> None:
    raw = await with_client(
        node_of(FakeWorker()), lambda client: client.chat.completions.with_raw_response.create(model="m", messages=ASK)
    )
    answer = raw.parse()

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "m"
    assert answer.choices[0].message.content == "Hello from a fake worker."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 6, 8)
    assert raw.headers["x-meshnode-node"] == "holder"
    assert raw.headers["x-meshnode-reason"] == "only-holder"
    assert raw.headers["x-request-id"].startswith("req-")
    assert int(raw.headers["openai-processing-ms"]) >= 0


async def test_a_streamed_chat_with_usage() -> None:
    chunks = await with_client(
        node_of(FakeWorker()),
        lambda client: list(
            client.chat.completions.create(model="m", messages=ASK, stream=True, stream_options={"include_usage": True})
        ),
    )
    *texts, final, usage = chunks

    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == "Hello from a fake worker."
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 6
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_a_streamed_chat_without_usage_has_no_such_field() -> None:
    chunks = await with_client(
        node_of(FakeWorker()), lambda client: list(client.chat.completions.create(model="m", messages=ASK, stream=True))
    )

    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


async def test_the_stream_helper_collects_what_the_worker_said() -> None:
    def use(client: openai.OpenAI) -> str | None:
        with client.chat.completions.stream(model="m", messages=ASK) as stream:
            return stream.get_final_completion().choices[0].message.content

    assert await with_client(node_of(FakeWorker()), use) == "Hello from a fake worker."


async def test_log_probabilities_of_an_unstreamed_chat() -> None:
    answer = await with_client(
        node_of(FakeWorker()),
        lambda client: client.chat.completions.create(model="m", messages=ASK, logprobs=True, top_logprobs=2),
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None

    assert "".join(each.token for each in choice.logprobs.content) == choice.message.content
    first = choice.logprobs.content[0]
    assert bytes(first.bytes or ()) == b"Hello"
    assert first.logprob == pytest.approx(math.log(0.5))
    assert [other.token for other in first.top_logprobs] == ["Hello", " from"]
    assert [math.exp(other.logprob) for other in first.top_logprobs] == pytest.approx([0.5, 0.25])


async def test_log_probabilities_of_a_streamed_chat_are_those_of_the_stream_helpers_whole() -> None:
    def use(client: openai.OpenAI) -> ParsedChoice[None]:
        with client.chat.completions.stream(model="m", messages=ASK, logprobs=True) as stream:
            return stream.get_final_completion().choices[0]

    choice = await with_client(node_of(FakeWorker()), use)
    assert choice.logprobs is not None

    assert "".join(each.token for each in choice.logprobs.content or ()) == choice.message.content
    assert [each.top_logprobs for each in choice.logprobs.content or ()] == [[]] * 6


async def test_without_asking_there_are_no_log_probabilities() -> None:
    node = node_of(FakeWorker())
    answer = await with_client(node, lambda client: client.chat.completions.create(model="m", messages=ASK))
    chunks = await with_client(node, lambda client: list(client.chat.completions.create(model="m", messages=ASK, stream=True)))

    assert [choice.logprobs for choice in answer.choices] == [None]
    assert {choice.logprobs for chunk in chunks for choice in chunk.choices} == {None}


async def test_the_fields_of_drawing_reach_the_worker_llama_servers_as_extra_ones() -> None:
    worker = FakeWorker()
    extra = {"min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1, "repeat_last_n": 8, "top_k": 5, "ignore_eos": True}
    await with_client(
        node_of(worker),
        lambda client: client.chat.completions.create(
            model="m",
            messages=ASK,
            seed=3,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={"7": -100},
            extra_body=extra,
        ),
    )

    assert worker.requests[0].sampling == Sampling(
        seed=3,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=8,
        top_k=5,
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=(Bias(7, -100.0),),
    )


TOOLS: list[ChatCompletionFunctionToolParam] = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


def caller() -> FakeWorker:
    return FakeWorker(
        (
            Chunk(choice=0, text="", reasoning="Hm."),
            "Let me look.",
            Chunk(choice=0, text="", tool_calls=(ToolCall(0, "call_a", "weather", '{"city":'),)),
            Chunk(choice=0, text="", tool_calls=(ToolCall(0, "", "", ' "Oslo"}'), ToolCall(1, "call_b", "now", "{}"))),
        )
    )


async def test_calls_of_tools_in_an_unstreamed_chat_and_their_results_sent_back() -> None:
    worker = caller()

    def use(client: openai.OpenAI) -> ChatCompletionMessage:
        answer = client.chat.completions.create(model="m", messages=ASK, tools=TOOLS, parallel_tool_calls=False)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        result: ChatCompletionToolMessageParam = {"role": "tool", "tool_call_id": "call_a", "content": "rain"}
        history = cast(ChatCompletionAssistantMessageParam, message.to_dict())
        client.chat.completions.create(model="m", messages=[*ASK, history, result], tools=TOOLS, tool_choice="none")
        return message

    message = await with_client(node_of(worker), use)
    first, second = worker.requests

    assert message.content == "Let me look."
    assert message.to_dict()["reasoning_content"] == "Hm."
    calls = [call for call in message.tool_calls or () if call.type == "function"]
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_a", "weather", '{"city": "Oslo"}'),
        ("call_b", "now", "{}"),
    ]
    assert msgspec.json.decode(first.tools or "") == TOOLS
    assert first.parallel_tool_calls is False
    assert second.tool_choice == '"none"'
    assert second.messages[2].tool_call_id == "call_a"
    assert [call.function.arguments for call in tools.calls(second.messages[1].tool_calls or "", "")] == [
        '{"city": "Oslo"}',
        "{}",
    ]


async def test_the_stream_helper_puts_calls_together() -> None:
    def use(client: openai.OpenAI) -> ParsedChoice[None]:
        with client.chat.completions.stream(model="m", messages=ASK) as stream:
            return stream.get_final_completion().choices[0]

    choice = await with_client(node_of(caller()), use)

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()] == [
        ("call_a", "weather", '{"city": "Oslo"}'),
        ("call_b", "now", "{}"),
    ]


async def test_a_tool_of_a_kind_that_nobody_has_is_a_bad_request_that_names_it() -> None:
    with pytest.raises(openai.BadRequestError, match="web_search") as caught:
        await with_client(
            node_of(FakeWorker()),
            lambda client: client.chat.completions.create(
                model="m", messages=ASK, extra_body={"tools": [*TOOLS, {"type": "web_search"}]}
            ),
        )

    assert caught.value.param == "tools[1].type"


async def test_too_many_alternatives_are_refused_with_the_bound() -> None:
    with pytest.raises(openai.BadRequestError, match="from 0 to 20, not 21") as caught:
        await with_client(
            node_of(FakeWorker()),
            lambda client: client.chat.completions.create(model="m", messages=ASK, logprobs=True, top_logprobs=21),
        )

    assert caught.value.param == "top_logprobs"


async def test_the_models_list_and_one_model_with_slashes_in_its_name() -> None:
    node = node_of(FakeWorker(), model="org/model:7b")
    listed, one = await with_client(node, lambda client: (list(client.models.list()), client.models.retrieve("org/model:7b")))

    assert [model.id for model in listed] == ["org/model:7b"]
    assert listed[0].object == "model"
    assert listed[0].owned_by == "meshnode"
    assert one == listed[0]
    assert one.to_dict()["meta"]["nodes"] == ["holder"]  # type: ignore[index]  # an extra field, which the client does not know


async def test_an_unknown_model_is_not_found_and_the_nearest_is_named() -> None:
    with pytest.raises(openai.NotFoundError, match="Nearest: model-seven") as asked:
        await with_client(
            node_of(FakeWorker(), model="model-seven"),
            lambda client: client.chat.completions.create(model="model-sevn", messages=ASK),
        )
    with pytest.raises(openai.NotFoundError, match="Nearest: model-seven") as retrieved:
        await with_client(node_of(FakeWorker(), model="model-seven"), lambda client: client.models.retrieve("model-sevn"))

    assert asked.value.code == retrieved.value.code == "model_not_found"
    assert asked.value.param == "model"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "headers"),
    [
        (WorkerFailed("It died."), 503, {"x-meshnode-reason": "model_unavailable", "retry-after": "5"}),
        (LinkLost("It left."), 503, {"x-meshnode-reason": "model_unavailable", "retry-after": "5"}),
        (Overloaded("Full.", retry_after=2.5), 503, {"x-meshnode-reason": "overloaded", "retry-after": "3"}),
        (Overloaded("Full.", retry_after=1e9), 503, {"x-meshnode-reason": "overloaded", "retry-after": "120"}),
        (InternalError("A bug."), 500, {"x-meshnode-reason": "internal_error", "x-should-retry": "false"}),
    ],
    ids=["worker died", "link lost", "overloaded", "overloaded for long", "a bug"],
)
async def test_a_failure_before_the_first_token_keeps_its_status(
    failure: MeshnodeError, status: int, headers: dict[str, str], *, stream: bool
) -> None:
    def use(client: openai.OpenAI) -> object:
        return client.chat.completions.create(model="m", messages=ASK, stream=stream)

    with pytest.raises(openai.InternalServerError) as caught:
        await with_client(node_of(FakeWorker(fail_after=0, failure=lambda: failure)), use)

    assert caught.value.status_code == status
    assert caught.value.code == headers["x-meshnode-reason"]
    assert headers.items() <= dict(caught.value.response.headers).items()


async def test_a_failure_in_mid_stream_raises_in_the_client_after_the_text_so_far() -> None:
    texts: list[str] = []

    def use(client: openai.OpenAI) -> None:
        for chunk in client.chat.completions.create(model="m", messages=ASK, stream=True):
            texts.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError, match="The peer went away"):
        await with_client(node_of(FakeWorker(fail_after=2, failure=lambda: LinkLost("The peer went away."))), use)

    assert "".join(texts) == "Hello from"


async def test_a_failure_in_mid_answer_of_an_unstreamed_chat_is_its_status() -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await with_client(
            node_of(FakeWorker(fail_after=2, failure=lambda: LinkLost("The peer went away."))),
            lambda client: client.chat.completions.create(model="m", messages=ASK),
        )

    assert (caught.value.status_code, caught.value.code) == (502, "link_lost")


async def test_a_wrong_parameter_is_a_bad_request_that_names_it() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await with_client(
            node_of(FakeWorker()), lambda client: client.chat.completions.create(model="m", messages=ASK, temperature=7)
        )

    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
