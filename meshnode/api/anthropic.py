"""From Anthropic's messages request to ours (pure). Shapes: Anthropic's API reference, and what its official client sends.

A turn of theirs is a list of blocks; a turn of ours is a text and, apart from it, calls of tools or the result of one. So a
user's turn with results of tools becomes several of ours. What an assistant thought in earlier turns is left out, as there.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshnode import inference, tools
from meshnode.api import body as body_of
from meshnode.api.body import ABSENT
from meshnode.api.bounds import Bounds, check_bounds
from meshnode.api.dialect import Asked
from meshnode.api.message import Identity, MessageStream, message
from meshnode.errors import InvalidRequest, RequestError, Unsupported

_MAX_MESSAGES = 16 * 1024
_MANY = 2**31 - 1
_MAX_STOPS = 64
_MAX_TOOLS = tools.MAX_TOOLS
_BOUNDS = {
    "max_tokens": Bounds(1, _MANY),
    "temperature": Bounds(0, 1),
    "top_p": Bounds(0, 1),
    "top_k": Bounds(0, _MANY),
}


class _Block(msgspec.Struct, frozen=True):
    """Of any type; which fields it has goes by the type."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = ABSENT
    tool_use_id: str | None = None
    content: "str | list[_Block] | None" = None


class _Message(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Tool(msgspec.Struct, frozen=True):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = ABSENT


class _ToolChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct, frozen=True):
    type: str
    """`enabled`, `disabled`, and the names under which newer models think as they see fit."""


class _Format(msgspec.Struct, frozen=True):
    type: Literal["json_schema"]
    schema: msgspec.Raw = ABSENT


class _OutputConfig(msgspec.Struct, frozen=True):
    format: _Format | None = None


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is made of."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=_MAX_MESSAGES)]
    system: str | list[_Block] | None = None
    tools: Annotated[list[_Tool], Meta(max_length=_MAX_TOOLS)] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    mcp_servers: msgspec.Raw = ABSENT
    container: msgspec.Raw = ABSENT


class _Body(_Counted, frozen=True, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=_MAX_STOPS)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


_BODY = msgspec.json.Decoder(_Body)
_COUNTED = msgspec.json.Decoder(_Counted)
_HONOURED = body_of.fields(_Body)


def messages_request(body: bytes, *, request_id: str) -> Asked:
    """Raises InvalidRequest or Unsupported, whose `param` names the field."""
    asked = body_of.decoded(body, _BODY)
    for name, bounds in _BOUNDS.items():
        check_bounds(name, getattr(asked, name), bounds)
    stops = tuple(stop for stop in asked.stop_sequences or () if stop)
    sampling = inference.Sampling(
        max_tokens=asked.max_tokens, temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, stop=stops
    )
    identity = Identity(id=f"msg_{request_id}", request_id=request_id, stops=stops)
    return Asked(
        requests=(_request(asked, request_id, sampling),),
        stream=MessageStream(identity) if asked.stream else None,
        whole=partial(message, identity=identity),
        ignored=body_of.ignored(body, _HONOURED),
    )


def count_request(body: bytes, *, request_id: str) -> inference.Request:
    """As `messages_request`, for a prompt that is only counted."""
    return _request(body_of.decoded(body, _COUNTED), request_id, inference.Sampling(max_tokens=0))


def _request(asked: _Counted, request_id: str, sampling: inference.Sampling) -> inference.Request:
    _refuse(asked)
    choice = asked.tool_choice
    offered = _tools(asked.tools or ())
    messages = (*_system(asked.system), *_messages(asked.messages))
    if len(messages) > _MAX_MESSAGES:
        message = f"`messages` holds {len(messages)} texts and results; at most {_MAX_MESSAGES} are allowed."
        raise InvalidRequest(message, param="messages")
    return inference.Request(
        id=request_id,
        model=asked.model,
        messages=messages,
        sampling=sampling,
        tools=offered,
        tool_choice=_tool_choice(choice, offered),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        thinking=None if asked.thinking is None else asked.thinking.type != "disabled",
        response_format=_response_format(asked.output_config),
    )


def _refuse(asked: _Counted) -> None:
    if body_of.says_something(asked.mcp_servers):
        raise Unsupported("`mcp_servers` is not supported.", hint="Call their tools yourself.", param="mcp_servers")
    if body_of.says_something(asked.container):
        raise Unsupported("`container` is not supported: no code is run here.", param="container")
    if asked.messages[-1].role == "assistant":
        raise Unsupported(
            "Prefilling the answer is not supported: the last of `messages` is the assistant's.",
            hint="End with a user's message.",
            param="messages",
        )


def _system(content: str | list[_Block] | None) -> Iterator[inference.Message]:
    if text := _text(content or "", "system"):
        yield inference.Message(role="system", content=text)


