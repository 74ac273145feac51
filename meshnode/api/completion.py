"""From our events to OpenAI's chat completion, whole or in chunks (pure).

A chunk of a stream differs from the last one in its text alone, and log-probabilities where they are asked for. So the rest is
encoded once per stream and a token costs the encoding of one string.
"""

import json
from collections.abc import Iterable

import msgspec

import meshnode
from meshnode.api import dialect, logprobs
from meshnode.api.collected import Choice, Collected
from meshnode.api.openai_error import error_object
from meshnode.errors import MeshnodeError
from meshnode.inference import Chunk, End, Event, Progress, ToolCall, Usage

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"meshnode-{meshnode.__version__}"
"""OpenAI's name for the configuration that answered."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What every chunk of an answer repeats. `created` is in Unix seconds."""

    id: str
    created: int


def completion(collected: Collected, model: str, *, identity: Identity) -> bytes:
    """The whole answer as JSON. Raises InternalError when the events did not come to their end."""
    return msgspec.json.encode(
        {
            "id": identity.id,
            "object": "chat.completion",
            "created": identity.created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "choices": [_choice(choice) for choice in collected.choices],
            "usage": usage_object(collected.end.usage),
        }
    )


def _choice(choice: Choice) -> dict[str, object]:
    shown = logprobs.shown(map(logprobs.entry, choice.logprobs)) if choice.logprobs else None
    return {
        "index": choice.index,
        "message": _message(choice),
        "logprobs": msgspec.Raw(shown) if shown else None,
        "finish_reason": choice.finish,
    }


def _message(choice: Choice) -> dict[str, object]:
    """`reasoning_content` is llama.cpp's and vLLM's field; it and `tool_calls` are left out where there are none."""
    text, reasoning, calls = choice.text, choice.reasoning, choice.calls
    message: dict[str, object] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _call(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_delta(piece: ToolCall) -> dict[str, object]:
    """The first piece of a call says what it is."""
    if not piece.id:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


class ChunkStream:
    """The server-sent events of one streamed answer: for each choice its role, its text, its finish; then the usage if asked."""

    media_type = dialect.EVENTS

    def __init__(self, identity: Identity, *, include_usage: bool) -> None:
        self._identity = identity
        self._head = b""
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def begin(self, model: str) -> None:
        self._head = head("chat.completion.chunk", self._identity, model)

    def waiting(self, progress: Progress | None) -> bytes:
        return dialect.comment(progress)

    def failed(self, error: MeshnodeError) -> bytes:
        """No `DONE` follows it."""
        return b"data: %b\n\n" % error_object(error)

    def encode(self, batch: Iterable[Event]) -> bytes:
        return b"".join(piece for event in batch for piece in self._pieces(event))

    def _pieces(self, event: Event) -> Iterable[bytes]:
        match event:
            case Chunk():
                if event.choice not in self._begun:
                    self._begun.add(event.choice)
                    yield self._delta(event.choice, b'{"role":"assistant","content":"","refusal":null}')
                if event.reasoning:
                    yield self._delta(event.choice, b'{"reasoning_content":%b}' % msgspec.json.encode(event.reasoning))
                if event.text or event.logprobs:
                    delta = b'{"content":%b}' % msgspec.json.encode(event.text)
                    likely = logprobs.shown(map(logprobs.entry, event.logprobs)) if event.logprobs else b"null"
                    yield self._delta(event.choice, delta, likely=likely)
                if event.tool_calls:
                    calls = [_call_delta(piece) for piece in event.tool_calls]
                    yield self._delta(event.choice, b'{"tool_calls":%b}' % msgspec.json.encode(calls))
                if event.finish is not None:
                    yield self._delta(event.choice, b"{}", finish=b'"%b"' % event.finish.encode())
            case End():
                if self._include_usage:
                    yield self._head + b'],"usage":%b}\n\n' % msgspec.json.encode(usage_object(event.usage))
                yield DONE
            case _:
                return

    def _delta(self, choice: int, delta: bytes, *, finish: bytes = b"null", likely: bytes = b"null") -> bytes:
        body = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (choice, delta, likely, finish)
        return self._head + body + self._tail


def head(kind: str, identity: Identity, model: str) -> bytes:
    """How every event of a stream begins."""
    common = {
        "id": identity.id,
        "object": kind,
        "created": identity.created,
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }
    return b"data: " + json.dumps(common, separators=(",", ":")).encode()[:-1] + b',"choices":['


def usage_object(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
