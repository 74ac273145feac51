"""Every frame that nodes exchange: a frozen type each; the docstrings are the protocol (pure).

A frame is a msgpack array `[kind, *fields]`; a WebSocket message is the concatenation of one or more frames. Kinds below 64 must
be understood; kinds 64 to 127 may be ignored, and so may unknown trailing fields. Gossip kinds are below 16, inference kinds from
16 on. Limits and the codec are in `codec.py`.

The bounds of numbers and lengths are part of the types; `codec.py` adds those of a message and of text. Bounds that are about
rates or sums (how many records, how many bytes of them) are the gossip engine's.

Link life: both ends send HELLO at once, and nothing else before they have seen the other's. Stream ids are chosen by the end that
opens the stream: odd by the one that dialled the link, even by the other, never used twice on a link.
"""

from enum import IntEnum, StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from meshnode.inference import MAX_TOOL_CALLS, End, Phase, TokenLogprob, ToolCall
from meshnode.names import MeshId, ModelDigest, NodeId

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""Any number of something; the upper end is what every language's JSON can show exactly."""
Real = Annotated[float, Meta(ge=0, le=1e12)]
"""A measurement; both bounds together also refuse NaN and the infinities."""
Node = Annotated[NodeId, Meta(min_length=16, max_length=16)]
Mesh = Annotated[MeshId, Meta(min_length=8, max_length=8)]
Weights = Annotated[ModelDigest, Meta(max_length=32)]
Text = Annotated[str, Meta(max_length=65536)]
Word = Annotated[str, Meta(max_length=128)]
Addrs = Annotated[tuple[Word, ...], Meta(max_length=16)]
"""Each `host:port`, an IPv6 host in brackets."""
BUCKETS = 64
Hash = Annotated[bytes, Meta(min_length=8, max_length=8)]
"""Of records; how it is made is in `gossip/digest.py`."""


class ModelState(msgspec.Struct, frozen=True, array_like=True):
    """Live load of one model of the sender (design D10). Times in ms, speeds in tokens per second; 0 = not measured.

    Reading a prompt of n tokens alone takes `prefill_ms` + 1000 n / `prefill_per_s`, and each step of decoding k streams at once
    `step_ms` + (k - 1) `stream_ms`: fits to what the worker measured.
    """

    name: Word
    digest: Weights
    state: Word
    """ready, available (loaded when asked for), loading, checking, failed or draining"""
    active: Count = 0
    slots: Count = 0
    queued: Count = 0
    remaining_ms: Count = 0
    """What all that is active or queued would still take, one after the other and each alone."""
    kv_free_tokens: Count = 0
    tokens_per_s: Real = 0.0
    prefill_per_s: Real = 0.0
    prefill_ms: Real = 0.0
    step_ms: Real = 0.0
    stream_ms: Real = 0.0
    load_ms: Count = 0
    """Of loading it, as measured or estimated; while it is loading, what is left of that."""


