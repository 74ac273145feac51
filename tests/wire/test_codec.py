import contextlib
import math
import tracemalloc
from typing import get_args

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InvalidRequest, PeerError
from meshnode.inference import (
    MAX_BIASES,
    Alternative,
    Bias,
    End,
    Message,
    Phase,
    Request,
    Resume,
    Sampling,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from meshnode.names import MeshId, ModelDigest, NodeId
from meshnode.wire import codec
from meshnode.wire.messages import (
    Accuse,
    Body,
    Cancel,
    Credit,
    Delta,
    Digest,
    Entry,
    Finding,
    Found,
    Frame,
    Held,
    Hello,
    Leave,
    ModelState,
    Open,
    Ping,
    Pong,
    Probe,
    Pull,
    RecordDelta,
    Sketch,
    Standing,
    StreamChunk,
    StreamEnd,
    StreamError,
    StreamProgress,
    Version,
    Versions,
    Want,
)

NODE = NodeId(bytes(16))
HASH = bytes(8)
LOAD = (ModelState(name="tiny", digest=ModelDigest(bytes(32)), state="ready", active=1, slots=4, tokens_per_s=31.5),)
DELTA = RecordDelta(NODE, 7, 0, 0, 2, (Entry("name", 1, b"\xa3box"), Entry("model/ab", 2, None)))
LIKELY = (TokenLogprob(1, b"h", -1.0, (Alternative(1, b"h", -1.0),)),)
EXAMPLES: tuple[Frame, ...] = (
    Hello(
        1,
        1,
        MeshId(bytes(8)),
        NODE,
        "box-1",
        "0.1.0",
        1_700_000_000_000,
        bytes(8),
        ("192.168.1.7:4850", "[fe80::1%eth0]:4850"),
        Held(1_699_999_999_999, ("192.168.1.7:4851",)),
    ),
    Ping(1, True, bytes(8), LOAD),
    Pong(1, LOAD),
    Delta((DELTA,)),
    Leave(7),
    Digest(bytes(512)),
    Versions(b"\x01" + bytes(7), (Version(NODE, 7, 0, 2), Version(NODE, 8, 0, 0, Standing.LEFT))),
    Pull((Want(NODE, 7, 2),)),
    Probe(NODE),
    Finding(NODE, Found.HEARD),
    Accuse(NODE, 7, 1, True),
    Sketch("tiny", ModelDigest(bytes(32)), bytes(16), bytes(8)),
    Open(1, 5000),
    Body(1, b"\x00\xff"),
    StreamProgress(1, Phase.PREFILL, 10, 100),
    StreamChunk(1, 0, "héllo\u2028", codec.pack_ids((1, 2**31)), "stop", LIKELY, "hm\u2028", (ToolCall(0, "c", "f", "{}"),), 1),
    StreamEnd(1, End(usage=Usage(prompt_tokens=1, completion_tokens=2), timings=Timings(queue_ms=0.5)), LOAD),
    StreamError(1, "overloaded", "no slot", None, 1.5, LOAD),
    Cancel(3),
    Credit(3, 65536),
)
REQUEST = Request(id="req-1", model="tiny", messages=(Message(role="user", content="hi"),))


def packed(*fields: object) -> bytes:
    raw: bytes = msgpack.packb(fields)
    return raw


def refused(message: bytes) -> str:
    with pytest.raises(PeerError) as error:
        codec.decode(message)
    assert error.value.close_code == 4400
    return error.value.message


def test_every_kind_of_frame_survives_the_wire_alone_and_concatenated() -> None:
    assert {type(frame) for frame in EXAMPLES} == set(get_args(Frame))
    assert [codec.decode(codec.encode(frame)) for frame in EXAMPLES] == [[frame] for frame in EXAMPLES]
    assert codec.decode(b"".join(map(codec.encode, EXAMPLES))) == list(EXAMPLES)


def test_a_frame_is_a_plain_msgpack_array_that_begins_with_its_kind() -> None:
    assert msgpack.unpackb(codec.encode(Cancel(3))) == [22, 3]
    assert codec.encode(StreamChunk(1, 0, "a", b"\1\0\0\0")) == bytes.fromhex("9a1301 00 a161 c40401000000 a0 90 a0 90 c0")


@given(st.binary(max_size=2048))
def test_any_bytes_are_frames_or_a_peer_error(message: bytes) -> None:
    try:
        frames = codec.decode(message)
    except PeerError:
        return
    assert all(isinstance(frame, get_args(Frame)) for frame in frames)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from([*range(8), *range(16, 24), 8, 64, 127]), st.lists(ANYTHING, max_size=9))
