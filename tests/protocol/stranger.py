"""A node of another make: written from `protocol/SPEC.md` and the vectors alone, importing nothing of this program.
It dials one link, keeps records, may ask its peer for a model, and leaves; events are JSON lines. Numbers: sections of SPEC.
"""

import argparse
import base64
import hashlib
import json
import os
import signal
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from wsproto import ConnectionType, WSConnection, events

HELLO, PING, PONG, DELTA, LEAVE, DIGEST, VERSIONS, PULL, PROBE, FINDING, ACCUSE = range(11)
OPEN, BODY, PROGRESS, CHUNK, END, ERROR, CANCEL, CREDIT = range(16, 24)
(ALIVE, DOWN, LEFT), KINDS = (
    range(3),
    {*range(11), *range(16, 24), *range(64, 128)},
)  # those from 64 on are unknown, and may be ignored (14)


class Closing(Exception):
    """This node closes the link: with which code, and why."""


def ca_key_of(token: str) -> Ed25519PrivateKey:
    text = token.strip().upper()
    raw = base64.b32decode(text[4:] + "======")
    checksum = hashlib.sha256(b"meshnode-token-v1" + raw[:32]).digest()[:4]
    if len(raw) != 36 or raw[32:] != checksum or text != "MN1-" + base64.b32encode(raw).decode().rstrip("="):
        raise ValueError("not a token")
    return Ed25519PrivateKey.from_private_bytes(HKDF(SHA256(), 32, b"meshnode", b"mesh-ca-v1").derive(raw[:32]))


def fingerprint(key: Ed25519PublicKey, size: int) -> bytes:  # a mesh id is 8 bytes of the CA's key, a node id 16 of the node's
    return hashlib.sha256(key.public_bytes_raw()).digest()[:size]


def certificate(ca: Ed25519PrivateKey, key: Ed25519PublicKey, serial: int) -> x509.Certificate:  # the CA's, or a leaf
    issuer = subject = f"meshnode mesh {fingerprint(ca.public_key(), 8).hex()}"
    usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    extensions = {x509.BasicConstraints(True, 0): True, usage: True, x509.SubjectKeyIdentifier.from_public_key(key): False}
    if key != ca.public_key():
        subject = fingerprint(key, 16).hex()
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key())
        extensions = {x509.BasicConstraints(False, None): True, uses: False, authority: False}
    first, last = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    names = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (issuer, subject))
    builder = x509.CertificateBuilder(next(names), next(names), key, serial, first, last)
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca, None)


def tls_of(ca: Ed25519PrivateKey, key: Ed25519PrivateKey) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME: dates are not checked (3.2)
    context.load_verify_locations(cadata=certificate(ca, ca.public_key(), 1).public_bytes(Encoding.DER))
    leaf = certificate(ca, key.public_key(), x509.random_serial_number()).public_bytes(Encoding.PEM)
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + leaf)
        context.load_cert_chain(file.name)
    return context


def frames_in(message: bytes) -> list[list[Any]]:  # those that this version knows; fields are not checked
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogateescape")
    unpacker.feed(message)
    frames = [unpacker.unpack() for _ in iter(unpacker.tell, len(message))]
    wrong = [frame for frame in frames if type(frame) is not list or type((frame or "?")[0]) is not int or frame[0] not in KINDS]
    if wrong or not 1 <= len(frames) <= 8192 or len(message) > 262_144:
        raise Closing(4400, "not frames, or of an unknown kind, or too many")
    return [frame for frame in frames if frame[0] < 64]


class Record(NamedTuple):
    epoch: int
    incarnation: int = 0
    version: int = 0
    entries: dict[str, tuple[int, bytes | None]] = {}  # noqa: RUF012 (never changed in place)
    standing: int = ALIVE


def buckets_of(records: dict[bytes, Record]) -> list[int]:  # the hashes of the 64 buckets and, last, the state hash
    buckets = [0] * 65
    for origin, record in records.items():
        if record.version and record.standing == ALIVE:
            digest = hashlib.sha256(b"meshnode-record-v1" + origin + struct.pack("<QIQ", *record[:3])).digest()
            for bucket in (origin[-1] % 64, 64):
                buckets[bucket] ^= int.from_bytes(digest[:8])
    return buckets


