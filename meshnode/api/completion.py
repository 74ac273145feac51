"""From our events to OpenAI's chat completion, whole or in chunks (pure).

A chunk of a stream differs from the last one in its text alone, and log-probabilities where they are asked for. So the rest is
encoded once per stream and a token costs the encoding of one string.
"""

import json
from collections.abc import Iterable, Sequence

import msgspec

import meshnode
from meshnode.api import logprobs
from meshnode.errors import InternalError
from meshnode.inference import Chunk, End, Event, Finish, Phase, Progress, ToolCall, Usage

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"meshnode-{meshnode.__version__}"
"""OpenAI's name for the configuration that answered."""


MAX_ANSWER = 16 * 1024 * 1024
"""Kept of an unstreamed answer, whatever a serving node sends: far beyond what any model's context holds."""
_CHUNK_COST = 64


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What every chunk of an answer repeats. `created` is in Unix seconds; `model` the name that it was served under."""

    id: str
    created: int
    model: str


class Collected:
    """A whole answer in the making: `add` its events, then ask for the `completion`."""

    def __init__(self) -> None:
        self._size = 0
        self._texts: dict[int, list[str]] = {}
        self._reasoning: dict[int, list[str]] = {}
        self._calls: dict[int, dict[int, list[ToolCall]]] = {}
        self._logprobs: dict[int, list[bytes]] = {}
        self._finishes: dict[int, Finish] = {}
        self._usage: Usage | None = None

    def add(self, batch: Iterable[Event]) -> None:
        """Raises InternalError when it grows beyond all bounds."""
        for event in batch:
            if isinstance(event, Chunk):
                entries = list(map(logprobs.entry, event.logprobs))
                self._size += len(event.text) + len(event.reasoning) + _CHUNK_COST + sum(map(len, entries))
                self._size += sum(len(piece.arguments) + _CHUNK_COST for piece in event.tool_calls)
                if self._size > MAX_ANSWER:
                    raise InternalError(
                        f"The answer is longer than {MAX_ANSWER} characters.", hint="Set max_tokens, or stream it."
                    )
                self._texts.setdefault(event.choice, []).append(event.text)
                self._reasoning.setdefault(event.choice, []).append(event.reasoning)
                for piece in event.tool_calls:
                    self._calls.setdefault(event.choice, {}).setdefault(piece.index, []).append(piece)
                self._logprobs.setdefault(event.choice, []).extend(entries)
                if event.finish is not None:
                    self._finishes[event.choice] = event.finish
            elif isinstance(event, End):
                self._usage = event.usage

    def completion(self, identity: Identity) -> bytes:
        """The object as JSON. Raises InternalError when the events did not come to their end."""
        if self._usage is None:
            raise InternalError("The answer ended without its end.")
        return msgspec.json.encode(
            {
                "id": identity.id,
                "object": "chat.completion",
                "created": identity.created,
                "model": identity.model,
                "system_fingerprint": FINGERPRINT,
                "choices": [self._choice(index) for index in sorted(self._texts)],
                "usage": usage_object(self._usage),
            }
        )

    def _choice(self, index: int) -> dict[str, object]:
        entries = self._logprobs[index]
        return {
            "index": index,
            "message": self._message(index),
            "logprobs": msgspec.Raw(logprobs.shown(entries)) if entries else None,
            "finish_reason": self._finishes.get(index, Finish.STOP),
        }

    def _message(self, index: int) -> dict[str, object]:
        """`reasoning_content` is llama.cpp's and vLLM's field; it and `tool_calls` are left out where there are none."""
        text, reasoning, calls = "".join(self._texts[index]), "".join(self._reasoning[index]), self._calls.get(index)
        message: dict[str, object] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [_call(calls[number]) for number in sorted(calls)]
        return message


def _call(pieces: Sequence[ToolCall]) -> dict[str, object]:
    name, arguments = "".join(piece.name for piece in pieces), "".join(piece.arguments for piece in pieces)
    identity = "".join(piece.id for piece in pieces)
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_delta(piece: ToolCall) -> dict[str, object]:
    """The first piece of a call says what it is."""
    if not piece.id:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


class ChunkStream:
    """The server-sent events of one streamed answer: for each choice its role, its text, its finish; then the usage if asked."""

    def __init__(self, identity: Identity, *, include_usage: bool) -> None:
        common = json.dumps(
            {
                "id": identity.id,
                "object": "chat.completion.chunk",
                "created": identity.created,
                "model": identity.model,
                "system_fingerprint": FINGERPRINT,
            },
            separators=(",", ":"),
        ).encode()
        self._head = b"data: " + common[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def encode(self, batch: Iterable[Event]) -> bytes:
        """What a batch of events adds to the stream, for one write; may be empty. After `End` that is all but `DONE`."""
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
            case End() if self._include_usage:
                yield self._head + b'],"usage":%b}\n\n' % msgspec.json.encode(usage_object(event.usage))
            case _:
                return

    def _delta(self, choice: int, delta: bytes, *, finish: bytes = b"null", likely: bytes = b"null") -> bytes:
        body = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (choice, delta, likely, finish)
        return self._head + body + self._tail


def usage_object(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def comment(progress: Progress | None) -> bytes:
    """A line that clients skip: the answer is still being worked on, and by what."""
    if progress is None:
        return b": keep-alive\n\n"
    if progress.phase is Phase.PREFILL and progress.total:
        return b": prefill %d/%d\n\n" % (progress.done, progress.total)
    return b": %b\n\n" % progress.phase.encode()
