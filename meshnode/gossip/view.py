"""Members as status and routing see them, and in words why one is not routable (pure)."""

from collections.abc import Iterable
from typing import NamedTuple

from meshnode.errors import PeerError
from meshnode.gossip.dialling import Attempt, read_addr
from meshnode.gossip.member import Bridged, Member, Model, State
from meshnode.gossip.peer import Peer
from meshnode.gossip.record import Record
from meshnode.names import is_name, printable, short
from meshnode.wire.codec import decode_value, encode_value
from meshnode.wire.messages import Entry

NAME = "name"
VERSION = "version"
ADDR = "addr"
MEMORY = "memory"
DRAINING = "draining"
"""There while the node finishes what it has and takes nothing new; its value is NIL."""
NIL = b"\xc0"
MODEL = "model/"
REMOTE = "remote/"
MAX_ADDRS = 16
_MAX_MEMORY = 2**50


class Read(NamedTuple):
    """The decoded part of a record that is dear to decode."""

    models: tuple[Model, ...]
    remotes: tuple[Bridged, ...]


def read(record: Record) -> Read:
    return Read(models(record), remotes(record))


def encode_model(model: Model) -> bytes:
    """The value of a key `model/...`."""
    return encode_value(model)


def decode_model(raw: bytes) -> Model:
    """Raises PeerError when it is not one, or its names are none (security rule 23)."""
    model = decode_value(raw, Model)
    if not all(map(is_name, (model.name, *model.aliases))) or len(model.digest) not in (0, 32):
        raise PeerError("unreadable record: the model's name, alias or digest is none")
    if (
        not all(is_name(word) or word == "" for word in (model.origin, model.cost))
        or min(model.size, model.context_length, model.slots) < 0
    ):
        raise PeerError("unreadable record: the model's origin, cost or a number of it is none")
    return model


def _model_or_none(entry: Entry) -> Model | None:
    try:
        return decode_model(entry.value) if entry.value is not None else None
    except PeerError:
        return None


def models(record: Record) -> tuple[Model, ...]:
    """The models that can be read, in the order of their keys."""
    found = (_model_or_none(entry) for key, entry in sorted(record.entries.items()) if key.startswith(MODEL))
    return tuple(model for model in found if model)


def remotes(record: Record) -> tuple[Bridged, ...]:
    """The remote services that can be read, in the order of their keys. What is text in them is for people."""
    found = (_bridged_or_none(entry) for key, entry in sorted(record.entries.items()) if key.startswith(REMOTE))
    return tuple(remote for remote in found if remote)


def _bridged_or_none(entry: Entry) -> Bridged | None:
    try:
        remote = decode_value(entry.value, Bridged) if entry.value is not None else None
    except PeerError:
        return None
    if remote is None or not is_name(remote.name) or min(remote.models, remote.requests, remote.tokens, remote.errors) < 0:
        return None
    return remote


def unreadable(entries: Iterable[Entry]) -> list[str]:
    """Keys of models that say nothing to us: ignored, and worth a line in the log."""
    return [
        entry.key for entry in entries if entry.key.startswith(MODEL) and entry.value is not None and not _model_or_none(entry)
    ]


def _text(record: Record, key: str) -> str | None:
    raw = record.value(key)
    try:
        return None if raw is None else printable(decode_value(raw, str), 128)
    except PeerError:
        return None


def name(record: Record, peer: Peer) -> str:
    said = (_text(record, NAME) or "", peer.hello.name if peer.hello else "")
    return next(filter(is_name, said), short(record.origin))


def version(record: Record, peer: Peer) -> str:
    return _text(record, VERSION) or (peer.hello.version if peer.hello else "")


def addresses(record: Record, peer: Peer) -> tuple[str, ...]:
    """Where the node says that it can be dialled: well formed, and no more is known of them."""
    raw = record.value(ADDR)
    try:
        found = decode_value(raw, tuple[str, ...]) if raw is not None else ()
    except PeerError:
        found = ()
    if not found and peer.hello:
        found = peer.hello.listen
    return tuple(str(addr) for addr in map(read_addr, found[:MAX_ADDRS]) if addr)


def memory(record: Record) -> tuple[int, int]:
    """Total and available bytes of its machine; zeros when it does not say."""
    raw = record.value(MEMORY)
    try:
        total, available = decode_value(raw, tuple[int, int]) if raw is not None else (0, 0)
    except PeerError:
        return 0, 0
    return (total, available) if 0 <= available <= total <= _MAX_MEMORY else (0, 0)


def span(seconds: float) -> str:
    """A duration for people."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _unlinked(peer: Peer, attempt: Attempt | None, *, refused: str, now: float) -> str:
    if refused:
        return refused
    if peer.refused_until > now:
        return f"refused for {span(peer.refused_until - now)} more: {peer.refusal}"
    if peer.lost_at is not None:
        redialled = attempt is not None and attempt.reason and attempt.tried_at >= peer.lost_at
        redial = f"; redial of {attempt.tried}: {attempt.reason}" if attempt and redialled else ""
        return f"link lost {span(now - peer.lost_at)} ago: {peer.lost_reason}{redial}"
    if attempt is None or not attempt.addrs:
        return "no link yet: it gives no address that can be dialled from here"
    if attempt.reason:
        return f"cannot reach {attempt.tried}: {attempt.reason} (tried {span(now - attempt.tried_at)} ago)"
    return f"no link yet: dialling {attempt.addr}"


def reason(record: Record, peer: Peer, attempt: Attempt | None, *, refused: str, now: float) -> str:
    """Why the node is not routable, with our own evidence; empty when it is."""
    if record.left:
        return "left the mesh"
    if link := peer.link:
        if link.grace_until > now:
            return f"announced that it is busy for {span(link.grace_until - now)}"
        if record.value(DRAINING) is not None:
            return "draining: it finishes what it has, and takes nothing new"
        return f"no frame for {span(now - link.heard_at)}" if link.is_silent(now) else ""
    return "its link is being closed" if peer.links else _unlinked(peer, attempt, refused=refused, now=now)


def member(record: Record, peer: Peer, *, state: State, since: float | None, why_not: str, read: Read) -> Member:
    """`record` and what we know besides, as one value. `read` is what was decoded of it."""
    link = peer.link
    said = addresses(record, peer)
    return Member(
        id=record.origin,
        name=name(record, peer),
        state=state,
        since=since,
        draining=record.value(DRAINING) is not None,
        routable=not why_not,
        reason=why_not,
        last_seen=peer.last_seen,
        addr=link.addr if link and link.dialled else (said[0] if said else ""),
        addrs=said,
        rtt_ms=link.rtt_ms if link else None,
        version=version(record, peer),
        epoch=record.epoch,
        memory=memory(record),
        models=read.models,
        remotes=read.remotes,
        load=peer.load,
        load_at=peer.load_at,
        sketches=tuple(peer.sketches.values()),
    )
