"""From our events to Ollama's answers, whole or as lines of JSON (pure).

A line differs from the last one in its text alone, so the rest is encoded once per stream. Calls of tools come whole, their
arguments as objects, once the next one begins or the answer ends.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from meshnode.api import dialect, logprobs
from meshnode.api.collected import MAX_ANSWER, Collected, joined
from meshnode.api.message import arguments_of
from meshnode.api.ollama_error import error_object
from meshnode.errors import InternalError, MeshnodeError
from meshnode.inference import Chunk, End, Event, Finish, Progress, TokenLogprob, ToolCall

_REASONS = {Finish.LENGTH: "length"}
_NS_PER_MS = 1_000_000


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What every line of an answer repeats. The model is called as the client called it; `created_at` is in RFC 3339."""

    model: str
    created_at: str
    chat: bool
    """Whether the text is a message's."""

    def said(self, text: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, object]:
        """The fields that hold what was said."""
        thought = {"thinking": thinking} if thinking else {}
        if not self.chat:
            return {"response": text, **thought}
        made = {"tool_calls": [_call(call) for call in calls]} if calls else {}
        return {"message": {"role": "assistant", "content": text, **thought, **made}}

    def line(self, fields: dict[str, object]) -> bytes:
        """One whole object, without a line break."""
        return msgspec.json.encode({"model": self.model, "created_at": self.created_at, **fields})


def whole(collected: Collected, _model: str, *, form: Form) -> bytes:
    """The whole answer as JSON. Raises InternalError when the events did not come to their end."""
    ending = _ending(collected.end)
    said, finish, likely = form.said(""), Finish.STOP, _likely(())
    for choice in collected.choices[:1]:
        said, finish, likely = form.said(choice.text, choice.reasoning, choice.calls), choice.finish, _likely(choice.logprobs)
    return form.line({**said, **likely, "done": True, "done_reason": _REASONS.get(finish, "stop"), **ending})


def loaded(form: Form, *, unload: bool) -> bytes:
    """The answer to a request without a prompt."""
    return form.line({**form.said(""), "done": True, "done_reason": "unload" if unload else "load"})


def _call(call: ToolCall) -> dict[str, object]:
    return {"function": {"index": call.index, "name": call.name, "arguments": arguments_of(call)}}


def _likely(tokens: Iterable[TokenLogprob]) -> dict[str, object]:
    entries = [logprobs.fields(token) for token in tokens]
    return {"logprobs": entries} if entries else {}


def _ending(end: End) -> dict[str, int]:
    """Durations in ns, as the worker measured them. Of loading nothing is known here: it is over before a request is taken."""
    timings = end.timings
    return {
        "total_duration": int((timings.queue_ms + timings.prefill_ms + timings.decode_ms) * _NS_PER_MS),
        "load_duration": 0,
        "prompt_eval_count": end.usage.prompt_tokens,
        "prompt_eval_duration": int(timings.prefill_ms * _NS_PER_MS),
        "eval_count": end.usage.completion_tokens,
        "eval_duration": int(timings.decode_ms * _NS_PER_MS),
    }


class LineStream:
    """The lines of one streamed answer."""

    media_type = dialect.LINES

    def __init__(self, form: Form) -> None:
        self._form = form
        head = form.line({})[:-1]
        before = b'"message":{"role":"assistant","content":' if form.chat else b'"response":'
        self._before = head + b"," + before
        self._after = b'},"done":false}\n' if form.chat else b',"done":false}\n'
        self._finish = Finish.STOP
        self._call: list[ToolCall] = []
        self._size = 0

    def begin(self, model: str) -> None:
        """Nothing to do: it is called as the client called it."""

    def waiting(self, _progress: Progress | None) -> bytes:
        """Its client knows no comments, but a line that says nothing."""
        return self._text("")

    def failed(self, error: MeshnodeError) -> bytes:
        return error_object(error) + b"\n"

    def encode(self, batch: Iterable[Event]) -> bytes:
        return b"".join(piece for event in batch for piece in self._pieces(event))

    def _pieces(self, event: Event) -> Iterator[bytes]:
        match event:
            case Chunk() if event.choice == 0:
                yield from self._chunk(event)
            case End():
                yield from self._whole_call()
                reason = _REASONS.get(self._finish, "stop")
                yield self._line({**self._form.said(""), "done": True, "done_reason": reason, **_ending(event)})
            case _:
                return

    def _chunk(self, chunk: Chunk) -> Iterator[bytes]:
        if chunk.reasoning:
            yield self._line({**self._form.said("", chunk.reasoning), "done": False})
        if chunk.logprobs:
            yield self._line({**self._form.said(chunk.text), **_likely(chunk.logprobs), "done": False})
        elif chunk.text:
            yield self._text(chunk.text)
        for piece in chunk.tool_calls:
            if piece.id:
                yield from self._whole_call()
            self._keep(piece)
        self._finish = chunk.finish or self._finish

    def _text(self, text: str) -> bytes:
        return self._before + msgspec.json.encode(text) + self._after

    def _line(self, fields: dict[str, object]) -> bytes:
        return self._form.line(fields) + b"\n"

    def _keep(self, piece: ToolCall) -> None:
        self._size += len(piece.arguments)
        if self._size > MAX_ANSWER:
            raise InternalError(f"The arguments of the call are longer than {MAX_ANSWER} characters.")
        self._call.append(piece)

    def _whole_call(self) -> Iterator[bytes]:
        if self._call:
            call, self._call, self._size = joined(self._call), [], 0
            yield self._line({**self._form.said("", calls=(call,)), "done": False})