@settings(max_examples=60)
def test_any_fields_of_any_kind_are_a_frame_or_a_peer_error(kind: int, fields: list[object]) -> None:
    try:
        frames = codec.decode(packed(kind, *fields))
    except PeerError:
        return
    assert all(isinstance(frame, get_args(Frame)) for frame in frames)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_damaged_frame_is_a_frame_or_a_peer_error(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(codec.encode(frame))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(PeerError):
        codec.decode(cut)


def test_a_refusal_names_the_kind_and_the_field() -> None:
    assert refused(packed(1, "x", True, HASH)) == "Ping.sequence: Expected `int`, got `str`"
    assert refused(packed(3, [[NODE, 1, 0, 0, 1, [["name", 1, 3]]]])).startswith(
        "Delta.records[0][5][0][2]: Expected `bytes | null`"
    )
    assert refused(packed(22)) == "Cancel: Expected `array` of at least length 2, got 1"


def test_unknown_kinds_below_64_are_refused_and_those_above_are_stepped_over() -> None:
    assert "kind 63" in refused(packed(63, 1))
    assert codec.decode(packed(64, {"new": [1]}) + codec.encode(Cancel(3)) + packed(127)) == [Cancel(3)]
    assert "0 to 127" in refused(packed(128))


def test_unknown_trailing_fields_are_ignored() -> None:
    assert codec.decode(packed(22, 3, {"since": 2}, [1, [2]])) == [Cancel(3)]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x93\x01\x01",
        b"\x91" * 5000 + b"\x90",
        b"\x92\x46" + b"\x91" * 5000 + b"\x90",
        b"\x92\x46" + b"\x91" * 990 + b"\x90" + b"\x90",
        b"\x01",
        b"\xa1a",
        bytes(codec.MAX_MESSAGE + 1),
        b"\x91\x46" * (codec.MAX_FRAMES + 1),
        packed(True, 3),
    ],
)
def test_what_is_too_large_too_deep_cut_short_or_no_frame_is_refused(message: bytes) -> None:
    assert refused(message)


@pytest.mark.parametrize(
    "fields",
    [
        (1, -1, True, HASH),
        (1, 1, True),
        (1, 1, True, bytes(7)),
        (1, 2**60, True, HASH),
        (1, 1, True, HASH, [["m", b"", "ready", 0, 0, 0, 0, 0, math.nan]]),
        (1, 1, True, HASH, [["m", b"", "ready", 0, 0, 0, 0, 0, math.inf]]),
        (1, 1, True, HASH, [["m", b"", "ready"]] * 65),
        (1, 1, True, HASH, [["a b", b"", "ready"]]),
        (1, 1, True, HASH, [["m\n", b"", "ready"]]),
        (1, 1, True, HASH, [["m", bytes(33), "ready"]]),
        (0, 1, 1, bytes(8), bytes(16), "\x1b[31m", "1", 1, HASH),
        (0, 1, 1, bytes(8), bytes(15), "box", "1", 1, HASH),
        (0, 1, 1, bytes(8), bytes(16), "box", "1", 1, HASH, ["a b:1"]),
        (0, 1, 1, bytes(8), bytes(16), "box", "1", 1, HASH, ["a:1"] * 17),
        (0, 1, 1, bytes(8), bytes(16), "box", "1", 1, bytes(9)),
        (0, 1, 1, bytes(8), bytes(16), "box", "1", 1, HASH, [], [1, ["a b:1"]]),
        (0, 1, 1, bytes(8), bytes(16), "box", "1", 1, HASH, [], []),
        (3, [[bytes(16), 1, 0, 0, 1, [["k", 1, bytes(65537)]]]]),
        (3, [[bytes(16), 1, 0, 0, 1, [["k\0", 1, b""]]]]),
        (5, bytes(511)),
        (6, bytes(8), [[bytes(16), 1, 0]]),
        (6, bytes(9), []),
        (6, bytes(8), [[bytes(16), 1, 0, 1]] * 1025),
        (7, [[bytes(15), 1, 0]]),
        (7, [[bytes(16), 1, -1]]),
        (17, 1, bytes(32769)),
        (18, 1, "dreaming", 0, 0),
        (19, 1, 0, "x", b"\0\0\0"),
        (20, 1, ["end", [1, 2, 3], [math.nan, 0.0, 0.0]]),
        (20, 1, ["end", [-1, 2, 3]]),
        (21, 1, "code", "text", None, -1.0),
    ],
)
def test_a_value_out_of_its_bounds_is_refused(fields: tuple[object, ...]) -> None:
    assert refused(packed(*fields))


