"""What every dialect is made of: its requests become ours, our events become its answers (pure).

A dialect has one module that reads requests (`openai.py`, `prompts.py`, `anthropic.py`, `ollama.py`), whose functions return an
`Asked`, and one that writes answers, whole and streamed (`completion.py`, `text_completion.py`, `message.py`, `lines.py`).
`answering.py` runs between the two, and is the same for all.
"""

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Protocol

import msgspec

from meshnode.api.collected import Collected
from meshnode.api.http import Request as HttpRequest
from meshnode.errors import MeshnodeError
from meshnode.inference import Event, Phase, Progress, Request


class Dialect(Enum):
    OPENAI = auto()
    """Also of what belongs to none."""
    ANTHROPIC = auto()
    OLLAMA = auto()


def dialect_of(request: HttpRequest) -> Dialect:
    """By its path; of those that two dialects have in common, by the header that Anthropic's clients send."""
    if request.path.startswith("/api/"):
        return Dialect.OLLAMA
    if request.path.startswith("/v1/messages") or "anthropic-version" in request.headers:
        return Dialect.ANTHROPIC
    return Dialect.OPENAI


EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"


class Stream(Protocol):
    """A streamed answer in the making. Each method gives the bytes that go out next."""

    media_type: str

    def begin(self, model: str) -> None:
        """Called once, before the first `encode`: the name under which it is served is final by then."""
        ...

    def encode(self, batch: Iterable[Event]) -> bytes:
        """What these events add, for one write; may be empty. With `End` comes all that ends the stream."""
        ...

    def waiting(self, progress: Progress | None) -> bytes:
        """What says no more than that the answer is still being worked on."""
        ...

    def failed(self, error: MeshnodeError) -> bytes:
        """The last thing said, in place of the rest."""
        ...


Whole = Callable[[Collected, str], bytes]
"""The body of an unstreamed answer that was served under this model's name."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants, and in which form the answer shall come."""

    requests: tuple[Request, ...]
    """One, but for a batch of prompts; the choices of the second follow on those of the first."""
    stream: Stream | None
    """None: as a whole."""
    whole: Whole
    ignored: tuple[str, ...] = ()
    """Fields of the body that do nothing."""

    @property
    def request(self) -> Request:
        return self.requests[0]


def comment(progress: Progress | None) -> bytes:
    """A line between server-sent events that clients skip: the answer is still being worked on, and by what."""
    if progress is None:
        return b": keep-alive\n\n"
    if progress.phase is Phase.PREFILL and progress.total:
        return b": prefill %d/%d\n\n" % (progress.done, progress.total)
    return b": %b\n\n" % progress.phase.encode()
