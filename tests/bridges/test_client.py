"""The bridges' HTTP client over real sockets: what it refuses, what it keeps, and what a cut looks like."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trio
from bridges.serving import Asked, Wrap, scripted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshnode import url
from meshnode.bridges import tls
from meshnode.bridges.client import Ask, Client
from meshnode.bridges.failure import Cause, Failure

GET = Ask("GET", "/x")


async def say_ok(asked: Asked) -> None:
    await asked.answer(200, b"ok")


async def test_an_answer_comes_whole_and_its_connection_is_used_again() -> None:
    async with scripted(say_ok) as server:
        client = Client(server.url)
        answers = [await client.fetch(Ask("POST", "/v1/x?a=b", (("X-A", "1"),), b"body"), limit=10, seconds=5) for _ in range(3)]
        await client.close()

    assert [(head.status, body) for head, body in answers] == [(200, b"ok")] * 3
    assert server.connections == 1
    assert server.asked[0].path == "/v1/x?a=b"
    assert server.asked[0].body == b"body"
    assert server.asked[0].headers["x-a"] == "1"
    assert server.asked[0].headers["host"] == server.url.authority


async def test_a_path_of_the_service_comes_before_what_is_asked() -> None:
    async with scripted(say_ok) as server:
        await Client(server.url._replace(path="/base")).fetch(GET, limit=10, seconds=5)

    assert server.asked[0].path == "/base/x"


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async def redirect(asked: Asked) -> None:
        await asked.answer(302, b"", ("Location", "http://127.0.0.1:1/steal"))

    async with scripted(redirect) as server:
        head, _ = await Client(server.url).fetch(Ask("GET", "/x", (("Authorization", "Bearer key"),)), limit=10, seconds=5)

    assert head.status == 302
    assert len(server.asked) == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    async def once(asked: Asked) -> None:
        await say_ok(asked)
        await asked.stream.aclose()

    async with scripted(once) as server:
        client = Client(server.url)
        for _ in range(3):
            assert (await client.fetch(GET, limit=10, seconds=5))[1] == b"ok"

    assert server.connections == 3


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", Cause.CUT),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Cause.NOT_HTTP),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", Cause.CUT),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", Cause.CUT),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, Cause.TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000, Cause.TOO_LARGE),
    ],
)
async def test_an_answer_that_is_none_has_a_cause(raw: bytes, cause: Cause) -> None:
    async def misbehave(asked: Asked) -> None:
        await asked.write(raw)

    async with scripted(misbehave) as server:
        with pytest.raises(Failure) as caught:
            await Client(server.url).fetch(GET, limit=100_000, seconds=5)

    assert caught.value.cause is cause


async def test_a_server_that_says_nothing_is_not_waited_for_and_loses_its_connection() -> None:
    async def sleep(_: Asked) -> None:
        await trio.sleep_forever()

    async with scripted(sleep) as server:
        client = Client(server.url)
        with pytest.raises(Failure) as caught:
            await client.fetch(GET, limit=10, seconds=0.05)
        assert client._idle == []

    assert caught.value.cause is Cause.TOO_SLOW


async def test_a_wait_that_is_cut_and_begun_again_loses_nothing() -> None:
    async def slowly(asked: Asked) -> None:
        await asked.events(*[b"%d," % index for index in range(200)])

    async with scripted(slowly) as server:
        exchange = await Client(server.url).send(GET)
        came = b""
        data = None
        while data != b"":
            with trio.move_on_after(0.0005):
                await exchange.head()
                data = await exchange.read()
                came += data
        await exchange.close()

    assert came == b"".join(b"%d," % index for index in range(200))


async def test_nothing_listens_there() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(Failure, match="refused") as caught:
        await Client(url.parse(f"http://127.0.0.1:{port}", flag="URL")).send(GET)

    assert caught.value.cause is Cause.UNREACHABLE


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://[fe80::1]", "http://224.0.0.1", "http://100.100.100.200"])
async def test_addresses_that_no_bridge_may_ask_are_not_dialled(address: str) -> None:
    with pytest.raises(Failure) as caught:
        await Client(url.parse(address, flag="URL")).send(GET)

    assert caught.value.cause is Cause.FORBIDDEN


async def test_a_name_that_resolves_to_this_machine_is_refused_where_another_was_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def rebound(*_: object, **__: object) -> object:
        return [(2, 1, 6, "", ("127.0.0.1", 80))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", rebound)
    with pytest.raises(Failure, match="this machine") as caught:
        await Client(url.parse("http://service.example", flag="URL")).send(GET)

    assert caught.value.cause is Cause.FORBIDDEN


def certificate(name: str) -> tuple[str, bytes]:
    """A self-signed one for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    return pem.decode(), key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


@pytest.fixture
def secured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Wrap]:
    """The certificate of `localhost`, and what makes a connection of its server one of TLS."""
    pem, key = certificate("localhost")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(pem.encode() + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return pem, lambda stream: trio.SSLStream(stream, context, server_side=True, https_compatible=True)


async def test_tls_trusts_the_ca_that_was_given_and_checks_the_name(
    secured: tuple[str, Wrap],
) -> None:
    pem, wrap = secured
    async with scripted(say_ok, wrap=wrap) as server:
        named = server.url._replace(host="localhost")
        known = Client(named, secured_by=tls.context(ca=pem))
        assert [(await known.fetch(GET, limit=10, seconds=5))[1] for _ in range(2)] == [b"ok"] * 2
        assert server.connections == 1
        assert (await Client(server.url, secured_by=tls.context(insecure=True)).fetch(GET, limit=10, seconds=5))[1] == b"ok"
        for address, context in ((named, tls.context()), (server.url, tls.context(ca=pem))):
            with pytest.raises(Failure, match="cannot be trusted") as caught:
                await Client(address, secured_by=context).send(GET)
            assert caught.value.cause is Cause.TLS


async def test_tls_to_a_server_of_plain_http_says_so() -> None:
    async with scripted(say_ok) as server:
        with pytest.raises(Failure, match="http://") as caught:
            await Client(server.url, secured_by=tls.context(insecure=True)).send(GET)

    assert caught.value.cause is Cause.TLS


def test_a_text_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="PEM"):
        tls.context(ca="-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
