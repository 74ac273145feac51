"""From our request to OpenAI's, and from its stream of chunks to our events (pure). The mirror of `api/openai.py`.

Only what the caller asked for is sent: other servers refuse fields that they do not know. A stream is always asked for. It is
complete with `[DONE]`, or where every choice has had its `finish_reason`; whatever else a connection ends with is a failure,
since proxies end a stream in order when the server behind them has died.
"""

from collections.abc import Mapping, Sequence

import msgspec

from meshnode import inference
from meshnode.bridges import sse
from meshnode.errors import RemoteFailed, Unsupported
from meshnode.inference import (
    LOWEST_LOGPROB,
    MAX_ARGUMENTS_PIECE,
    MAX_TOKEN_TEXT,
    MAX_TOOL_CALLS,
    MAX_TOOL_NAME,
    MAX_TOP_LOGPROBS,
    Alternative,
    Chunk,
    End,
    Event,
    Finish,
    Request,
    TokenLogprob,
    ToolCall,
    Usage,
)

DONE = b"[DONE]"
_FINISHES = {"length": Finish.LENGTH, "content_filter": Finish.CONTENT_FILTER, "tool_calls": Finish.TOOL_CALLS}
"""Everything else, as `eos` or the old `function_call`, says that the model stopped by itself."""
_MAX_ID = 128


def body(request: Request, model: str) -> bytes:
    """The JSON of a chat completion by the remote's `model`. Raises Unsupported for what no such server takes."""
    _refuse_beyond_chat(request)
    asked: dict[str, object] = {
        "model": model,
        "messages": list(map(_message, request.messages)),
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling),
        **_tools(request),
        **_format(request.response_format),
    }
    if request.n > 1:
        asked["n"] = request.n
    if request.thinking is not None:
        asked["chat_template_kwargs"] = {"enable_thinking": request.thinking}  # llama-server's and vLLM's
    if request.logprobs is not None:
        asked |= {"logprobs": True, "top_logprobs": request.logprobs.top}
    return msgspec.json.encode(asked)


def _refuse_beyond_chat(request: Request) -> None:
    if request.resume is not None:
        raise Unsupported("A remote service cannot go on with another node's answer.", param="resume")
    if request.inputs is not None:
        raise Unsupported("Remote services give no embeddings here yet.", hint="Ask a model of the mesh.", param="input")
    if request.prompt is not None:
        raise Unsupported("Models of remote services take chats, and no bare prompt.", hint="Send messages.", param="prompt")
    if request.sampling.max_tokens == 0:
        raise Unsupported("A remote service does not count the tokens of a prompt.", param="model")
    if request.response_format.kind == "grammar":
        raise Unsupported("A remote service takes no grammar.", hint="Send a JSON schema.", param="response_format.type")


def _message(message: inference.Message) -> dict[str, object]:
    shown: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name is not None:
        shown["name"] = message.name
    if message.tool_calls is not None:
        shown["tool_calls"] = _raw(message.tool_calls)
        shown["content"] = message.content or None
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _sampling(sampling: inference.Sampling) -> dict[str, object]:
    """The fields that differ from their defaults; their names are OpenAI's and llama-server's already."""
    asked: dict[str, object] = msgspec.structs.asdict(sampling)
    given = {name: value for name, value in asked.items() if value is not None and value != () and value is not False}
    if sampling.logit_bias:
        given["logit_bias"] = {str(each.token): each.bias for each in sampling.logit_bias}
    return given


def _tools(request: Request) -> dict[str, object]:
    if request.tools is None:
        return {}
    asked: dict[str, object] = {"tools": _raw(request.tools)}
    if request.tool_choice is not None:
        asked["tool_choice"] = _raw(request.tool_choice)
    if not request.parallel_tool_calls:
        asked["parallel_tool_calls"] = False
    return asked


