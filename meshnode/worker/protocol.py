"""What parent and child say to each other over their socket pair (pure).

A frame is a 4-byte big-endian length and a msgpack body, one of the messages below. The parent sends LOAD first and waits; the
child answers with READY or REFUSED. Then the parent sends SUBMIT, CANCEL and THREADS, and the child one STEP for each engine step
that brought something, and CACHED when that changed. The end of the connection is the end of the child, whichever side closes.
Stream ids are the parent's, never used twice in one life.
"""

from collections.abc import Iterator

import msgspec

from meshnode.inference import Event, Message, Request
from meshnode.worker.compute import Compute
from meshnode.worker.gguf import Facts

MAX_FRAME = 32 * 1024 * 1024
"""A request holds at most 8 MiB of JSON; msgpack with tags is not larger, and a rendered prompt seldom twice as large."""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this model. `context_length` is per slot. `memory_free` are the bytes that it may take, None: not known."""

    path: bytes
    facts: Facts
    slots: int
    context_length: int
    compute: Compute = Compute()
    memory_free: int | None = None


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """`chain` are the hashes of the prompt's text that the child's CACHED shall name it by."""

    stream: int
    request: Request
    chain: tuple[int, ...] = ()


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop the work for `stream` before the next step; nothing more is said about it."""

    stream: int


class Threads(msgspec.Struct, frozen=True, tag="threads"):
    """Compute with at most so many threads from the next step on: other models want the rest of the cores."""

    count: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Loaded. A prompt and its answer have at most `context_length` tokens. `note` is for people, about what is not as it should
    be; mostly empty. `on_gpu`: the weights are on a graphics processor."""

    context_length: int
    note: str = ""
    on_gpu: bool = False


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """This model cannot be loaded. `permanent`: not as long as its file stays as it is. The child ends."""

    message: str
    hint: str = ""
    permanent: bool = True


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="failure"):
    """The end of one stream without `End`; `code` is one of `errors.py`."""

    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What one engine step brought, in order, and the load and the measured speed after it; 0: not known."""

    events: tuple[tuple[int, Event | Failure], ...]
    free_slots: int = 0
    waiting: int = 0
    """Sequences without a slot."""
    remaining_s: float = 0.0
    """Work left when one sequence is read and drawn after the other, answers as long as usual."""
    kv_free_tokens: int = 0
    prefill_per_s: float = 0.0
    """Prompt tokens, when nothing else is done."""
    tokens_per_s: float = 0.0
    """Of the answers of all streams together."""
    step_s: float = 0.0
    """Of a step in which one stream decodes."""
    stream_s: float = 0.0
    """What each further stream adds to that."""


class Cached(msgspec.Struct, frozen=True, tag="cached"):
    """The chains of what the KV cache holds now, each cut where that ends, the most useful first. Sent when they changed."""

    chains: tuple[tuple[int, ...], ...]


ToChild = Load | Submit | Cancel | Threads
ToParent = Ready | Refused | Step | Cached


class Region(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a rendered prompt: the template's own text, or what came from a message."""

    text: str
    ours: bool
    """Whether the template wrote it: only then may it name control tokens."""


class Compile(msgspec.Struct, frozen=True, tag="compile"):
    """First message to the renderer; answered by RENDERED, of a test conversation, or NOT_RENDERED."""

    template: str
    bos: str
    eos: str


class Render(msgspec.Struct, frozen=True, tag="render"):
    """`tools` is the JSON text of OpenAI's, as the calls in `messages` are."""

    messages: tuple[Message, ...]
    tools: str | None = None
    thinking: bool | None = None


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The renderer's first message: it is up and has set its own limits."""


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    regions: tuple[Region, ...]


class NotRendered(msgspec.Struct, frozen=True, tag="not_rendered"):
    """`broken`: the template itself is to blame; else it refused these messages on purpose."""

    reason: str
    broken: bool


ToRenderer = Compile | Render
FromRenderer = Started | Rendered | NotRendered


class FrameTooLarge(Exception):
    """A frame over MAX_FRAME: the other side is broken, or a request is larger than any we accept."""


def frame(message: msgspec.Struct) -> bytes:
    """`message` as it goes over the socket. Raises FrameTooLarge, or UnicodeEncodeError for text with lone surrogates."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameTooLarge(f"{len(body)} bytes")
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Bytes in, bodies of whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes. Raises FrameTooLarge."""
        self._buffer += data
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > MAX_FRAME:
                raise FrameTooLarge(f"{length} bytes")
            if len(self._buffer) < 4 + length:
                return
            body = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            yield body
