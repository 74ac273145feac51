"""More clients that are broken or hostile, beside the table of test_api_server.py; and all of them at once, for a long time."""

import gc
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
from api.serving import CHAT, CLOSE, Serving, app_of, get, post, read_all, served
from api.test_api_server import CASES as FIRST
from api.test_api_server import CHUNKED, POST_HEAD, SHORT

from meshnode.testing import FakeWorker

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
UPGRADE = get(b"/healthz", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: %b", b"HTTP2-Settings: AAMAAABk")
SAYING = b'{"model":"m","messages":[{"role":"user","content":%b}]}'

CASES: dict[str, tuple[bytes, bytes]] = {
    "a length of five thousand digits": (POST_HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
    "a length of thirty digits": (POST_HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", b"400"),
    "a length with a sign": (POST_HEAD + b"Content-Length: +5\r\n\r\nabcde", b"400"),
    "a length with an underscore": (POST_HEAD + b"Content-Length: 1_0\r\n\r\nabcde", b"400"),
    "a length in hexadecimal": (POST_HEAD + b"Content-Length: 0x5\r\n\r\nabcde", b"400"),
    "an empty length": (POST_HEAD + b"Content-Length:\r\n\r\nabcde", b"400"),
    "a chunk size of forty digits": (POST_HEAD + CHUNKED + b"\r\n\r\n" + b"f" * 40 + b"\r\nabc", b"400"),
    "a negative chunk size": (POST_HEAD + CHUNKED + b"\r\n\r\n-5\r\nabcde\r\n0\r\n\r\n", b"400"),
    "a chunk longer than its size": (POST_HEAD + CHUNKED + b"\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", b"400"),
    "an endless chunk extension": (POST_HEAD + CHUNKED + b"\r\n\r\n3;x=" + b"y" * 70_000, b"431"),
    "endless trailers": (POST_HEAD + CHUNKED + b"\r\n\r\n3\r\nabc\r\n0\r\n" + b"X: 1\r\n" * 20_000, b"431"),
    "chunked twice": (POST_HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", b"400"),
    "chunked and identity": (POST_HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", b"400"),
    "chunked under another spelling": (POST_HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", b"400"),
    "a space before the colon": (HEALTH + b"X : 1\r\n\r\n", b"400"),
    "a line break in a header": (HEALTH + b"X: a\rb\r\n\r\n", b"400"),
    "a header of no name": (HEALTH + b": 1\r\n\r\n", b"400"),
    "a folded header": (HEALTH + b"X: a\r\n b\r\n\r\n", b"200"),
    "a fold first": (b"GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n", b"400"),
    "line feeds alone": (HEALTH.replace(b"\r\n", b"\n") + b"\n", b"200"),
    "carriage returns alone": (HEALTH.replace(b"\r\n", b"\r") + b"\r", b"408"),
    "a lower-case method": (get(b"/healthz", CLOSE, method=b"get"), b"405"),
    "an endless method": (get(b"/healthz", CLOSE, method=b"G" * 70_000), b"431"),
    "a method of symbols": (get(b"/healthz", CLOSE, method=b"G(T"), b"400"),
    "TRACE": (get(b"/healthz", CLOSE, method=b"TRACE"), b"405"),
    "HTTP/0.9": (b"GET /healthz HTTP/0.9\r\nHost: localhost\r\n\r\n", b"200"),
    "HTTP/1.2": (b"GET /healthz HTTP/1.2\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"200"),
    "HTTP/11": (b"GET /healthz HTTP/11\r\nHost: localhost\r\n\r\n", b"400"),
    "two spaces": (b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
    "a target of a star": (get(b"*", CLOSE, method=b"OPTIONS"), b"400"),
    "an endless path": (get(b"/" + b"a" * 70_000, CLOSE), b"431"),
    "a path within the limit": (get(b"/v1/models/" + b"a" * 15_000, CLOSE), b"404"),
    "a way up": (get(b"/v1/models/../../etc/passwd", CLOSE), b"404"),
    "an encoded way up": (get(b"/v1/models/%2e%2e%2f%2e%2e%2fetc/passwd", CLOSE), b"404"),
    "a double slash": (get(b"//healthz", CLOSE), b"404"),
    "a NUL in the path": (get(b"/v1/models/%00", CLOSE), b"400"),
    "a broken escape": (get(b"/v1/models/%zz%", CLOSE), b"404"),
    "a fragment": (get(b"/healthz#x", CLOSE), b"404"),
    "an empty Host": (get(b"/healthz", CLOSE, host=b""), b"421"),
    "a Host of no port": (get(b"/healthz", CLOSE, host=b"localhost:99999"), b"421"),
    "a Host with an open bracket": (get(b"/healthz", CLOSE, host=b"[::1"), b"421"),
    "loopback as one number": (get(b"/healthz", CLOSE, host=b"2130706433"), b"421"),
    "loopback as a subdomain": (get(b"/healthz", CLOSE, host=b"127.0.0.1.evil.example"), b"421"),
    "two names in a Host": (get(b"/healthz", CLOSE, host=b"localhost, evil.example"), b"421"),
    "a file's Origin": (get(b"/healthz", CLOSE, b"Origin: file://"), b"403"),
    "an Origin that begins well": (get(b"/healthz", CLOSE, b"Origin: http://localhost.evil.example"), b"403"),
    "two Origins": (get(b"/healthz", CLOSE, b"Origin: http://localhost", b"Origin: http://evil.example"), b"403"),
    "a cross-site request in capitals": (get(b"/healthz", CLOSE, b"Sec-Fetch-Site: CROSS-SITE"), b"403"),
    "a key of ours that is none": (get(b"/healthz", CLOSE, b"Authorization: Bearer mk_"), b"401"),
    "a key of bytes": (get(b"/healthz", CLOSE, b"x-api-key: mk_\xff\xfe"), b"401"),
    "a key that is endless": (get(b"/healthz", CLOSE, b"x-api-key: mk_" + b"a" * 15_000), b"401"),
    "the admin's path without a secret": (get(b"/mesh/v1/keys", CLOSE), b"401"),
    "hostile ids": (get(b"/healthz", CLOSE, b"x-request-id: \x1b[2J", b"traceparent: 00-" + b"0" * 500), b"200"),
    "an expectation that nobody has": (get(b"/healthz", CLOSE, b"Expect: 200-maybe"), b"200"),
    "a body where none is wanted": (get(b"/healthz", CLOSE, b"Content-Length: 3") + b"abc", b"200"),
    "a body of nothing": (post(b"", CLOSE), b"400"),
    "a body that is no JSON": (post(b"model=m&messages=x", CLOSE), b"400"),
    "a body of an array": (post(b"[" + CHAT + b"]", CLOSE), b"400"),
    "a body in UTF-16": (post(CHAT.decode().encode("utf-16"), CLOSE), b"400"),
    "a body with a byte order mark": (post(b"\xef\xbb\xbf" + CHAT, CLOSE), b"400"),
    "a compressed body": (post(b"\x1f\x8b\x08\x00" + b"\x00" * 40, CLOSE, b"Content-Encoding: gzip"), b"400"),
    "a body of brackets": (post(b"[" * 900, CLOSE), b"400"),
    "a deep body": (post(CHAT[:-1] + b',"tools":' + b"[" * 400 + b"]" * 400 + b"}", CLOSE), b"400"),
    "half a surrogate": (post(SAYING % b'"\\ud800"', CLOSE), b"400"),
    "bytes that are no UTF-8": (post(SAYING % b'"\xff"', CLOSE), b"400"),
    "a number that is too large": (post(CHAT[:-1] + b',"seed":' + b"9" * 500 + b"}", CLOSE), b"400"),
    "a number that is none": (post(CHAT[:-1] + b',"temperature":NaN}', CLOSE), b"400"),
    "a number without bound": (post(CHAT[:-1] + b',"temperature":1e999}', CLOSE), b"400"),
    "a field twice": (post(CHAT[:-1] + b',"model":"other"}', CLOSE), b"404"),
    "a model of symbols": (post(CHAT.replace(b'"m"', b'"../../etc/passwd\\u0000"'), CLOSE), b"404"),
    "a WebSocket": (
        UPGRADE % b"websocket" + b"\x81\x00",
        b"200",
    ),
    "HTTP/2 by upgrade": (
        UPGRADE % b"h2c",
        b"200",
    ),
    "an SMTP greeting": (b"EHLO evil.example\r\nMAIL FROM:<a>\r\n\r\n", b"400"),
    "a Redis command": (b"*1\r\n$4\r\nINFO\r\n\r\n", b"400"),
    "a SOCKS hello": (b"\x05\x01\x00", b"400"),
    "line breaks without end": (b"\r\n" * 40_000, b"400"),
    "NULs without end": (b"\x00" * 70_000, b"400"),
}
ALL = {**FIRST, **CASES}
LEAVE = ("close", "half-close", "reset")


@pytest.mark.parametrize("name", CASES)
async def test_a_case_of_the_table(name: str) -> None:
    """Each gets its status and, if it is one, an error object; and the next client is served."""
    sent, status = CASES[name]
    async with served(app_of(FakeWorker()), SHORT) as serving:
        received = await serving.exchange(sent)

        assert received.startswith(b"HTTP/1.1 " + status), received
        assert status == b"200" or received.partition(b"\r\n\r\n")[2].startswith(b'{"error":{"message":'), received
        assert b" 200 " in await serving.exchange(get(b"/healthz", CLOSE))


async def leave(serving: Serving, sent: bytes, how: str) -> None:
    """Send that much and go, by `how`."""
    stream = await serving.connect()
    await stream.send_all(sent)
    if how == "half-close":
        await stream.send_eof()
        await read_all(stream)
    elif how == "reset":
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await stream.aclose()


@pytest.mark.parametrize("how", LEAVE)
async def test_a_client_may_go_after_any_byte_of_its_request(how: str) -> None:
    whole = post(CHAT, CLOSE)
    worker = FakeWorker()
    async with served(app_of(worker)) as serving:
        async with trio.open_nursery() as nursery:
            for length in range(len(whole)):
                nursery.start_soon(leave, serving, whole[:length], how)

        assert not worker.requests
        assert (await serving.exchange(whole)).startswith(b"HTTP/1.1 200")


async def test_all_of_them_at_once_and_again_leave_the_node_as_it_was() -> None:
    """Each case of both tables, and each left in the middle: what a round leaves in memory, every later round would leave too."""
    worker = FakeWorker()
    app = app_of(worker)
    async with served(app, SHORT) as serving:

        async def round_of_all() -> int:
            async with trio.open_nursery() as nursery:
                for sent, _ in ALL.values():
                    nursery.start_soon(quietly, partial(serving.exchange, sent))
                    for how in LEAVE:
                        nursery.start_soon(quietly, partial(leave, serving, sent[: len(sent) // 2], how))
            assert b" 200 " in await serving.exchange(get(b"/healthz", CLOSE))
            worker.requests.clear()
            gc.collect()
            return len(gc.get_objects())

        await round_of_all()
        before = await round_of_all()
        for _ in range(3):
            after = await round_of_all()

    assert len(ALL) >= 100
    assert after - before < 300, "objects of some 500 connections a round"


async def quietly(do: Callable[[], Awaitable[object]]) -> None:
    """What the server cuts off may break the client's side: that is not what is looked at."""
    with suppress(trio.BrokenResourceError):
        await do()
