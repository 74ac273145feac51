"""From OpenAI's chat request to ours (pure). Shapes: OpenAI's API reference, and what its official clients check.

The body is decoded straight into types, and a message of the decoder is turned into the error that names the field. Unknown
fields are ignored, as the API promises; known ones that would change the answer and that we cannot do are refused by name.
"""

from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshnode import inference, tools
from meshnode.api import body as body_of
from meshnode.api.body import ABSENT
from meshnode.api.bounds import Bounds, check_bounds
from meshnode.api.completion import ChunkStream, Identity, completion
from meshnode.api.dialect import Asked
from meshnode.api.sampling import Fields, sampling
from meshnode.errors import InvalidRequest, Unsupported

_Object = dict[str, object]

_MAX_MESSAGES = 16 * 1024
"""Holds the loop up for some 0.1 s at most. Without it the 8 MiB of a body unfold into millions of objects: seconds."""


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = ABSENT
    tool_call_id: str | None = None


ChatMessages = Annotated[list[_Message], Meta(min_length=1, max_length=_MAX_MESSAGES)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Schema(msgspec.Struct, frozen=True):
    schema: msgspec.Raw = ABSENT


class Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _TemplateArguments(msgspec.Struct, frozen=True):
    """Of llama-server's and vLLM's `chat_template_kwargs` the one that many clients send."""

    enable_thinking: bool | None = None


class _Body(Fields, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: ChatMessages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    tools: msgspec.Raw = ABSENT
    tool_choice: msgspec.Raw = ABSENT
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    grammar: str | None = None
    """llama-server's."""
    logprobs: bool | None = None
    top_logprobs: int | None = None

    reasoning_effort: str | None = None
    chat_template_kwargs: _TemplateArguments | None = None
    functions: msgspec.Raw = ABSENT
    function_call: msgspec.Raw = ABSENT
    audio: msgspec.Raw = ABSENT
    web_search_options: msgspec.Raw = ABSENT
    modalities: list[str] | None = None


_DECODER = msgspec.json.Decoder(_Body)
_NO_EFFORT = "none"
"""Of `reasoning_effort`; how hard to think otherwise is not ours to say."""
_HONOURED = body_of.fields(_Body)
_NOT_HONOURED = {
    "functions": "Use `tools`.",
    "function_call": "Use `tool_choice`.",
    "audio": "Ask for text.",
    "web_search_options": "Search yourself, and send what you found.",
}
"""What would change the answer, and what to do instead."""


def chat_request(body: bytes, *, request_id: str, created: int) -> Asked:
    """`created` is in Unix seconds. Raises InvalidRequest or Unsupported, whose `param` names the field."""
    asked = body_of.decoded(body, _DECODER)
    _refuse(asked)
    offered, choice = _tools(asked)
    check_bounds("n", asked.n, Bounds(1, inference.MAX_CHOICES))
    request = inference.Request(
        id=request_id,
        model=asked.model,
        messages=chat_messages(asked.messages),
        sampling=sampling(asked),
        n=asked.n or 1,
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        thinking=_thinking(asked),
        response_format=response_format(asked.response_format, asked.grammar),
        logprobs=_logprobs(asked),
    )
    identity = Identity(id=f"chatcmpl-{request_id}", created=created)
    return Asked(
        requests=(request,),
        stream=ChunkStream(identity, include_usage=wants_usage(asked.stream_options)) if asked.stream else None,
        whole=partial(completion, identity=identity),
        ignored=body_of.ignored(body, _HONOURED - ({"reasoning_effort"} if asked.reasoning_effort != _NO_EFFORT else set())),
    )


def _thinking(asked: _Body) -> bool | None:
    if asked.chat_template_kwargs is not None and asked.chat_template_kwargs.enable_thinking is not None:
        return asked.chat_template_kwargs.enable_thinking
    return False if asked.reasoning_effort == _NO_EFFORT else None


def _refuse(asked: _Body) -> None:
    for name, hint in _NOT_HONOURED.items():
        if body_of.says_something(getattr(asked, name)):
            raise Unsupported(f"`{name}` is not supported.", hint=hint, param=name)
    if asked.modalities and asked.modalities != ["text"]:
        raise Unsupported("`modalities` other than text are not supported.", hint="Ask for text.", param="modalities")


def wants_usage(options: StreamOptions | None) -> bool:
    return options is not None and bool(options.include_usage)


def chat_messages(messages: ChatMessages) -> tuple[inference.Message, ...]:
    """Raises InvalidRequest or Unsupported, whose `param` names the place."""
    return tuple(_message(each, f"messages[{index}]") for index, each in enumerate(messages))


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
        if part.type not in ("text", "refusal"):
            raise Unsupported(
                f"Content of type `{part.type[:64]}` is not supported.", hint="Send text.", param=f"{place}[{index}].type"
            )
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise InvalidRequest(f"`{place}[{index}].{part.type}` is missing.", param=f"{place}[{index}].{part.type}")
        texts.append(text)
    return "\n".join(texts)


def _calls(raw: msgspec.Raw, place: str) -> str | None:
    text = body_of.text(raw, place)
    made = tools.calls(text, place) if text is not None else ()
    return tools.calls_text(made) if made else None


def _tools(asked: _Body) -> tuple[str | None, str | None]:
    """The texts of `tools` and `tool_choice`, once they are known to be right."""
    offered, choice = body_of.text(asked.tools, "tools"), body_of.text(asked.tool_choice, "tool_choice")
    names = tools.names(offered) if offered is not None else ()
    tools.requested(names, choice)
    return offered if names else None, choice


def response_format(asked: Format | None, grammar: str | None) -> inference.ResponseFormat:
    if grammar:
        return _grammar(grammar, asked)
    if asked is None:
        return inference.ResponseFormat()
    place = "response_format.json_schema.schema"
    schema = None
    if asked.type == "json_schema" and asked.json_schema:
        schema = body_of.json_text(asked.json_schema.schema, _Object | None, place, limit=inference.MAX_SCHEMA)
    if asked.type == "json_schema" and schema is None:
        raise InvalidRequest(f"`{place}` is missing or empty.", hint="For any object, ask for `json_object`.", param=place)
    return inference.ResponseFormat(kind=asked.type, schema=schema)


def _grammar(grammar: str, asked: Format | None) -> inference.ResponseFormat:
    if asked is not None and asked.type != "text":
        raise InvalidRequest("An answer follows either `grammar` or `response_format`, not both.", param="grammar")
    if len(grammar.encode()) > inference.MAX_SCHEMA:
        raise InvalidRequest(f"`grammar` is larger than {inference.MAX_SCHEMA} bytes.", param="grammar")
    return inference.ResponseFormat(kind="grammar", schema=grammar)


def _logprobs(asked: _Body) -> inference.Logprobs | None:
    if not asked.logprobs:
        if asked.top_logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        return None
    check_bounds("top_logprobs", asked.top_logprobs, Bounds(0, inference.MAX_TOP_LOGPROBS))
    return inference.Logprobs(top=asked.top_logprobs or 0)
