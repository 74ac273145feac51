"""From Ollama's chat and generate requests to ours (pure). Shapes: Ollama's API reference, and what its official client sends.

Streams are what they give unless told otherwise. `keep_alive` and the options about loading (`num_ctx`, `num_gpu`, ...) do
nothing here, and are listed as ignored: a model that is big enough is not loaded anew for another `num_ctx`.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshnode import inference, tools
from meshnode.api import body as body_of
from meshnode.api.body import ABSENT
from meshnode.api.bounds import Bounds, check_bounds
from meshnode.api.dialect import Asked
from meshnode.api.lines import Form, LineStream, whole
from meshnode.api.sampling import Fields, sampling
from meshnode.errors import InvalidRequest, Unsupported

LATEST = ":latest"
_MAX_MESSAGES = 16 * 1024
_MAX_STOPS = 64
_NO_LIMIT = (-1, -2)
"""Of `num_predict`: for ever, and until the context is full; an answer cannot be longer than that here."""


class _Options(Fields, frozen=True, kw_only=True):
    stop: str | Annotated[list[str], Meta(max_length=_MAX_STOPS)] | None = None
    num_predict: int | None = None
    mirostat: int | None = None


_HONOURED_OPTIONS = body_of.fields(_Options) - {"max_tokens", "max_completion_tokens", "logit_bias"}


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: msgspec.Raw = ABSENT


class _Call(msgspec.Struct, frozen=True):
    function: _Function


class _Message(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: msgspec.Raw = ABSENT
    tool_calls: Annotated[list[_Call], Meta(max_length=inference.MAX_TOOL_CALLS)] | None = None
    tool_name: str | None = None


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    stream: bool | None = None
    format: msgspec.Raw = ABSENT
    options: msgspec.Raw = ABSENT
    think: bool | str | None = None
    keep_alive: int | float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _Chat(_Body, frozen=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(max_length=_MAX_MESSAGES)] | None = None
    tools: msgspec.Raw = ABSENT


class _Generate(_Body, frozen=True, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    images: msgspec.Raw = ABSENT


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """A request without a prompt: the client wants the model loaded or, with a `keep_alive` of 0, unloaded."""

    model: str
    form: Form
    unload: bool


_CHAT, _GENERATE = msgspec.json.Decoder(_Chat), msgspec.json.Decoder(_Generate)
_NO_BIAS = msgspec.Raw(b"null")
_OPTIONS = msgspec.json.Decoder(_Options | None)


def chat_request(body: bytes, *, request_id: str, now: str) -> Asked | Loading:
    """`now` is the time in RFC 3339. Raises InvalidRequest or Unsupported, whose `param` names the field."""
    asked = body_of.decoded(body, _CHAT)
    form = Form(model=asked.model, created_at=now, chat=True)
    if not asked.messages:
        return Loading(model=asked.model, form=form, unload=_is_zero(asked.keep_alive))
    offered = body_of.text(asked.tools, "tools")
    names = tools.names(offered) if offered is not None else ()
    messages = _messages(asked.messages)
    request = inference.Request(id=request_id, model=asked.model, messages=messages, tools=offered if names else None)
    return _asked(asked, request, form, _ignored(body, asked, body_of.fields(_Chat)))


def generate_request(body: bytes, *, request_id: str, now: str) -> Asked | Loading:
    """As `chat_request`."""
    asked = body_of.decoded(body, _GENERATE)
    _refuse(asked)
    form = Form(model=asked.model, created_at=now, chat=False)
    if not asked.prompt:
        return Loading(model=asked.model, form=form, unload=_is_zero(asked.keep_alive))
    if asked.raw:
        request = inference.Request(id=request_id, model=asked.model, messages=(), prompt=asked.prompt)
    else:
        system = (inference.Message(role="system", content=asked.system),) if asked.system else ()
        messages = (*system, inference.Message(role="user", content=asked.prompt))
        request = inference.Request(id=request_id, model=asked.model, messages=messages)
    return _asked(asked, request, form, _ignored(body, asked, body_of.fields(_Generate)))


def _asked(asked: _Body, request: inference.Request, form: Form, ignored: tuple[str, ...]) -> Asked:
    request = msgspec.structs.replace(
        request,
        sampling=_sampling(asked.options),
        thinking=_thinking(asked.think),
        response_format=_response_format(asked.format),
        logprobs=_logprobs(asked),
    )
    stream = None if asked.stream is False else LineStream(form)
    return Asked(requests=(request,), stream=stream, whole=partial(whole, form=form), ignored=ignored)


def model_named(wanted: str, known: Collection[str]) -> str:
    """Which of the `known` names `wanted` means: a name without a tag and the same with `:latest` are one."""
    bare = wanted.removesuffix(LATEST)
    return next((name for name in (wanted, bare, bare + LATEST) if name in known), bare)


def tagged(name: str) -> str:
    """As Ollama shows it."""
    return name if ":" in name else name + LATEST


def _ignored(body: bytes, asked: _Body, honoured: frozenset[str]) -> tuple[str, ...]:
    options = body_of.ignored(bytes(asked.options), _HONOURED_OPTIONS) if body_of.text(asked.options, "options") else ()
    return (*body_of.ignored(body, honoured - {"keep_alive"}), *(f"options.{name}" for name in options))


def _is_zero(keep_alive: float | str | None) -> bool:
    return keep_alive is not None and str(keep_alive).rstrip("smh") in ("0", "0.0")


def _refuse(asked: _Generate) -> None:
    given = {"suffix": bool(asked.suffix), "template": bool(asked.template), "images": body_of.says_something(asked.images)}
    for name in (name for name, is_given in given.items() if is_given):
        raise Unsupported(f"`{name}` is not supported.", hint="Leave it out.", param=name)


def _messages(messages: Sequence[_Message]) -> tuple[inference.Message, ...]:
    """Calls have no ids there, and some templates ask for them: a result belongs to the first open call of its tool.

    The ids are of nine digits, since Mistral's templates take no others.
    """
    made: list[inference.Message] = []
    waiting: list[tools.Call] = []
    count = 0
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if body_of.says_something(message.images):
            raise Unsupported(f"`{place}.images` is not supported.", hint="Send text.", param=f"{place}.images")
        calls = tuple(_call(call, count + at, place) for at, call in enumerate(message.tool_calls or ()))
        count += len(calls)
        waiting += calls
        answered = _take(waiting, message.tool_name) if message.role == "tool" else None
        turn = inference.Message(
            role=message.role,
            content=message.content or "",
            name=message.tool_name if message.role == "tool" else None,
            tool_calls=tools.calls_text(calls) if calls else None,
            tool_call_id=answered.id if answered else None,
        )
        made.append(turn)
    return tuple(made)


def _call(call: _Call, number: int, place: str) -> tools.Call:
    arguments = body_of.json_text(call.function.arguments, dict[str, object] | None, f"{place}.tool_calls")
    return tools.Call(id=f"{number:09d}", function=tools.Called(name=call.function.name, arguments=arguments or "{}"))


def _take(waiting: list[tools.Call], name: str | None) -> tools.Call | None:
    found = next((call for call in waiting if name in (None, call.function.name)), None)
    if found:
        waiting.remove(found)
    return found


def _sampling(raw: msgspec.Raw) -> inference.Sampling:
    text = body_of.text(raw, "options")
    if text is None:
        return inference.Sampling()
    try:
        options = body_of.decoded(text.encode(), _OPTIONS) or _Options()
        if options.mirostat:
            raise Unsupported("`mirostat` is not supported.", hint="Use min_p or top_p.", param="mirostat")
        limit = None if options.num_predict in _NO_LIMIT else options.num_predict
        check_bounds("num_predict", limit, Bounds(1, 2**31 - 1))
        return sampling(msgspec.structs.replace(options, max_tokens=limit, max_completion_tokens=None, logit_bias=_NO_BIAS))
    except (InvalidRequest, Unsupported) as error:
        param = f"options.{error.param}" if error.param else "options"
        message = error.message.replace(f"`{error.param}`" if error.param else "The request's body", f"`{param}`")
        raise type(error)(message, hint=error.hint, param=param) from None


def _thinking(think: bool | str | None) -> bool | None:
    """How hard to think (`low` to `high`) is not ours to say; only whether."""
    return think if think is None or isinstance(think, bool) else True


def _response_format(raw: msgspec.Raw) -> inference.ResponseFormat:
    text = body_of.text(raw, "format")
    if text in (None, '""'):
        return inference.ResponseFormat()
    if text == '"json"':
        return inference.ResponseFormat(kind="json_object")
    schema = body_of.json_text(raw, dict[str, object], "format", limit=inference.MAX_SCHEMA)
    return inference.ResponseFormat(kind="json_schema", schema=schema) if schema else inference.ResponseFormat(kind="json_object")


def _logprobs(asked: _Body) -> inference.Logprobs | None:
    check_bounds("top_logprobs", asked.top_logprobs, Bounds(0, inference.MAX_TOP_LOGPROBS))
    return inference.Logprobs(top=asked.top_logprobs or 0) if asked.logprobs else None
