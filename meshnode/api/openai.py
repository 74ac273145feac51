"""From OpenAI's chat request to ours (pure). Shapes: OpenAI's API reference, and what its official clients check.

The body is decoded straight into types, and a message of the decoder is turned into the error that names the field. Unknown
fields are ignored, as the API promises; known ones that would change the answer and that we cannot do are refused by name.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshnode import inference, tools
from meshnode.api.bounds import Bounds, check_bounds
from meshnode.api.sampling import Fields, sampling
from meshnode.errors import InvalidRequest, MeshnodeError, Unsupported
from meshnode.names import printable

_Object = dict[str, object]
_ABSENT = msgspec.Raw()

_MAX_MESSAGES = 16 * 1024
_MAX_JSON_TEXT = 1024 * 1024
"""Both hold the loop up for some 0.1 s at most. Without them the 8 MiB of a body unfold into millions of objects: seconds."""


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Message(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = _ABSENT
    tool_call_id: str | None = None


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Schema(msgspec.Struct, frozen=True):
    schema: msgspec.Raw = _ABSENT


class _Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _Body(Fields, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=_MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: msgspec.Raw = _ABSENT
    tool_choice: msgspec.Raw = _ABSENT
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and in which form the answer shall come."""

    request: inference.Request
    stream: bool
    include_usage: bool


def chat_request(body: bytes, *, request_id: str) -> ChatRequest:
    """Raises InvalidRequest or Unsupported, whose `param` names the field."""
    asked = _decode(body)
    offered, choice = _tools(asked)
    request = inference.Request(
        id=request_id,
        model=asked.model,
        messages=tuple(_message(each, f"messages[{index}]") for index, each in enumerate(asked.messages)),
        sampling=sampling(asked),
        n=asked.n or 1,
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        response_format=_response_format(asked.response_format),
        logprobs=_logprobs(asked),
    )
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    return ChatRequest(request=request, stream=bool(asked.stream), include_usage=usage)


def error_object(error: MeshnodeError) -> bytes:
    """OpenAI's error object, the hint in its message."""
    return msgspec.json.encode({"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}})


_DECODER = msgspec.json.Decoder(_Body)
_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_FIELD = re.compile(r"required field `(\w+)`")


def _decode(body: bytes) -> _Body:
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(f"The request's body is not valid JSON ({reason}).") from None


def _named(reason: str) -> InvalidRequest:
    """The decoder says `Expected ... - at `$.field[...]``, where an index is only dots; a missing field stands in the words."""
    at = _AT.search(reason)
    place = at[1].replace("[...]", "") if at else ""
    if missing := _FIELD.search(reason):
        place = f"{place}.{missing[1]}".lstrip(".")
    words = printable(reason[: at.start()] if at else reason)
    if not place:
        return InvalidRequest(f"The request's body is wrong: {words}.")
    return InvalidRequest(f"`{place}` is wrong: {words}.", param=place)


def _message(message: _Message, place: str) -> inference.Message:
    calls = _calls(message.tool_calls, f"{place}.tool_calls")
    if calls and message.role != "assistant":
        raise InvalidRequest(f"`{place}.tool_calls` is for an assistant's messages.", param=f"{place}.tool_calls")
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequest(f"`{place}.tool_call_id` is missing.", param=f"{place}.tool_call_id")
    if message.content is None and not (message.role == "assistant" and calls):
        raise InvalidRequest(
            f"`{place}.content` is missing.", hint="Only an assistant's tool calls go without.", param=f"{place}.content"
        )
    return inference.Message(
        role=message.role,
        content=_content(message.content, f"{place}.content"),
        name=message.name,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
    )


def _content(content: str | list[_Part] | None, place: str) -> str:
    """Parts are joined by a line break, as llama.cpp and vLLM do for templates that take text alone."""
    if not isinstance(content, list):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        if part.type != "text":
            raise Unsupported(
                f"Content of type `{part.type[:64]}` is not supported.", hint="Send text.", param=f"{place}[{index}].type"
            )
        if part.text is None:
            raise InvalidRequest(f"`{place}[{index}].text` is missing.", param=f"{place}[{index}].text")
        texts.append(part.text)
    return "\n".join(texts)


def _calls(raw: msgspec.Raw, place: str) -> str | None:
    text = _text(raw, place)
    made = tools.calls(text, place) if text is not None else ()
    return tools.calls_text(made) if made else None


def _tools(asked: _Body) -> tuple[str | None, str | None]:
    """The texts of `tools` and `tool_choice`, once they are known to be right."""
    offered, choice = _text(asked.tools, "tools"), _text(asked.tool_choice, "tool_choice")
    names = tools.names(offered) if offered is not None else ()
    tools.requested(names, choice)
    return offered if names else None, choice


def _text(raw: msgspec.Raw, place: str) -> str | None:
    """JSON text as it came, for the worker to read; None when it says nothing."""
    if len(bytes(raw)) > _MAX_JSON_TEXT:
        raise InvalidRequest(f"`{place}` is larger than {_MAX_JSON_TEXT} bytes.", param=place)
    try:
        text = bytes(raw).decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"`{place}` is not UTF-8.", param=place) from None
    return None if text in ("", "null") else text


def _json_text(raw: msgspec.Raw, kind: object, place: str) -> str | None:
    """As `_text`, of this kind.

    The decoder passes over raw JSON without a look at its strings, so it is decoded here once, to be sure that the worker can.
    """
    text = _text(raw, place)
    if text is None:
        return None
    try:
        value = msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`{place}` is wrong: {printable(str(error))}.", param=place) from None
    return text if value else None


def _response_format(asked: _Format | None) -> inference.ResponseFormat:
    if asked is None:
        return inference.ResponseFormat()
    place = "response_format.json_schema.schema"
    schema = _json_text(asked.json_schema.schema, _Object | None, place) if asked.json_schema else None
    if asked.type == "json_schema" and schema is None:
        raise InvalidRequest(f"`{place}` is missing.", param=place)
    return inference.ResponseFormat(kind=asked.type, schema=schema)


def _logprobs(asked: _Body) -> inference.Logprobs | None:
    if not asked.logprobs:
        if asked.top_logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        return None
    check_bounds("top_logprobs", asked.top_logprobs, Bounds(0, inference.MAX_TOP_LOGPROBS))
    return inference.Logprobs(top=asked.top_logprobs or 0)
