"""Who a node is, and what makes it a member: key, token, certificates, TLS (design D4, security rules 1 to 6).

The mesh's token is the seed of the mesh's certificate authority: every holder derives the same CA key, signs a leaf for its own
long-lived Ed25519 key, and forgets the CA key. A link is mutual TLS 1.3 that trusts this CA alone, so that a link proves two
things: the peer holds the token, and the peer holds the key whose hash is its id. Names inside certificates prove nothing, for
every member can mint a leaf with any name. This is the only module that imports `cryptography`.
"""

import base64
import binascii
import datetime as dt
import hashlib
import os
import secrets
import ssl
import tempfile
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshnode.errors import ConfigurationError, PeerError
from meshnode.names import MeshId, NodeId

_PREFIX = "mn1-"
_SECRET_BYTES = 32
_CHECK_BYTES = 4
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: a wrong clock must not take a node off the mesh, and expiry protects nothing that anyone with the
token could not sign anew."""
_VALID_FROM = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_VALID_TO = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Token:
    """The mesh's secret: 32 random bytes, never chosen by a person, since the CA certificate lets anyone guess off-line."""

    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> "Token":
        return cls(secrets.token_bytes(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token in its text form. Raises ConfigurationError saying what is wrong with it, without repeating it."""
        hint = "Print the right one with `meshnode token` on a member, or make a new mesh with `meshnode token new`."
        body = text.strip().removeprefix(_PREFIX)
        if not text.strip().startswith(_PREFIX):
            raise ConfigurationError(f"The mesh token must begin with {_PREFIX}.", hint=hint)
        try:
            raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError):
            raise ConfigurationError("The mesh token holds characters that no token has.", hint=hint) from None
        if len(raw) != _SECRET_BYTES + _CHECK_BYTES:
            size = len(_PREFIX) + len(body)
            raise ConfigurationError(f"The mesh token has {size} characters, not {len(Token.new().text())}.", hint=hint)
        if not secrets.compare_digest(_checksum(raw[:_SECRET_BYTES]), raw[_SECRET_BYTES:]):
            raise ConfigurationError("The mesh token has a typing error: its checksum does not match.", hint=hint)
        return cls(raw[:_SECRET_BYTES])

    def text(self) -> str:
        return _PREFIX + base64.b32encode(self.secret + _checksum(self.secret)).decode().rstrip("=").lower()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a running node needs to make and to check links."""

    node_id: NodeId
    mesh_id: MeshId
    server: ssl.SSLContext
    client: ssl.SSLContext


def new_node_key() -> bytes:
    """A new long-lived key in PEM form: keep it in a private file."""
    return _pem(Ed25519PrivateKey.generate())


def make_identity(token: Token, node_key: bytes) -> Identity:
    """Derive the mesh's CA, sign our leaf, build both TLS contexts. Raises ConfigurationError for an unusable key."""
    key = _load_key(node_key)
    seed = HKDF(hashes.SHA256(), _SECRET_BYTES, b"meshnode", b"mesh-ca-v1").derive(token.secret)
    authority = Ed25519PrivateKey.from_private_bytes(seed)
    mesh_id = MeshId(hashlib.sha256(authority.public_key().public_bytes_raw()).digest()[:8])
    ca = _ca_certificate(authority, mesh_id)
    node_id = _node_id(key.public_key())
    chain = node_key + _leaf_certificate(authority, ca, key, node_id).public_bytes(serialization.Encoding.PEM)
    trusted = ca.public_bytes(serialization.Encoding.PEM).decode()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        _configure(context, trusted, chain)
    server.num_tickets = 0  # a resumed session would skip the check of the peer's certificate
    return Identity(node_id=node_id, mesh_id=mesh_id, server=server, client=client)


def proven_id(certificate: bytes | None) -> NodeId:
    """The id of the peer that proved to hold `certificate` (DER, from `getpeercert(True)`). Raises PeerError."""
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerError("its certificate cannot be read", close_code=4403) from error
    if not isinstance(key, Ed25519PublicKey):
        raise PeerError("its key is not Ed25519", close_code=4403)
    return _node_id(key)


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(b"meshnode-token" + secret).digest()[:_CHECK_BYTES]


def _node_id(key: Ed25519PublicKey) -> NodeId:
    return NodeId(hashlib.sha256(key.public_bytes_raw()).digest()[:16])


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _load_key(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, InvalidKey, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            "node.key cannot be read.", hint="Move it away; the node then starts with a new identity."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            "node.key is not an Ed25519 key.", hint="Move it away; the node then starts with a new identity."
        )
    return key


def _ca_certificate(authority: Ed25519PrivateKey, mesh_id: MeshId) -> x509.Certificate:
    """Equal at every holder of the token, byte for byte: nothing in it is random, and Ed25519 signatures are not either."""
    name = _name(f"meshnode mesh {mesh_id.hex()}")
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, authority.public_key(), serial=1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, None)
    )


def _leaf_certificate(
    authority: Ed25519PrivateKey, ca: x509.Certificate, key: Ed25519PrivateKey, node_id: NodeId
) -> x509.Certificate:
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(_name(node_id.hex()), ca.subject, key.public_key(), serial=x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, None)
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, *, serial: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_TO)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _configure(context: ssl.SSLContext, trusted: str, chain: bytes) -> None:
    """Never `create_default_context`: it would trust the system's authorities beside ours."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.load_verify_locations(cadata=trusted)
    # The ssl module reads a chain from a file only: a private one, gone as soon as it was read.
    descriptor, path = tempfile.mkstemp(prefix="meshnode-")
    try:
        os.write(descriptor, chain)
        context.load_cert_chain(path)
    finally:
        os.close(descriptor)
        os.unlink(path)
