"""Tokens, authorities and node ids against the vectors; the derivation is done once more here from hashes alone."""

import base64
import hashlib
import hmac

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meshnode.errors import ConfigurationError
from meshnode.identity import Token, make_identity, mesh_id_of, node_id_of
from protocol.vectors import Vector, load

VECTORS = load("identity")


def public_key(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def pem_of(seed: bytes) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=lambda vector: vector["name"])
def test_a_token_gives_the_authority_and_the_mesh_id_of_the_vector(vector: Vector) -> None:
    secret = bytes.fromhex(vector["secret"])
    checked = secret + hashlib.sha256(b"meshnode-token-v1" + secret).digest()[:4]
    pseudorandom = hmac.digest(b"meshnode", secret, "sha256")
    seed = hmac.digest(pseudorandom, b"mesh-ca-v1\x01", "sha256")
    token = Token.parse(vector["text"])

    assert vector["text"] == "mn1-" + base64.b32encode(checked).decode().rstrip("=").lower()
    assert (token.secret, token.text()) == (secret, vector["text"])
    assert Token.parse(f"  {vector['text'].upper()}\n").secret == secret
    assert vector["ca_seed"] == seed.hex()
    assert vector["ca_public_key"] == public_key(seed).hex()
    assert vector["mesh_id"] == hashlib.sha256(public_key(seed)).hexdigest()[:16] == mesh_id_of(token).hex()


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=lambda vector: vector["name"])
def test_a_node_trusts_the_very_authority_certificate_of_the_vector(vector: Vector) -> None:
    identity = make_identity(Token.parse(vector["text"]), pem_of(bytes(32)))

    assert [der.hex() for der in identity.client.get_ca_certs(binary_form=True)] == [vector["ca_certificate"]]
    assert [der.hex() for der in identity.server.get_ca_certs(binary_form=True)] == [vector["ca_certificate"]]
    assert identity.mesh_id.hex() == vector["mesh_id"]


@pytest.mark.parametrize("vector", VECTORS["invalid_tokens"], ids=lambda vector: vector["name"])
def test_what_is_no_token_is_refused_with_the_words_of_the_vector(vector: Vector) -> None:
    with pytest.raises(ConfigurationError, match=vector["error"]):
        Token.parse(vector["text"])


@pytest.mark.parametrize("vector", VECTORS["nodes"], ids=lambda vector: vector["name"])
def test_a_node_key_gives_the_node_id_of_the_vector(vector: Vector) -> None:
    seed = bytes.fromhex(vector["private_seed"])

    assert vector["public_key"] == public_key(seed).hex()
    assert vector["node_id"] == hashlib.sha256(public_key(seed)).hexdigest()[:32]
    assert make_identity(Token(bytes(32)), pem_of(seed)).node_id.hex() == vector["node_id"]


@pytest.mark.parametrize("vector", VECTORS["leaves"], ids=lambda vector: vector["name"])
def test_a_leaf_is_signed_by_its_mesh_and_proves_the_node_id_of_the_vector(vector: Vector) -> None:
    der = bytes.fromhex(vector["certificate"])
    (mesh,) = (token for token in VECTORS["tokens"] if token["text"] == vector["token"])
    authority = x509.load_der_x509_certificate(bytes.fromhex(mesh["ca_certificate"]))
    leaf = x509.load_der_x509_certificate(der)
    key = leaf.public_key()

    leaf.verify_directly_issued_by(authority)
    assert isinstance(key, Ed25519PublicKey)
    assert key.public_bytes_raw() == public_key(bytes.fromhex(vector["private_seed"]))
    assert node_id_of(der).hex() == vector["node_id"]
