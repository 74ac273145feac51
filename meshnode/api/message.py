"""From our events to Anthropic's message, whole or as a stream of its blocks (pure).

    message_start, then for each block of thoughts, text or one call: content_block_start, -delta..., -stop,
    then message_delta with the reason of the end and the usage, and message_stop

Every event has its name in an `event:` line: without one the official client passes it over.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

import msgspec

from meshnode.api import dialect
from meshnode.api.anthropic_error import error_object
from meshnode.api.collected import Collected
from meshnode.errors import MeshnodeError
from meshnode.inference import Chunk, End, Event, Finish, Progress, ToolCall, Usage

_REASONS = {
    Finish.STOP: "end_turn",
    Finish.LENGTH: "max_tokens",
    Finish.TOOL_CALLS: "tool_use",
    Finish.CONTENT_FILTER: "refusal",
}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    request_id: str
    stops: tuple[str, ...]
    """What the client wants the answer to stop at."""


def message(collected: Collected, model: str, *, identity: Identity) -> bytes:
    """The whole answer as JSON. Raises InternalError when the events did not come to their end."""
    usage = _usage(collected.end.usage)
    content: list[dict[str, object]] = []
    ending = _ending(Finish.STOP, None, identity.stops)
    for choice in collected.choices[:1]:
        if reasoning := choice.reasoning:
            content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
        if text := choice.text:
            content.append({"type": "text", "text": text})
        content += [{"type": "tool_use", "id": each.id, "name": each.name, "input": arguments_of(each)} for each in choice.calls]
        ending = _ending(choice.finish, choice.stop, identity.stops)
    return msgspec.json.encode({**_head(identity, model), "content": content, **ending, "usage": usage})


def _head(identity: Identity, model: str) -> dict[str, object]:
    return {"id": identity.id, "type": "message", "role": "assistant", "model": model}


def _ending(finish: Finish, stop: int | None, stops: tuple[str, ...]) -> dict[str, object]:
    """An index beyond the client's own stops is one of the server's."""
    if finish is Finish.STOP and stop is not None and stop < len(stops):
        return {"stop_reason": "stop_sequence", "stop_sequence": stops[stop]}
    return {"stop_reason": _REASONS[finish], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    """Their `input_tokens` are those that were not cached."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def arguments_of(call: ToolCall) -> object:
    """The arguments as the object that they nearly always are; else what the model wrote, under a name."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.arguments
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


class _Block(StrEnum):
    THINKING = "thinking"
    TEXT = "text"
    TOOL_USE = "tool_use"


_STARTS: Mapping[_Block, Mapping[str, object]] = {
    _Block.THINKING: {"type": "thinking", "thinking": "", "signature": ""},
    _Block.TEXT: {"type": "text", "text": ""},
}


class MessageStream:
    """The server-sent events of one streamed answer."""

    media_type = dialect.EVENTS

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._model = ""
        self._started = False
        self._prompt = 0
        """Tokens, as far as progress has told."""
        self._index = -1
        self._open: _Block | None = None
        self._ending = _ending(Finish.STOP, None, ())

    def begin(self, model: str) -> None:
        self._model = model

    def waiting(self, progress: Progress | None) -> bytes:
        """Before the message has started its client takes no event, not even a ping."""
        return _PING if self._started else dialect.comment(progress)

    def failed(self, error: MeshnodeError) -> bytes:
        return b"event: error\ndata: %b\n\n" % error_object(error, self._identity.request_id)

    def encode(self, batch: Iterable[Event]) -> bytes:
        return b"".join(piece for event in batch for piece in self._pieces(event))

    def _pieces(self, event: Event) -> Iterator[bytes]:
        match event:
            case Progress():
                self._prompt = max(self._prompt, event.total)
            case Chunk():
                yield from self._start()
                if event.choice == 0:
                    yield from self._chunk(event)
            case End():
                yield from self._start()
                yield from self._stop()
                yield _event("message_delta", {"delta": self._ending, "usage": _usage(event.usage)})
                yield _event("message_stop", {})

    def _start(self) -> Iterator[bytes]:
        """What is known of the usage now; the last event tells all of it."""
        if self._started:
            return
        self._started = True
        usage = _usage(Usage(prompt_tokens=self._prompt, completion_tokens=0))
        head = {**_head(self._identity, self._model), "content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", {"message": {**head, "usage": usage}})

    def _chunk(self, chunk: Chunk) -> Iterator[bytes]:
        if chunk.reasoning:
            yield from self._go_on(_Block.THINKING)
            yield self._delta(b'{"type":"thinking_delta","thinking":%b}', chunk.reasoning)
        if chunk.text:
            yield from self._go_on(_Block.TEXT)
            yield self._delta(b'{"type":"text_delta","text":%b}', chunk.text)
        for piece in chunk.tool_calls:
            if piece.id:
                yield from self._stop()
                start = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
                yield self._begin_block(_Block.TOOL_USE, start)
            if piece.arguments and self._open is _Block.TOOL_USE:
                yield self._delta(b'{"type":"input_json_delta","partial_json":%b}', piece.arguments)
        if chunk.finish is not None:
            self._ending = _ending(chunk.finish, chunk.stop, self._identity.stops)

    def _go_on(self, block: _Block) -> Iterator[bytes]:
        if self._open is not block:
            yield from self._stop()
            yield self._begin_block(block, _STARTS[block])

    def _begin_block(self, block: _Block, start: Mapping[str, object]) -> bytes:
        self._open = block
        self._index += 1
        return _event("content_block_start", {"index": self._index, "content_block": start})

    def _stop(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", {"index": self._index})

    def _delta(self, delta: bytes, text: str) -> bytes:
        body = b'{"type":"content_block_delta","index":%d,"delta":%b}' % (self._index, delta % msgspec.json.encode(text))
        return b"event: content_block_delta\ndata: %b\n\n" % body


def _event(name: str, fields: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))