def _messages(turns: Sequence[_Message]) -> Iterator[inference.Message]:
    for index, turn in enumerate(turns):
        place = f"messages[{index}].content"
        if turn.role == "assistant":
            yield _assistant(turn.content, place)
        elif isinstance(turn.content, str):
            yield inference.Message(role=turn.role, content=turn.content)
        else:
            yield from _user(turn.role, turn.content, place)


def _user(role: str, blocks: Sequence[_Block], place: str) -> Iterator[inference.Message]:
    """Results of tools are turns of their own, in their places."""
    texts: list[_Block] = []
    for index, block in enumerate(blocks):
        if block.type != "tool_result":
            texts.append(block)
            continue
        if texts:
            yield inference.Message(role=role, content=_text(texts, place))
            texts = []
        at = f"{place}[{index}]"
        if not block.tool_use_id:
            raise InvalidRequest(f"`{at}.tool_use_id` is missing.", param=f"{at}.tool_use_id")
        result = _text(block.content or "", f"{at}.content")
        yield inference.Message(role="tool", content=result, tool_call_id=block.tool_use_id)
    if texts or not blocks:
        yield inference.Message(role=role, content=_text(texts, place))


def _assistant(content: str | list[_Block], place: str) -> inference.Message:
    if isinstance(content, str):
        return inference.Message(role="assistant", content=content)
    texts = [block for block in content if block.type not in ("tool_use", "thinking", "redacted_thinking")]
    calls = tuple(_call(block, f"{place}[{index}]") for index, block in enumerate(content) if block.type == "tool_use")
    if len(calls) > inference.MAX_TOOL_CALLS:
        message = f"`{place}` holds {len(calls)} calls; at most {inference.MAX_TOOL_CALLS} are allowed."
        raise InvalidRequest(message, param=place)
    return inference.Message(role="assistant", content=_text(texts, place), tool_calls=tools.calls_text(calls) if calls else None)


def _call(block: _Block, place: str) -> tools.Call:
    for name in ("id", "name"):
        if not getattr(block, name):
            raise InvalidRequest(f"`{place}.{name}` is missing.", param=f"{place}.{name}")
    arguments = body_of.json_text(block.input, dict[str, object] | None, f"{place}.input") or "{}"
    return tools.Call(id=block.id or "", function=tools.Called(name=block.name or "", arguments=arguments))


def _text(content: str | Sequence[_Block], place: str) -> str:
    """Blocks of text are joined by a line break, as those of OpenAI's are."""
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        if block.type != "text":
            raise Unsupported(
                f"Content of type `{block.type[:64]}` is not supported.", hint="Send text.", param=f"{place}[{index}].type"
            )
        if block.text is None:
            raise InvalidRequest(f"`{place}[{index}].text` is missing.", param=f"{place}[{index}].text")
    return "\n".join(block.text or "" for block in content)


def _tools(offered: Sequence[_Tool]) -> str | None:
    """As OpenAI writes them, once they are known to be right."""
    if not offered:
        return None
    text = msgspec.json.encode([_function(tool, f"tools[{index}]") for index, tool in enumerate(offered)]).decode()
    try:
        tools.names(text)
    except RequestError as error:  # it names OpenAI's places
        raise type(error)(
            error.message.replace(".function", ""), hint=error.hint, param=(error.param or "").replace(".function", "")
        ) from None
    return text


def _function(tool: _Tool, place: str) -> dict[str, object]:
    if tool.type not in (None, "custom"):
        raise Unsupported(
            f"`{place}` is of type `{tool.type[:64]}`, which runs at Anthropic only.",
            hint="Offer tools of your own.",
            param=f"{place}.type",
        )
    schema = body_of.json_text(tool.input_schema, dict[str, object], f"{place}.input_schema")
    function: dict[str, object] = {"name": tool.name, "parameters": msgspec.Raw((schema or "{}").encode())}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(choice: _ToolChoice | None, offered: str | None) -> str | None:
    if choice is None:
        return None
    match choice.type:
        case "auto" | "none":
            text = f'"{choice.type}"'
        case "any":
            text = '"required"'
        case "tool":
            text = msgspec.json.encode({"type": "function", "function": {"name": choice.name or ""}}).decode()
    tools.requested(tools.names(offered) if offered else (), text)
    return text


def _response_format(config: _OutputConfig | None) -> inference.ResponseFormat:
    if config is None or config.format is None:
        return inference.ResponseFormat()
    place = "output_config.format.schema"
    schema = body_of.json_text(config.format.schema, dict[str, object] | None, place, limit=inference.MAX_SCHEMA)
    if schema is None:
        raise InvalidRequest(f"`{place}` is missing or empty.", param=place)
    return inference.ResponseFormat(kind="json_schema", schema=schema)
