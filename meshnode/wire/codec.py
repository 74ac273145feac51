"""Frames and requests to bytes and back; the only module that knows msgpack (pure).

Input is hostile: whatever the bytes, `decode` returns frames or raises `PeerError`, and `decode_request` returns a request or
raises `InvalidRequest`. Nothing is built that a type does not ask for: `Unpacker.skip` only finds where each frame ends, and the
typed decoder then reads it. Unknown trailing fields and frames that may be ignored are stepped over, never turned into objects,
because small containers are what makes a megabyte of msgpack unfold to eighty (and this way costs 0.6 us a frame instead of 25).

So the limits are: a message of 256 KiB and 8192 frames; nesting as deep as the types are (five), and in what is stepped over as
deep as the libraries go without recursion errors; every array, string, byte string and number as its type in `messages.py` says
(no extension types, no maps); floats finite. A request has 8 MiB in all.
"""

import math
import re
import struct
from collections.abc import Iterable, Iterator
from typing import TypeVar, assert_never, get_args

import msgpack
import msgspec

from meshnode.errors import InvalidRequest, PeerError
from meshnode.inference import MAX_BIASES, Request, Sampling
from meshnode.names import is_model_reference, is_name, printable
from meshnode.wire.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Accuse,
    Body,
    Cancel,
    Credit,
    Delta,
    Digest,
    Finding,
    Frame,
    Hello,
    Introduction,
    Leave,
    ModelState,
    Open,
    Ping,
    Pong,
    Probe,
    Pull,
    Sketch,
    StreamChunk,
    StreamEnd,
    StreamError,
    StreamProgress,
    Versions,
)

MAX_MESSAGE = 256 * 1024
"""The largest WebSocket message. Our writers stop at 64 KiB; the rest is room for a full record delta and for other writers."""
MAX_FRAMES = 8192
"""In one message: a frame costs some microseconds however small it is, and 256 KiB hold a hundred thousand empty ones."""
MAX_REQUEST = 8 * 1024 * 1024
"""The API's body limit: what a client may say, a node may forward."""
MAX_TURNS = 8192
MAX_RESUME_IDS = 1 << 20
FIRST_OPTIONAL_KIND = 64
"""Kinds from here to 127 may be ignored by who does not know them: that is how the protocol grows."""

_ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]%-]{1,128}", re.ASCII)
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\[(?P<index>\d+)\](?P<rest>.*)`)?", re.DOTALL)
_KINDS: dict[int, type[msgspec.Struct]] = {frame.__struct_config__.tag: frame for frame in get_args(Frame)}
_BROKEN = (ValueError, RecursionError, OverflowError, msgpack.UnpackException, msgspec.MsgspecError)
"""What the two libraries raise about bytes; StackError and FormatError are ValueErrors, RecursionError is msgspec's."""

_encoder = msgspec.msgpack.Encoder()
_frames: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
_introductions = msgspec.msgpack.Decoder(Introduction)
_requests = msgspec.msgpack.Decoder(Request)

T = TypeVar("T")


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids as they travel: little-endian, 32 bits each."""
    values = tuple(ids)
    return struct.pack(f"<{len(values)}I", *values)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """The inverse of `pack_ids`; `decode` has checked that the length is a multiple of four."""
    return struct.unpack(f"<{len(packed) // 4}I", packed)


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise PeerError(what)


def _check_load(kind: str, load: tuple[ModelState, ...]) -> None:
    for model in load:
        _require(is_name(model.name) and is_name(model.state), f"{kind}.load: not a name")


def _check_hello(hello: Hello) -> Hello:
    _require(is_name(hello.name), "Hello.name: not a name")
    _require(all(_ADDRESS.fullmatch(addr) for addr in hello.listen), "Hello.listen: not an address")
    held = hello.held.listen if hello.held else ()
    _require(all(_ADDRESS.fullmatch(addr) for addr in held), "Hello.held: not an address")
    return msgspec.structs.replace(hello, version=printable(hello.version))


def _plain(error: StreamError) -> StreamError:
    """`error` with texts that may be shown: on the way in for safety, on the way out for length."""
    param = None if error.param is None else printable(error.param, 128)
    return msgspec.structs.replace(error, code=printable(error.code, 128), message=printable(error.message), param=param)


def _check_error(error: StreamError) -> StreamError:
    _check_load("StreamError", error.load)
    return _plain(error)


def _check_end(end: StreamEnd) -> StreamEnd:
    _check_load("StreamEnd", end.load)
    usage, timings = end.end.usage, end.end.timings
    numbers = (*msgspec.structs.astuple(usage), *msgspec.structs.astuple(timings))
    _require(all(math.isfinite(number) and number >= 0 for number in numbers), "StreamEnd.end: not a count or a time")
    return end


def _check_delta(delta: Delta) -> Delta:
    for record in delta.records:
        _require(all(is_name(entry.key) for entry in record.entries), "Delta.records: a key is not a name")
    return delta


def _checked(frame: Frame) -> Frame:
    """`frame` with its texts made harmless; names that are none are refused (security rule 23)."""
    match frame:
        case StreamChunk():
            _require(len(frame.token_ids) % 4 == 0, "StreamChunk.token_ids: not whole ids")
        case Sketch():
            _require(is_name(frame.name), "Sketch.name: not a name")
            _require(len(frame.marks) % 4 == 0, "Sketch.marks: not whole marks")
        case Ping() | Pong():
            _check_load(type(frame).__name__, frame.load)
        case Hello():
            return _check_hello(frame)
        case Delta():
            return _check_delta(frame)
        case StreamEnd():
            return _check_end(frame)
        case StreamError():
            return _check_error(frame)
        case (
            Leave()
            | Digest()
            | Versions()
            | Pull()
            | Probe()
            | Finding()
            | Accuse()
            | Open()
            | Body()
            | StreamProgress()
            | Cancel()
            | Credit()
        ):
            pass
        case _:
            assert_never(frame)
    return frame


def encode(frame: Frame) -> bytes:
    return _encoder.encode(_plain(frame) if isinstance(frame, StreamError) else frame)


def _kind(frame: bytes | memoryview) -> int:
    """The kind of a frame that the typed decoder refused."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE, read_size=max(16, len(frame)))
    unpacker.feed(frame)
    kind = unpacker.unpack() if unpacker.read_array_header() else None
    if not isinstance(kind, int) or not 0 <= kind <= 127:
        raise PeerError("a frame must begin with its kind, 0 to 127")
    return kind


def _blame(kind: int, error: Exception) -> PeerError:
    """`error` in words of the protocol: frame kind and field instead of array positions."""
    frame = _KINDS.get(kind)
    if frame is None:
        return PeerError(f"frame of unknown kind {kind}, which this version must understand and does not")
    found = _AT.fullmatch(str(error))
    what, index, rest = found.group("what", "index", "rest") if found else (str(error), None, None)
    field = f".{frame.__struct_fields__[int(index) - 1]}{rest}" if index and int(index) > 0 else ""
    return PeerError(f"{frame.__name__}{field}: {what}")


def _decode_one(raw: bytes | memoryview) -> Frame | None:
    """One frame, or None for one that may be ignored."""
    try:
        return _checked(_frames.decode(raw))
    except _BROKEN as error:
        kind = _kind(raw)
        if kind >= FIRST_OPTIONAL_KIND and kind not in _KINDS:
            return None
        if kind == 0 and (hello := _hello_of_another_version(raw)):
            return hello
        raise _blame(kind, error) from error


def _hello_of_another_version(raw: bytes | memoryview) -> Hello | None:
    """What can be known of a HELLO whose later fields are not ours: who it is. To be refused, but by name."""
    try:
        who = _introductions.decode(raw)
    except _BROKEN:
        return None
    if who.protocol_min <= PROTOCOL_MAX and who.protocol_max >= PROTOCOL_MIN:
        return None
    hello = Hello(who.protocol_min, who.protocol_max, who.mesh, who.node, who.name, who.version, 0, bytes(8))
    return _check_hello(hello)


def decode(message: bytes) -> list[Frame]:
    """Every frame of a WebSocket message that this version knows. Raises PeerError, and nothing else, whatever the bytes."""
    if not 0 < len(message) <= MAX_MESSAGE:
        raise PeerError(f"a message of {len(message)} bytes; 1 to {MAX_MESSAGE} are allowed")
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE, read_size=max(16, len(message)))
    unpacker.feed(message)
    view = memoryview(message)
    frames: list[Frame] = []
    start = 0
    try:
        for _ in range(MAX_FRAMES):
            unpacker.skip()
            frame = _decode_one(view[start : (start := unpacker.tell())])
            if frame is not None:
                frames.append(frame)
            if start == len(message):
                return frames
    except _BROKEN as error:
        raise PeerError(f"not msgpack frames: {printable(str(error)) or type(error).__name__}") from error
    raise PeerError(f"more than {MAX_FRAMES} frames in one message")


def encode_request(request: Request) -> bytes:
    """The body that follows OPEN. Raises InvalidRequest when it is beyond what may travel."""
    try:
        raw = _encoder.encode(request)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"the request cannot be sent on: {printable(str(error))}") from error
    if len(raw) > MAX_REQUEST:
        raise InvalidRequest(f"the request has {len(raw)} bytes; at most {MAX_REQUEST} may be forwarded")
    return raw


def _numbers(sampling: Sampling) -> Iterator[float]:
    """All that the drawing of tokens computes with."""
    yield from (each.bias for each in sampling.logit_bias)
    yield from (value for value in msgspec.structs.astuple(sampling) if isinstance(value, float))


def _request_fault(request: Request) -> str | None:
    """What is wrong with it, if anything: only what any node must refuse; what a model can do is the worker's to say."""
    sampling, resume = request.sampling, request.resume
    if not is_name(request.id) or not is_model_reference(request.model):
        return "its id or model is not a name"
    if request.caller != printable(request.caller):
        return "its caller is not plain text"
    if len(request.messages) > MAX_TURNS or len(sampling.stop) > MAX_TURNS:
        return f"more than {MAX_TURNS} messages or stop strings"
    if len(sampling.logit_bias) > MAX_BIASES:
        return f"more than {MAX_BIASES} biases"
    if not all(map(math.isfinite, _numbers(sampling))):
        return "a sampling parameter is not a finite number"
    if (
        min(request.n, request.hops, request.worker_deaths, request.deadline_ms or 0, request.expected_ms or 0, request.bounces)
        < 0
    ):
        return "a count is negative"
    if resume is not None and (
        sum(len(each.token_ids) for each in resume) > MAX_RESUME_IDS or any(min(each.emitted) < 0 for each in resume)
    ):
        return "resume is out of range"
    if isinstance(request.prompt, tuple) and len(request.prompt) > MAX_RESUME_IDS:
        return f"a prompt of more than {MAX_RESUME_IDS} tokens"
    return None


def decode_request(raw: bytes) -> Request:
    """The request in a stream's body. Raises InvalidRequest, and nothing else, whatever the bytes."""
    if len(raw) > MAX_REQUEST:
        raise InvalidRequest(f"the forwarded request has {len(raw)} bytes; at most {MAX_REQUEST} are allowed")
    try:
        request = _requests.decode(raw)
    except _BROKEN as error:
        raise InvalidRequest(f"the forwarded request cannot be read: {printable(str(error))}") from error
    if fault := _request_fault(request):
        raise InvalidRequest(f"the forwarded request cannot be accepted: {fault}")
    return request


def encode_value(value: msgspec.Struct | str | tuple[str, ...] | tuple[int, int]) -> bytes:
    """A value for a record's key."""
    return _encoder.encode(value)


def decode_value(raw: bytes, kind: type[T]) -> T:
    """The value of a record's key. Raises PeerError when it is not a `kind`; its texts are as the peer sent them."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except _BROKEN as error:
        raise PeerError(f"unreadable record: {printable(str(error))}") from error