def applied(have: Record, delta: list[Any]) -> Record | None:  # (6.3, 6.4); None: a gap
    _, epoch, incarnation, start, end, entries, standing, *_ = [*delta, ALIVE]
    if start > end or any(not start < version <= end for _, version, *_ in entries):
        raise Closing(4400, "a delta with versions outside of its bounds")
    if epoch < have.epoch:
        return have
    base = have if epoch == have.epoch else Record(epoch)
    if start > base.version:
        return None
    after = dict(base.entries)
    for key, *told in entries:
        ranks = [(version, value is not None, value or b"") for version, value, *_ in (after.get(key, (-1, None)), told)]
        if ranks[1] > ranks[0]:
            after[key] = told[0], told[1]
    latest, agreed = (
        max((incarnation, standing), (base.incarnation, base.standing)) if base.standing < LEFT > standing else (0, LEFT)
    )
    return Record(epoch, max(latest, incarnation, base.incarnation), max(end, base.version), after, agreed)


class Stranger:
    def __init__(self, ca: Ed25519PrivateKey, address: tuple[str, int], model: str | None) -> None:
        key = Ed25519PrivateKey.generate()
        self.mesh, self.id = fingerprint(ca.public_key(), 8), fingerprint(key.public_key(), 16)
        self.epoch, self.model, self.peer = time.time_ns() // 1_000_000, model, b""
        told = [("name", "stranger"), ("version", "0"), ("addr", [])]
        record = Record(self.epoch, 0, 3, {key: (place, msgpack.packb(value)) for place, (key, value) in enumerate(told, 1)})
        self.records, self.wants, self.said = {self.id: record}, dict[bytes, list[Any]](), set[str]()
        self.load, self.message, self.sequence, self.taken, self.beat, self.heard = list[Any](), b"", 0, 0, 0.0, time.monotonic()
        self.socket = tls_of(ca, key).wrap_socket(socket.create_connection(address, timeout=5))
        proven = x509.load_der_x509_certificate(self.socket.getpeercert(True) or b"").public_key()
        self.proven = fingerprint(proven, 16) if isinstance(proven, Ed25519PublicKey) else b""
        self.web = WSConnection(ConnectionType.CLIENT)
        self.put(events.Request(host="mesh", target="/"))

    def say(self, event: str, **facts: Any) -> None:  # all but a chunk of an answer is news only once
        if (line := json.dumps({"event": event, **facts})) not in self.said or event == "chunk":
            self.said.add(line)
            print(line, flush=True)  # noqa: T201 (what a program is for)

    def put(self, event: events.Event) -> None:
        self.socket.sendall(self.web.send(event))

    def send(self, *frame: Any) -> None:
        self.put(events.BytesMessage(msgpack.packb(frame)))

    def messages(self, seconds: float) -> Iterator[bytes]:  # what comes; exits once the peer has closed
        self.socket.settimeout(seconds)
        with suppress(TimeoutError):
            self.web.receive_data(self.socket.recv(65_536) or None)
        self.socket.settimeout(20)
        for event in self.web.events():
            if isinstance(event, events.Ping | events.CloseConnection) and self.web.state.name in ("OPEN", "REMOTE_CLOSING"):
                self.put(event.response())
            if isinstance(event, events.AcceptConnection):
                self.send(HELLO, 1, 1, self.mesh, self.id, "stranger", "0", self.epoch, os.urandom(8), [], None)
            elif isinstance(event, events.BytesMessage):
                self.message += event.data
                if event.message_finished:
                    yield self.message
                    self.message = b""
            elif isinstance(event, events.CloseConnection):
                self.say("left", code=event.code, reason=event.reason)
                raise SystemExit
            elif not isinstance(event, events.Ping | events.Pong):
                raise Closing(4400, "a text message, or no WebSocket")

    def introduce(self, hello: list[Any], *more: Any) -> None:
        kind, low, high, mesh, node, name, version, *life = hello
        holds = {4400: kind == HELLO and not more, 4403: node == self.proven, 4404: mesh == self.mesh, 4406: low <= 1 <= high}
        for code in (code for code, right in holds.items() if not right):
            raise Closing(code, "refused by its HELLO")
        self.peer, self.records[node] = node, Record(life[0])
        self.say("linked", name=name, id=node.hex(), version=version)
        self.tell(self.id, 0)

    def tell(self, origin: bytes, start: int) -> None:
        record = self.records[origin]
        entries = [[key, version, value] for key, (version, value) in record.entries.items() if version > start]
        self.send(DELTA, [[origin, record.epoch, record.incarnation, start, record.version, entries, record.standing]])

    def receive(self, *frames: list[Any]) -> None:
        self.heard = time.monotonic()
        for frame in frames:
            (self.gossip if frame[0] < OPEN else self.stream)(*frame)

    def gossip(self, kind: int, first: Any, *fields: Any) -> None:  # noqa: PLR0912 - one arm a kind
        if kind == PING:
            want_pong, theirs, self.load, *_ = [*fields, []]
            if want_pong:
                self.send(PONG, first, [])
            if theirs == buckets_of(self.records)[64].to_bytes(8):
                self.say("hash")
        elif kind == DELTA:
            for delta in first:
                self.learn(delta[0], delta)
        elif kind == LEAVE:
            raise Closing(1000, "the peer left")
        elif kind == DIGEST:
            ours, theirs = buckets_of(self.records), struct.unpack(">64Q", first)
            bits = sum(1 << bucket for bucket in range(64) if ours[bucket] != theirs[bucket])
            rows = [[node, *r[:3], r.standing] for node, r in self.records.items() if bits >> node[-1] % 64 & 1 and r.version]
            if bits:  # all of a mesh fits into 16 KiB
                self.send(VERSIONS, bits.to_bytes(8, "little"), rows)
        elif kind == PULL:
            for origin, epoch, start, *_ in first:
                record = self.records.get(origin, Record(-1))
                if (epoch, ALIVE, start) < (record.epoch, record.standing, record.version):
                    self.tell(origin, start if epoch == record.epoch else 0)
        elif kind == PROBE:
            self.send(FINDING, first, "heard" if first == self.peer else "silent" if first in self.records else "unknown")
        elif kind == ACCUSE:
            own = self.records[self.id]
            if (first, *fields[:2]) == (self.id, own.epoch, own.incarnation):  # 9.6
                self.records[self.id] = own._replace(incarnation=own.incarnation + 1)
                self.tell(self.id, own.version)
        elif kind not in (PONG, FINDING):
            raise Closing(4400, f"kind {kind} was not due")

    def learn(self, origin: bytes, delta: list[Any]) -> None:
        have = self.records.get(origin, Record(0))
        if (
            origin == self.id
            or (delta[6:7] == [DOWN] and origin not in self.records)
            or (have.standing == LEFT and delta[1] <= have.epoch)
        ):
            return  # 6.5
        if (after := applied(have, delta)) is None:
            self.wants[origin] = [origin, have.epoch, have.version]
        else:
            self.records[origin] = after
            if (name := after.entries.get("name", (0, None))[1]) and after.standing != LEFT:
                self.say("member", name=msgpack.unpackb(name), id=origin.hex())

    def heartbeat(self) -> None:  # each second; PULL and the question that waits go with it
        self.send(PING, self.sequence, self.sequence % 5 == 0, buckets_of(self.records)[64].to_bytes(8), [])
        self.sequence, self.beat = self.sequence + 1, time.monotonic() + 1
        if self.wants:
            self.send(PULL, list(self.wants.values()))
            self.wants.clear()
        for name, digest in [(name, digest) for name, digest, state, *_ in self.load if (name, state) == (self.model, "ready")]:
            model = f"{name}#{digest.hex()[:8]}" if digest else name
            body = {"id": self.id.hex(), "model": model, "messages": [{"role": "user", "content": "Hello!"}], "hops": 1}
            self.send(OPEN, 1, len(msgpack.packb(body)))
            self.send(BODY, 1, msgpack.packb(body))
            self.model = None

    def stream(self, kind: int, number: int, *fields: Any) -> None:
        if kind == OPEN:
            self.send(ERROR, number, "model_not_found", "this node serves nothing")
        elif kind == CHUNK:
            self.say("chunk", text=fields[1])
            self.taken += 16 + len(fields[1].encode()) + len(fields[2])
            if self.taken >= 32_768:  # half of the window (10.2)
                self.send(CREDIT, number, self.taken)
                self.taken = 0
        elif kind in (END, ERROR):
            facts = {"tokens": fields[0][1][1]} if kind == END else {"code": fields[0], "message": fields[1]}
            self.say("end" if kind == END else "error", **facts)

    def run(self, seconds: float) -> None:  # take part for so long, or until SIGTERM; then leave
        until, stops = time.monotonic() + seconds, list[int]()
        signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
        try:
            while not stops and time.monotonic() < until:
                for message in self.messages(0.05):
                    (self.receive if self.peer else self.introduce)(*frames_in(message))
                if time.monotonic() > self.heard + (10 if self.peer else 5):
                    raise Closing(4408, "silent")
                if self.peer and time.monotonic() >= self.beat:
                    self.heartbeat()
            self.send(LEAVE, self.epoch)
            raise Closing(1001, "it leaves")
        except (Closing, TypeError, ValueError, LookupError, AttributeError, struct.error, msgpack.UnpackException) as why:
            self.put(events.CloseConnection(*(why.args if isinstance(why, Closing) else (4400, repr(why)[:100]))))
        for _ in range(20):  # a second at most for the other's close (3.3)
            list(self.messages(0.05))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for given in ("token_file", "host", "port"):
        parser.add_argument(given)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--model")
    wanted = parser.parse_args()
    Stranger(ca_key_of(Path(wanted.token_file).read_text()), (wanted.host, int(wanted.port)), wanted.model).run(wanted.seconds)
