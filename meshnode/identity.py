"""Who a node is, and which mesh it belongs to: token, node key, certificates, TLS contexts.

The mesh token is the seed of the mesh's certificate authority (design D4): every holder of the token derives the same Ed25519
CA key, signs a certificate for its own long-lived node key, and forgets the CA key. A link is mutual TLS 1.3 that trusts this one
CA, so who completes the handshake has the token; and the node id is a hash of the key that the peer proved in it, so who names
himself otherwise is found out. Names inside certificates mean nothing: any member can sign any.

What is switched off, and why (security rule 4; each was tried):
- session tickets: a resumed session skips the certificate check;
- host names: nothing to compare them with, the id is the identity;
- expiry: clocks on a LAN are wrong, and every member can sign anew anyway.

This is the only module that knows `cryptography`.
"""

import base64
import binascii
import datetime
import hashlib
import secrets
import ssl
import tempfile
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshnode.errors import ConfigurationError, PeerError
from meshnode.names import MeshId, NodeId

_PREFIX = "mn1-"
_SECRET_BYTES = 32
_CHECK_BYTES = 4
_LETTERS = 58
"""Of base32 for secret and checksum, without padding."""
_NEW_TOKEN = "Make one with: meshnode token new"  # noqa: S105 - a hint for people, not a secret
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME, which Python's ssl module does not name."""
_BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def _checksum(secret: bytes) -> bytes:
    """Against typing errors only; it reveals nothing that is not already in the token."""
    return hashlib.sha256(b"meshnode-token-v1" + secret).digest()[:_CHECK_BYTES]


@dataclass(frozen=True, repr=False)
class Token:
    """The secret that all nodes of a mesh share. `text` is the only way to see it; `repr` and `str` do not show it."""

    secret: bytes

    @classmethod
    def new(cls) -> "Token":
        return cls(secrets.token_bytes(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token that a person typed or a file holds. Raises ConfigurationError: what is wrong with it, without quoting it."""
        letters = text.strip().lower()
        if not letters.startswith(_PREFIX):
            raise _no_token(f"it must begin with {_PREFIX!r}")
        letters = letters.removeprefix(_PREFIX)
        if len(letters) != _LETTERS:
            length = "short" if len(letters) < _LETTERS else "long"
            raise _no_token(f"it is too {length}: {_LETTERS} letters and digits follow {_PREFIX!r}, here are {len(letters)}")
        try:
            raw = base64.b32decode(letters.upper() + "=" * (-len(letters) % 8))
        except (binascii.Error, ValueError) as error:
            raise _no_token("it has a character that no token has; only a to z and 2 to 7 occur") from error
        token = cls(raw[:_SECRET_BYTES])
        if not secrets.compare_digest(token.text(), _PREFIX + letters):
            raise _no_token("its checksum is wrong: there is a typing error in it")
        return token

    def text(self) -> str:
        """The token itself: to be shown or stored on purpose, never logged."""
        raw = self.secret + _checksum(self.secret)
        return _PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return "Token(secret)"


def _no_token(why: str) -> ConfigurationError:
    return ConfigurationError(f"This is not a mesh token: {why}.", hint=_NEW_TOKEN)


def _ca_key(token: Token) -> Ed25519PrivateKey:
    seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=b"meshnode", info=b"mesh-ca-v1").derive(token.secret)
    return Ed25519PrivateKey.from_private_bytes(seed)


def mesh_id_of(token: Token) -> MeshId:
    """The mesh's fingerprint: for display and sorting, never for trust."""
    return _fingerprint(_ca_key(token))


def _fingerprint(ca_key: Ed25519PrivateKey) -> MeshId:
    return MeshId(hashlib.sha256(ca_key.public_key().public_bytes_raw()).digest()[:8])


def _node_id(key: Ed25519PublicKey) -> NodeId:
    return NodeId(hashlib.sha256(key.public_bytes_raw()).digest()[:16])


def node_id_of(der: bytes | None) -> NodeId:
    """The id of who proved this certificate in TLS (security rule 1). Raises PeerError when its key is not Ed25519."""
    key = x509.load_der_x509_certificate(der).public_key() if der else None
    if not isinstance(key, Ed25519PublicKey):
        raise PeerError("a certificate without an Ed25519 key", close_code=4403)
    return _node_id(key)


def new_node_key() -> bytes:
    """A new node's identity, as PEM, to be kept in a private file."""
    return _pem(Ed25519PrivateKey.generate(), serialization.NoEncryption())


def _pem(key: Ed25519PrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _load_node_key(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            "The node's key cannot be read.", hint="Restore node.key, or delete it for a new identity."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError("The node's key is not an Ed25519 key.", hint="Delete node.key for a new identity.")
    return key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, *, serial: int) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(serial)
    return builder.not_valid_before(_BEGINNING).not_valid_after(_END)


def _ca_certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """The same bytes at every node: nothing in it but the token's key."""
    name = _name(f"meshnode mesh {_fingerprint(key).hex()}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, key.public_key(), serial=1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )


def _leaf_certificate(ca_key: Ed25519PrivateKey, ca: x509.Certificate, node: Ed25519PublicKey) -> x509.Certificate:
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(_name(_node_id(node).hex()), ca.subject, node, serial=x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, None)
    )


def _context(protocol: int, ca: x509.Certificate, leaf: x509.Certificate, key: Ed25519PrivateKey) -> ssl.SSLContext:
    """A bare context: `create_default_context` would trust the system's authorities too."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    context.load_verify_locations(cadata=ca.public_bytes(serialization.Encoding.DER))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    _load_chain(context, leaf, key)
    return context


def _load_chain(context: ssl.SSLContext, leaf: x509.Certificate, key: Ed25519PrivateKey) -> None:
    """The ssl module reads keys from files only: one of mode 0600, gone at once, encrypted in case we are killed in between."""
    password = secrets.token_bytes(32).hex().encode()
    chain = _pem(key, serialization.BestAvailableEncryption(password)) + leaf.public_bytes(serialization.Encoding.PEM)
    with tempfile.NamedTemporaryFile("wb") as file:
        file.write(chain)
        file.flush()
        context.load_cert_chain(file.name, password=password)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A node in a mesh: what it is called there, and the TLS contexts of its two roles."""

    node_id: NodeId
    mesh_id: MeshId
    server: ssl.SSLContext
    client: ssl.SSLContext


def make_identity(token: Token, key_pem: bytes) -> Identity:
    """Sign our own certificate as the token allows. Raises ConfigurationError when `key_pem` is no node key."""
    key = _load_node_key(key_pem)
    ca_key = _ca_key(token)
    ca = _ca_certificate(ca_key)
    leaf = _leaf_certificate(ca_key, ca, key.public_key())
    return Identity(
        node_id=_node_id(key.public_key()),
        mesh_id=_fingerprint(ca_key),
        server=_context(ssl.PROTOCOL_TLS_SERVER, ca, leaf, key),
        client=_context(ssl.PROTOCOL_TLS_CLIENT, ca, leaf, key),
    )
