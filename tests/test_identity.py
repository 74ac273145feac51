import datetime
import hashlib
import ssl
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import ConfigurationError, PeerError
from meshnode.identity import Identity, Token, make_identity, mesh_id_of, new_node_key, node_id_of

TOKEN = Token.new()


def identity(token: Token = TOKEN) -> Identity:
    return make_identity(token, new_node_key())


@given(secret=st.binary(min_size=32, max_size=32))
def test_a_token_survives_being_written_and_read(secret: bytes) -> None:
    token = Token(secret)

    assert Token.parse(token.text()) == token
    assert Token.parse(f"  {token.text().upper()}\n") == token
    assert token.text().startswith("mn1-")
    assert len(token.text()) == 62


@given(position=st.integers(4, 61), letter=st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_wrong_letter_is_a_typing_error(position: int, letter: str) -> None:
    text = TOKEN.text()
    if text[position] == letter:
        return
    with pytest.raises(ConfigurationError, match="typing error"):
        Token.parse(text[:position] + letter + text[position + 1 :])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "begin with"),
        ("hunter2", "begin with"),
        ("mn1-abc", "too short"),
        (TOKEN.text()[:-1], "too short: 58 .* here are 57"),
        (TOKEN.text() + "a", "too long"),
        (TOKEN.text()[:-1] + "1", "a character that no token has"),
        (TOKEN.text()[:-1] + "é", "a character that no token has"),
    ],
)
def test_a_wrong_form_is_refused_with_the_problem_and_the_command(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Token.parse(text)

    assert "meshnode token new" in caught.value.hint
    assert not text or text not in str(caught.value)


def test_a_token_does_not_show_itself() -> None:
    for shown in (repr(TOKEN), str(TOKEN), f"{TOKEN}"):
        assert TOKEN.text()[4:10] not in shown
        assert TOKEN.secret.hex()[:8] not in shown


def test_new_tokens_differ() -> None:
    assert Token.new() != Token.new()


def test_the_same_token_gives_the_same_mesh_and_another_gives_another() -> None:
    assert identity().mesh_id == identity().mesh_id == mesh_id_of(TOKEN)
    assert len(mesh_id_of(TOKEN)) == 8
    assert mesh_id_of(Token.new()) != mesh_id_of(TOKEN)


def test_the_token_is_derived_as_written_down() -> None:
    """A fixed vector: nodes of different versions must find the same authority, or a mesh falls apart at an update."""
    token = Token(bytes(range(32)))

    assert token.text() == "mn1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyp2axpgze"
    assert mesh_id_of(token).hex() == "0afb4fb378727dc8"


def test_the_node_id_belongs_to_the_key_whatever_the_token() -> None:
    key = new_node_key()

    assert make_identity(TOKEN, key).node_id == make_identity(Token.new(), key).node_id
    assert len(make_identity(TOKEN, key).node_id) == 16
    private = serialization.load_pem_private_key(key, password=None)
    assert isinstance(private, Ed25519PrivateKey)
    raw = private.public_key().public_bytes_raw()
    assert make_identity(TOKEN, key).node_id == hashlib.sha256(raw).digest()[:16]


@pytest.mark.parametrize("pem", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_node_key_is_a_configuration_error(pem: bytes) -> None:
    with pytest.raises(ConfigurationError, match="key cannot be read"):
        make_identity(TOKEN, pem)


def test_a_node_key_of_another_kind_is_refused() -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigurationError, match="not an Ed25519 key"):
        make_identity(TOKEN, pem)


def test_the_contexts_are_as_the_security_rules_say() -> None:
    one = identity()
    for context in (one.server, one.client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert not context.check_hostname
        assert context.verify_flags & 0x200000
        (authority,) = context.get_ca_certs()
        assert f"meshnode mesh {one.mesh_id.hex()}" in str(authority["subject"])
    assert one.server.num_tickets == 0


def test_the_private_key_touches_the_disk_only_encrypted_in_a_private_file(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, bytes]] = []
    load = ssl.SSLContext.load_cert_chain

    def spy(context: ssl.SSLContext, path: str, *args: Any, **kwargs: Any) -> None:
        seen.append((path, stat.S_IMODE(Path(path).stat().st_mode), Path(path).read_bytes()))
        load(context, path, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    identity()

    assert len(seen) == 2
    for path, mode, content in seen:
        assert Path(path).parent == Path(tempfile.gettempdir())
        assert mode == 0o600
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in content
        assert b"BEGIN PRIVATE KEY" not in content
        assert not Path(path).exists()


async def shake_hands(dialler: ssl.SSLContext, acceptor: ssl.SSLContext) -> tuple[Any, Any]:
    """Both streams of a finished TLS handshake."""
    left, right = trio.testing.memory_stream_pair()
    ours = trio.SSLStream(left, dialler)
    theirs = trio.SSLStream(right, acceptor, server_side=True)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.do_handshake)
            nursery.start_soon(theirs.do_handshake)
    return ours, theirs


async def test_two_nodes_of_a_mesh_prove_their_ids_to_each_other() -> None:
    one, other = identity(), identity()
    ours, theirs = await shake_hands(one.client, other.server)

    assert node_id_of(ours.getpeercert(binary_form=True)) == other.node_id
    assert node_id_of(theirs.getpeercert(binary_form=True)) == one.node_id
    assert ours.version() == "TLSv1.3"


async def test_a_handshake_cannot_be_resumed() -> None:
    """A resumed session would skip the certificate check."""
    one, other = identity(), identity()
    ours, theirs = await shake_hands(one.client, other.server)
    await theirs.send_all(b"hello")
    assert await ours.receive_some() == b"hello"

    assert not ours.session.has_ticket


async def test_a_certificate_of_the_authority_is_valid_whatever_the_clock_says() -> None:
    ours, _ = await shake_hands(identity().client, identity().server)
    leaf = x509.load_der_x509_certificate(ours.getpeercert(binary_form=True))

    assert leaf.not_valid_before_utc == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert leaf.not_valid_after_utc.year == 9999


def certificate(key: Any, name: str, algorithm: Any) -> bytes:
    """Signed by itself, with any name: what a stranger or a lying member can make."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def test_the_id_is_the_keys_whatever_the_certificate_calls_itself() -> None:
    key = Ed25519PrivateKey.generate()

    expected = hashlib.sha256(key.public_key().public_bytes_raw()).digest()[:16]
    assert node_id_of(certificate(key, identity().node_id.hex(), None)) == expected


def test_a_certificate_with_another_kind_of_key_has_no_id() -> None:
    from cryptography.hazmat.primitives import hashes

    with pytest.raises(PeerError, match="Ed25519") as caught:
        node_id_of(certificate(ec.generate_private_key(ec.SECP256R1()), "x", hashes.SHA256()))
    assert caught.value.close_code == 4403
    with pytest.raises(PeerError, match="Ed25519"):
        node_id_of(None)