def _format(wanted: inference.ResponseFormat) -> dict[str, object]:
    if wanted.kind == "text":
        return {}
    shown: dict[str, object] = {"type": wanted.kind}
    if wanted.schema is not None:
        shown["json_schema"] = {"name": "answer", "schema": _raw(wanted.schema)}
    return {"response_format": shown}


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    """llama-server's and DeepSeek's name; vLLM's and Ollama's is the next."""
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Token(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["_Token"] | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    """In the place of `delta` where the server does not stream."""
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_DECODER = msgspec.json.Decoder(_Chunk)


class Reading:
    """One streamed answer being read: `take` its bytes, and `end` when there are no more. Both raise RemoteFailed.

    `name` is the remote's, for people. `complete` once `End` was given out.
    """

    def __init__(self, name: str, *, choices: int = 1) -> None:
        self.complete = False
        self._name = name
        self._choices = choices
        self._lines = sse.Lines()
        self._open: set[int] = set()
        self._finished: set[int] = set()
        self._calls: dict[tuple[int, int], str] = {}
        self._usage: Usage | None = None
        self._pieces = 0

    def take(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        try:
            for event in self._lines.take(data):
                events += self._event(event)
        except sse.TooLong:
            raise RemoteFailed(f"{self._name} sent an event of more than {sse.MAX_EVENT} bytes.") from None
        return events

    def whole(self, data: bytes) -> list[Event]:
        """The answer of a server that does not stream."""
        return [*self._event(data), *self.end()]

    def end(self) -> list[Event]:
        events = self._event(self._lines.rest())
        if self.complete:
            return events
        if self._finished and not self._open:
            return [*events, *self._end()]
        raise RemoteFailed(f"{self._name} ended its answer in the middle.", hint="What it runs the model on may have died.")

    def _event(self, data: bytes) -> list[Event]:
        if not data or self.complete:
            return []
        if data.strip() == DONE:
            return self._end()
        try:
            chunk = _DECODER.decode(data)
        except (ValueError, RecursionError) as error:
            raise RemoteFailed(f"{self._name} sent what is no chunk of a chat completion: {error}.") from None
        if bytes(chunk.error) != b"null":
            raise RemoteFailed(f"{self._name}: {error_text(data) or 'it failed in the middle of its answer'}")
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        return [event for choice in chunk.choices or () for event in self._choice(choice)]

    def _choice(self, choice: _Choice) -> Sequence[Event]:
        if not 0 <= choice.index < self._choices:
            raise RemoteFailed(f"{self._name} sent choice {choice.index}, and {self._choices} were asked for.")
        if choice.index in self._finished:
            return ()
        self._open.add(choice.index)
        delta = choice.delta or choice.message or _Delta()
        made = Chunk(
            choice=choice.index,
            text=delta.content or "",
            reasoning=delta.reasoning_content or delta.reasoning or "",
            tool_calls=tuple(piece for call in delta.tool_calls or () for piece in self._call(choice.index, call)),
            logprobs=_logprobs(choice.logprobs),
            finish=self._finish(choice) if choice.finish_reason else None,
        )
        self._pieces += bool(made.text or made.reasoning or made.tool_calls)
        return () if made == Chunk(choice=choice.index, text="") else (made,)

    def _finish(self, choice: _Choice) -> Finish:
        self._open.discard(choice.index)
        self._finished.add(choice.index)
        called = any(index == choice.index for index, _ in self._calls)
        return _FINISHES.get(choice.finish_reason or "", Finish.TOOL_CALLS if called else Finish.STOP)

    def _call(self, choice: int, call: _Call) -> list[ToolCall]:
        """Some servers number no calls: then a new id or name begins a new one."""
        known = [index for each, index in self._calls if each == choice]
        function = call.function or _Function()
        begins = bool(call.id and call.id not in (self._calls[choice, index] for index in known)) or not known
        index = call.index if call.index is not None else len(known) if begins else known[-1]
        if not 0 <= index < MAX_TOOL_CALLS:
            raise RemoteFailed(f"{self._name} sent call {index} of a tool; at most {MAX_TOOL_CALLS} are allowed.")
        arguments = function.arguments or ""
        pieces = [arguments[at : at + MAX_ARGUMENTS_PIECE] for at in range(0, len(arguments), MAX_ARGUMENTS_PIECE)] or [""]
        if (choice, index) in self._calls:
            return [ToolCall(index, "", "", piece) for piece in pieces]
        identity = (call.id or f"call_{choice}_{index}")[:_MAX_ID]
        self._calls[choice, index] = identity
        first = ToolCall(index, identity, (function.name or "")[:MAX_TOOL_NAME], pieces[0])
        return [first, *(ToolCall(index, "", "", piece) for piece in pieces[1:])]

    def _end(self) -> list[Event]:
        """Choices that said nothing, or not why they ended, ended by themselves. Without a count, pieces stand for tokens."""
        self.complete = True
        missing = sorted(self._open | ({0} if not self._finished else set()))
        usage = self._usage or Usage(prompt_tokens=0, completion_tokens=self._pieces)
        return [*(Chunk(choice=index, text="", finish=Finish.STOP) for index in missing), End(usage=usage)]


def _usage(usage: _Usage) -> Usage:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    counts = (usage.prompt_tokens, usage.completion_tokens, cached or 0)
    prompt, completion, cached = (min(max(count, 0), 2**53) for count in counts)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def _logprobs(said: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    """Remotes tell the texts of tokens and not their numbers, so 0 stands for each."""
    return tuple(
        TokenLogprob(
            token=0,
            text=_token_text(token),
            logprob=_logprob(token),
            top=tuple(Alternative(0, _token_text(top), _logprob(top)) for top in (token.top_logprobs or ())[:MAX_TOP_LOGPROBS]),
        )
        for token in (said.content if said else None) or ()
    )


def _token_text(token: _Token) -> bytes:
    said = token.bytes
    exact = bytes(said) if said is not None and all(0 <= byte < 256 for byte in said) else token.token.encode()
    return exact[:MAX_TOKEN_TEXT]


def _logprob(token: _Token) -> float:
    return min(max(token.logprob, LOWEST_LOGPROB), 0.0)


def error_text(answer: bytes) -> str:
    """What a body of an error says, in the forms that are in use: OpenAI's, FastAPI's, Backend.AI's; empty for a web page."""
    try:
        said = msgspec.json.decode(answer, type=dict[str, object])
    except (ValueError, RecursionError):
        return ""
    error = said.get("error", said.get("detail", said))
    if isinstance(error, str):
        return error
    if isinstance(error, list):
        return "; ".join(str(each.get("msg", "")) for each in error if isinstance(each, dict))
    if not isinstance(error, Mapping):
        return ""
    parts = (error.get("message"), error.get("title"), error.get("msg"))
    return ": ".join(dict.fromkeys(part.rstrip(". ") for part in parts if isinstance(part, str) and part))


def error_field(answer: bytes, field: str) -> str | None:
    """`code` or `param` of OpenAI's error object, if they are there and text."""
    try:
        said = msgspec.json.decode(answer, type=dict[str, object])
    except (ValueError, RecursionError):
        return None
    error = said.get("error")
    found = error.get(field) if isinstance(error, dict) else None
    return found if isinstance(found, str) else None