def test_texts_of_a_peer_lose_their_control_characters_both_ways() -> None:
    error = StreamError(1, "co\nde", "red \x1b[31m" + "x" * 9999, "p" * 999)

    (frame,) = codec.decode(packed(21, 1, "co\nde", "red \x1b[31m"))
    (sent,) = codec.decode(codec.encode(error))

    assert isinstance(frame, StreamError)
    assert isinstance(sent, StreamError)
    assert (frame.code, frame.message) == ("co de", "red  [31m")
    assert (len(sent.message), len(sent.param or "")) == (512, 128)


@pytest.mark.parametrize("filler", [b"\x90", b"\x80", b"\xa0", b"\xc4\x00"])
def test_a_hostile_message_takes_no_memory_to_speak_of(filler: bytes) -> None:
    """Untyped, 256 KiB of empty containers unfold to 19 MB; here only what a type asks for is built."""
    count = (codec.MAX_MESSAGE - 16) // len(filler)
    bodies = [b"\x95\x01\x01\xc3\xc4\x08" + HASH + b"\xdd" + count.to_bytes(4, "big"), b"\x92\x46\xdd" + count.to_bytes(4, "big")]
    tracemalloc.start()
    for head in bodies:
        with contextlib.suppress(PeerError):
            codec.decode(head + filler * count)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 * codec.MAX_MESSAGE


def test_a_request_survives_the_wire() -> None:
    request = msgspec.structs.replace(
        REQUEST,
        sampling=Sampling(temperature=0.5, stop=("a", "b"), repeat_last_n=-1, logit_bias=(Bias(7, -100.0),), ignore_eos=True),
        resume=(Resume(token_ids=(1, 2), emitted_chars=3),),
        deadline_ms=10,
    )
    assert codec.decode_request(codec.encode_request(request)) == request


def test_a_long_prompt_travels_and_one_beyond_the_limit_does_not() -> None:
    def of(size: int) -> Request:
        return msgspec.structs.replace(REQUEST, messages=(Message(role="user", content="x" * size),))

    assert codec.decode_request(codec.encode_request(of(4_000_000))) == of(4_000_000)
    with pytest.raises(InvalidRequest, match="at most 8388608"):
        codec.encode_request(of(codec.MAX_REQUEST))
    with pytest.raises(InvalidRequest, match="at most 8388608"):
        codec.decode_request(bytes(codec.MAX_REQUEST + 1))


def test_a_request_with_text_that_is_no_unicode_is_refused_here_and_not_at_the_peer() -> None:
    with pytest.raises(InvalidRequest, match="cannot be sent on"):
        codec.encode_request(msgspec.structs.replace(REQUEST, messages=(Message(role="user", content="\ud800"),)))


@given(st.binary(max_size=512) | ANYTHING.map(msgpack.packb))
def test_any_body_is_a_request_or_invalid(raw: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        codec.decode_request(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "a b"},
        {"id": "x\r\ny"},
        {"caller": "\x1b]"},
        {"hops": -1},
        {"deadline_ms": -5},
        {"sampling": Sampling(temperature=math.nan)},
        {"sampling": Sampling(stop=("",) * 9000)},
        {"sampling": Sampling(presence_penalty=math.inf)},
        {"sampling": Sampling(logit_bias=(Bias(7, math.nan),))},
        {"sampling": Sampling(logit_bias=(Bias(7, 1.0),) * (MAX_BIASES + 1))},
        {"resume": (Resume(token_ids=(), emitted_chars=-1),)},
        {"resume": (Resume(token_ids=(0,) * (codec.MAX_RESUME_IDS + 1), emitted_chars=0),)},
    ],
)
def test_a_request_that_no_node_may_accept_is_invalid(change: dict[str, object]) -> None:
    raw = codec.encode_request(msgspec.structs.replace(REQUEST, **change))
    with pytest.raises(InvalidRequest, match="cannot be accepted"):
        codec.decode_request(raw)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_token_ids_survive_packing(ids: list[int]) -> None:
    assert codec.unpack_ids(codec.pack_ids(ids)) == tuple(ids)


def test_a_record_value_survives_and_a_foreign_one_is_a_peer_error() -> None:
    assert codec.decode_value(codec.encode_value(("a:1", "b:2")), tuple[str, ...]) == ("a:1", "b:2")
    for raw in (b"", b"\xc1", b"\x91" * 3000, codec.encode_value("text")):
        with pytest.raises(PeerError, match="unreadable record"):
            codec.decode_value(raw, tuple[str, ...])
