"""Every frame that nodes exchange: a frozen type each; the docstrings are the protocol (pure).

A frame is a msgpack array `[kind, *fields]`; a WebSocket message is the concatenation of one or more frames. Kinds below 64 must
be understood; kinds 64 to 127 may be ignored, and so may unknown trailing fields. Gossip kinds are below 16, inference kinds from
16 on. Limits and the codec are in `codec.py`.

Link life: both ends send HELLO at once, and nothing else before they have seen the other's. Stream ids are chosen by the end that
opens the stream: odd by the one that dialled the link, even by the other, never used twice on a link.
"""

import msgspec

from meshnode.inference import End, Phase
from meshnode.names import MeshId, ModelDigest, NodeId

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1


class ModelState(msgspec.Struct, frozen=True, array_like=True):
    """Live load of one loaded model of the sender (design D10). Times in ms, speeds in tokens per second; 0 = not measured."""

    name: str
    digest: ModelDigest
    state: str
    """loading, ready, failed or draining"""
    active: int = 0
    slots: int = 0
    queued: int = 0
    remaining_ms: int = 0
    kv_free_tokens: int = 0
    tokens_per_s: float = 0.0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One key of a record. `value` is opaque here (None is a tombstone); unknown keys are kept and carried on unharmed."""

    key: str
    version: int
    value: bytes | None


class RecordDelta(msgspec.Struct, frozen=True, array_like=True):
    """What the receiver lacks of `origin`'s record: every key with `from_version` < version <= `to_version`.

    `left` says that the origin announced its leave in this epoch.
    """

    origin: NodeId
    epoch: int
    incarnation: int
    from_version: int
    to_version: int
    entries: tuple[Entry, ...]
    left: bool = False


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First frame of both ends. `node` is only compared with the id proven in TLS, never trusted (close 4403 on a difference).

    `listen` are the addresses (`host:port`) at which the sender can be dialled.
    """

    protocol_min: int
    protocol_max: int
    mesh: MeshId
    node: NodeId
    name: str
    version: str
    epoch: int
    listen: tuple[str, ...] = ()


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The heartbeat: every second, and at once on a large change of load. Answered by PONG when `want_pong`."""

    sequence: int
    want_pong: bool
    load: tuple[ModelState, ...] = ()


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Answer to a PING that asked for one; gives the round trip. Never answered."""

    sequence: int
    load: tuple[ModelState, ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Records that the receiver lacks, by the sender's per-link knowledge. Never answered."""

    records: tuple[RecordDelta, ...]


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The sender leaves the mesh; final for its epoch. The receiver marks it as left and closes the link."""

    epoch: int


class Open(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Open stream `stream` to run one request, whose encoded `body_bytes` follow in BODY frames under the stream's credit."""

    stream: int
    body_bytes: int


class Body(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The next piece of the request, at most 32 KiB."""

    stream: int
    data: bytes


class StreamProgress(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """No token yet, and why; at least every 5 s until the first CHUNK."""

    stream: int
    phase: Phase
    done: int
    total: int


class StreamChunk(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """A piece of the answer; `token_ids` are little-endian 32-bit integers packed in bytes, `finish` is empty or the reason."""

    stream: int
    choice: int
    text: str
    token_ids: bytes
    finish: str = ""


class StreamEnd(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The answer is complete; the stream is closed. Carries the sender's load, fresher than the last PING."""

    stream: int
    end: End
    load: tuple[ModelState, ...] = ()


class StreamError(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """There will be no answer, or no more of it; the stream is closed. `code` is one of `errors.py`."""

    stream: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    load: tuple[ModelState, ...] = ()


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """The opener wants no more; the receiver stops the work and sends nothing further on the stream. Unknown streams: ignored."""

    stream: int


class Credit(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """The receiver of data frames (BODY, CHUNK) on `stream` will take `bytes` more of them. Each direction starts with 64 KiB."""

    stream: int
    bytes: int


Gossip = Ping | Pong | Delta | Leave
Data = Open | Body | StreamProgress | StreamChunk | StreamEnd | StreamError | Cancel | Credit
Frame = Hello | Gossip | Data
