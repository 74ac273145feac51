"""Anthropic's official client against the demo model, on the node that serves it and on one that only forwards."""

import json
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam
from processes import NodeProcess

QUESTION: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[MessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
COLD = {"temperature": 0}
"""An extra: the newest client has no such argument any more, as the newest models of its maker do not."""
TOOL: ToolParam = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def ask(client: anthropic.Anthropic, messages: list[MessageParam] = QUESTION, **options: Any) -> anthropic.types.Message:
    asked = {"model": "demo", "messages": messages, "max_tokens": 60, "extra_body": COLD, **options}
    answer: anthropic.types.Message = client.messages.create(**asked)
    return answer


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_answers_with_every_field(anthropic_client: anthropic.Anthropic) -> None:
    raw = anthropic_client.messages.with_raw_response.create(model="demo", messages=QUESTION, max_tokens=60, extra_body=COLD)
    message = raw.parse()

    assert "Paris" in text_of(message)
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    assert message.id.startswith("msg_")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 0
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 5
    assert message._request_id
    assert raw.headers["x-meshnode-node"] == "holder"


def test_a_stream_is_the_whole_answer_in_pieces(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(model="demo", messages=QUESTION, max_tokens=60, extra_body=COLD) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    whole = ask(anthropic_client)

    assert text_of(final) == text_of(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_the_raw_events_of_a_stream(anthropic_client: anthropic.Anthropic) -> None:
    events = list(anthropic_client.messages.create(model="demo", messages=STORY, max_tokens=5, extra_body=COLD, stream=True))
    first, *_, delta, _stop = events

    assert first.type == "message_start"
    assert first.message.content == []
    assert first.message.stop_reason is None
    assert delta.type == "message_delta"
    assert delta.delta.stop_reason == "max_tokens"
    assert delta.usage.output_tokens == 5


async def test_the_async_client(node: NodeProcess) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=f"http://{node.api_address}", auth_token="unused") as client,
        client.messages.stream(model="demo", messages=QUESTION, max_tokens=60, extra_body=COLD) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])

    assert "Paris" in text


def test_an_answer_is_cut_at_its_limit_and_at_a_stop_sequence(anthropic_client: anthropic.Anthropic) -> None:
    assert ask(anthropic_client, STORY, max_tokens=3).stop_reason == "max_tokens"
    stopped = ask(anthropic_client, STORY, stop_sequences=["never", " fox"])

    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " fox")
    assert " fox" not in text_of(stopped)


def test_a_stream_names_its_stop_sequence_too(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model="demo", messages=STORY, max_tokens=60, extra_body=COLD, stop_sequences=[" fox"]
    ) as stream:
        final = stream.get_final_message()

    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", " fox")


def test_tokens_are_counted_as_the_answer_counts_them(anthropic_client: anthropic.Anthropic) -> None:
    counted = anthropic_client.messages.count_tokens(model="demo", messages=STORY, system="Be brief.", tools=[TOOL])
    usage = ask(anthropic_client, STORY, system="Be brief.", tools=[TOOL], max_tokens=1).usage

    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_cached_tokens_are_told(anthropic_client: anthropic.Anthropic) -> None:
    ask(anthropic_client, STORY, max_tokens=1)
    usage = ask(anthropic_client, STORY, max_tokens=1).usage

    assert (usage.cache_read_input_tokens or 0) > 0


def test_system_and_content_as_blocks(anthropic_client: anthropic.Anthropic) -> None:
    blocks: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    messages: list[MessageParam] = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]

    assert ask(anthropic_client, messages, system=blocks).usage.output_tokens > 0


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "weather"}, {"type": "none"}])
def test_tools_are_taken_with_every_choice(anthropic_client: anthropic.Anthropic, choice: Any) -> None:
    """The demo model is too small to call well: what it makes of it is a call or text, never an error."""
    message = ask(anthropic_client, tools=[TOOL], tool_choice=choice, max_tokens=40)
    calls = [block for block in message.content if block.type == "tool_use"]

    assert message.stop_reason in {"end_turn", "max_tokens", "tool_use"}
    assert (message.stop_reason == "tool_use") == bool(calls)
    assert not (choice["type"] == "none" and calls)


def test_a_call_and_its_result_can_be_sent_back(anthropic_client: anthropic.Anthropic) -> None:
    messages: list[MessageParam] = [
        *QUESTION,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}]},
    ]

    assert ask(anthropic_client, messages, tools=[TOOL], max_tokens=5).usage.output_tokens > 0


def test_an_answer_follows_a_schema(anthropic_client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Paris", "Rome"]}},
        "required": ["name"],
        "additionalProperties": False,
    }
    message = ask(anthropic_client, output_config={"format": {"type": "json_schema", "schema": schema}})

    assert json.loads(text_of(message))["name"] in {"Paris", "Rome"}


def test_models_come_in_anthropics_shape(anthropic_client: anthropic.Anthropic) -> None:
    (model,) = list(anthropic_client.models.list())

    assert (model.id, model.type, model.display_name) == ("demo", "model", "demo")
    assert model.created_at.year >= 2024
    assert anthropic_client.models.retrieve("demo").id == "demo"


# Errors


def test_an_unknown_model_is_404(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="nonsense") as caught:
        ask(anthropic_client, model="nonsense")

    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert body["request_id"] == caught.value.request_id


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "The"}]}, "Prefilling"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "prompt is too long"),
    ],
)
def test_what_is_wrong_or_cannot_be_done_is_400_and_named(
    anthropic_client: anthropic.Anthropic, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        ask(anthropic_client, **options)

    body: Any = caught.value.body
    assert body["error"]["type"] == "invalid_request_error"