Loads = Annotated[tuple[ModelState, ...], Meta(max_length=64)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One key of a record. `value` is opaque here (None is a tombstone); unknown keys are kept and carried on unharmed."""

    key: Word
    version: Count
    value: Annotated[bytes, Meta(max_length=65536)] | None


class Standing(IntEnum):
    """What an account says of its origin's life. Down: others agreed that it is gone; a higher incarnation refutes that. Left:
    the origin said so itself, or an operator in its place, which is final for its epoch."""

    ALIVE = 0
    DOWN = 1
    LEFT = 2


class RecordDelta(msgspec.Struct, frozen=True, array_like=True):
    """What the receiver lacks of `origin`'s record: every key with `from_version` < version <= `to_version`.

    Only the origin raises its incarnation, to refute. It never calls itself down.
    """

    origin: Node
    epoch: Count
    incarnation: Count
    from_version: Count
    to_version: Count
    entries: Annotated[tuple[Entry, ...], Meta(max_length=512)]
    standing: Standing = Standing.ALIVE


class Introduction(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The beginning of HELLO, which every version of the protocol understands: enough to show whom one cannot talk with."""

    protocol_min: Count
    protocol_max: Count
    mesh: Mesh
    node: Node
    name: Word
    version: Word


class Held(msgspec.Struct, frozen=True, array_like=True):
    """What the sender of a HELLO last knew of the receiver's own identity: the epoch of its life, and where that was."""

    epoch: Count
    listen: Addrs = ()


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First frame of both ends. `node` is only compared with the id proven in TLS, never trusted (close 4403 on a difference).

    Its fields up to `version` are the same in every version of the protocol, so that a node can say who it cannot talk with.

    `instance` is drawn anew by each process: two processes that prove one identity are told apart by it, also when their epochs
    are equal. `listen` are the addresses at which the sender can be dialled. `held` shows a process that runs on a copy of
    another's data directory where that other is; it is a hint, to be dialled and never believed.
    """

    protocol_min: Count
    protocol_max: Count
    mesh: Mesh
    node: Node
    name: Word
    version: Word
    epoch: Count
    instance: Annotated[bytes, Meta(min_length=8, max_length=8)]
    listen: Addrs = ()
    held: Held | None = None


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The heartbeat: every second, and at once on a large change of load. Answered by PONG when `want_pong`.

    `state_hash` is over the sender's records. When it has differed from the receiver's own for a second, with nothing left to
    tell, the receiver sends DIGEST.
    """

    sequence: Count
    want_pong: bool
    state_hash: Hash
    load: Loads = ()
    grace_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    """The sender may be silent for so long, because something keeps it busy: not routable meanwhile, and not suspected either."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Answer to a PING that asked for one; gives the round trip. Never answered."""

    sequence: Count
    load: Loads = ()


class Delta(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Records that the receiver lacks, by the sender's per-link knowledge. Answered, by PULL, only where a record starts beyond
    what the receiver has.
    """

    records: Annotated[tuple[RecordDelta, ...], Meta(max_length=8192)]


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The sender leaves the mesh; final for its epoch. The receiver marks it as left and closes the link."""

    epoch: Count


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The hashes of the sender's 64 buckets of records, one after the other. Answered by VERSIONS of the buckets that differ, or
    not at all when none does.
    """

    hashes: Annotated[bytes, Meta(min_length=8 * BUCKETS, max_length=8 * BUCKETS)]


class Version(msgspec.Struct, frozen=True, array_like=True):
    """How far the sender's account of `origin` reaches."""

    origin: Node
    epoch: Count
    incarnation: Count
    version: Count
    standing: Standing = Standing.ALIVE


class Versions(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Answer to DIGEST: every record of the sender's in the buckets whose bit is set in `buckets` (bucket 0 is the lowest bit of
    the first byte). The receiver sends PULL for what it lacks, and DELTA of what the sender lacks.
    """

    buckets: Annotated[bytes, Meta(min_length=BUCKETS // 8, max_length=BUCKETS // 8)]
    versions: Annotated[tuple[Version, ...], Meta(max_length=1024)]


class Want(msgspec.Struct, frozen=True, array_like=True):
    """The receiver's account of `origin` from `from_version` of `epoch` on is asked for; 0 for all of it."""

    origin: Node
    epoch: Count
    from_version: Count


class Pull(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The sender has only so much of these records. The receiver tells the rest, in DELTA, as far as it knows any."""

    wants: Annotated[tuple[Want, ...], Meta(max_length=1024)]


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The sender does not hear `target`, and asks whether the receiver does. Answered by FINDING at once, from what is known."""

    target: Node


class Found(StrEnum):
    HEARD = "heard"
    SILENT = "silent"
    REFUSED = "refused"
    """Its host answers, and says that nothing listens there any more."""
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Answer to PROBE. Never answered."""

    target: Node
    found: Found


class Accuse(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The sender, and nobody who was probed, hears `target` in this life; `refused`: its host refuses connections.

    Sent to everyone, once for each (epoch, incarnation), and not relayed: but a receiver that hears the target passes it on to
    the target, which raises its incarnation and so refutes it.
    """

    target: Node
    epoch: Count
    incarnation: Count
    refused: bool = False


class Sketch(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """What beginnings of prompts the sender has cached for a model; replaces what was known of that. Sent on a new link, and
    after a change, at most every 5 s. For direct peers only: never passed on, and never answered.

    `marks` are little-endian 32-bit integers in ascending order; how they are made of prompts is in `routing/prefix.py`.
    """

    name: Word
    digest: Weights
    salt: Annotated[bytes, Meta(min_length=16, max_length=16)]
    marks: Annotated[bytes, Meta(max_length=8000)]


class Open(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Open stream `stream` to run one request, whose encoded `body_bytes` follow in BODY frames under the stream's credit."""

    stream: Count
    body_bytes: Count


class Body(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The next piece of the request, at most 32 KiB."""

    stream: Count
    data: Annotated[bytes, Meta(max_length=32768)]


class StreamProgress(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Still at it, and what it waits for; after each second in which the server sent nothing else of the stream."""

    stream: Count
    phase: Phase
    done: Count
    total: Count


class StreamChunk(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """A piece of the answer; `token_ids` are little-endian 32-bit integers packed in bytes, `finish` is empty or the reason.

    `logprobs` are those of `token_ids`, where asked for, without the token that ends the answer. `reasoning` and `tool_calls` are
    no part of the text. `stop` is beside `finish` the index of the request's stop string that ended the choice.
    """

    stream: Count
    choice: Count
    text: Text
    token_ids: Annotated[bytes, Meta(max_length=65536)]
    finish: Word = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: Text = ""
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_TOOL_CALLS)] = ()
    stop: Count | None = None


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The answer is complete; the stream is closed. Carries the sender's load, fresher than the last PING."""

    stream: Count
    end: End
    load: Loads = ()


class StreamError(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """There will be no answer, or no more of it; the stream is closed. `code` is one of `errors.py`."""

    stream: Count
    code: Word
    message: Text
    param: Word | None = None
    retry_after: Real | None = None
    load: Loads = ()


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """The opener wants no more; the receiver stops the work and sends nothing further on the stream. Unknown streams: ignored."""

    stream: Count


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """The receiver of data frames (BODY, CHUNK) on `stream` will take `bytes` more of them. Each direction starts with 64 KiB."""

    stream: Count
    bytes: Count


Gossip = Ping | Pong | Delta | Leave | Digest | Versions | Pull | Probe | Finding | Accuse | Sketch
Data = Open | Body | StreamProgress | StreamChunk | StreamEnd | StreamError | Cancel | Credit
Frame = Hello | Gossip | Data
