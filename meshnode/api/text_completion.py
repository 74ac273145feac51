"""From our events to OpenAI's older completion, whole or in chunks (pure)."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from meshnode.api import dialect
from meshnode.api.collected import Choice, Collected
from meshnode.api.completion import DONE, FINGERPRINT, Identity, head, usage_object
from meshnode.api.openai_error import error_object
from meshnode.errors import MeshnodeError
from meshnode.inference import Chunk, End, Event, Progress, TokenLogprob

_KIND = "text_completion"


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """The prompts that are to be said again before their `n` answers each; none where that was not asked for."""

    prompts: tuple[str, ...] = ()
    n: int = 1

    def before(self, choice: int) -> str:
        return self.prompts[choice // self.n] if choice // self.n < len(self.prompts) else ""


def text_completion(collected: Collected, model: str, *, identity: Identity, echo: Echo) -> bytes:
    """The whole answer as JSON. Raises InternalError when the events did not come to their end."""
    return msgspec.json.encode(
        {
            "id": identity.id,
            "object": _KIND,
            "created": identity.created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "choices": [_choice(choice, echo.before(choice.index)) for choice in collected.choices],
            "usage": usage_object(collected.end.usage),
        }
    )


def _choice(choice: Choice, before: str) -> dict[str, object]:
    likely = logprobs_object(choice.logprobs, 0) if choice.logprobs else None
    return {"text": before + choice.text, "index": choice.index, "logprobs": likely, "finish_reason": choice.finish}


def logprobs_object(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, object]:
    """The older form of log-probabilities, a list of each. `offset` is where the first token begins, in characters."""
    texts = [_shown(token.text) for token in tokens]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += _length(token)
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_shown(each.text): each.logprob for each in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _length(token: TokenLogprob) -> int:
    """Each part of a character counts as one: what it belongs to is not known here."""
    return len(token.text.decode(errors="replace"))


def _shown(text: bytes) -> str:
    """OpenAI's spelling of what is no whole character, so that the likeliest tokens stay apart."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


class TextStream:
    """The server-sent events of one streamed answer."""

    media_type = dialect.EVENTS

    def __init__(self, identity: Identity, *, include_usage: bool, echo: Echo) -> None:
        self._identity = identity
        self._include_usage = include_usage
        self._echo = echo
        self._head = b""
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def begin(self, model: str) -> None:
        self._head = head(_KIND, self._identity, model)

    def waiting(self, progress: Progress | None) -> bytes:
        return dialect.comment(progress)

    def failed(self, error: MeshnodeError) -> bytes:
        """No `DONE` follows it."""
        return b"data: %b\n\n" % error_object(error)

    def encode(self, batch: Iterable[Event]) -> bytes:
        return b"".join(piece for event in batch for piece in self._pieces(event))

    def _pieces(self, event: Event) -> Iterator[bytes]:
        match event:
            case Chunk():
                if event.choice not in self._begun:
                    self._begun.add(event.choice)
                    if before := self._echo.before(event.choice):
                        yield self._text(event.choice, before)
                if event.text or event.logprobs or event.finish is not None:
                    finish = b"null" if event.finish is None else b'"%b"' % event.finish.encode()
                    yield self._text(event.choice, event.text, finish=finish, likely=self._likely(event))
            case End():
                if self._include_usage:
                    yield self._head + b'],"usage":%b}\n\n' % msgspec.json.encode(usage_object(event.usage))
                yield DONE
            case _:
                return

    def _text(self, choice: int, text: str, *, finish: bytes = b"null", likely: bytes = b"null") -> bytes:
        body = b'{"text":%b,"index":%d,"logprobs":%b,"finish_reason":%b}' % (msgspec.json.encode(text), choice, likely, finish)
        return self._head + body + self._tail

    def _likely(self, chunk: Chunk) -> bytes:
        if not chunk.logprobs:
            return b"null"
        offset = self._offsets.get(chunk.choice, 0)
        self._offsets[chunk.choice] = offset + sum(map(_length, chunk.logprobs))
        return msgspec.json.encode(logprobs_object(chunk.logprobs, offset))
