"""The server against clients that are broken, hostile, slow, or gone. Real sockets throughout."""

import errno
import socket
from functools import partial
from typing import Any

import pytest
import trio
from api.serving import CHAT, CLOSE, STREAMED, Serving, app_of, get, post, read_all, read_until, served, wait_until

from meshnode.api.limits import Limits
from meshnode.api.server import serve
from meshnode.testing import FakeWorker

SHORT = Limits(header_s=0.15, body_s=0.15, idle_s=0.15, write_s=0.3, refuse_s=0.3, grace_s=0.2, body_bytes=1000)
CHUNKED = b"Transfer-Encoding: chunked"
WHOLE_CHUNK = CHUNKED + b"\r\nConnection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)
POST_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"

CASES: dict[str, tuple[bytes, bytes]] = {
    "garbage": (b"\x00\x01\x02 garbage\r\n\r\n", b"400"),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 200, b"400"),
    "an SSH banner": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"400"),
    "no version": (b"GET /healthz\r\n\r\n", b"400"),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    "a header without a colon": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n", b"400"),
    "a header name with a space": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX y: 1\r\n\r\n", b"400"),
    "a NUL in a header": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", b"400"),
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),
    "two Hosts": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"400"),
    "a huge header in one line": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, b"431"),
    "a huge header, complete": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
    "a thousand headers": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: 123456789\r\n" * 2000 + b"\r\n", b"431"),
    "both lengths": (POST_HEAD + b"Content-Length: 5\r\n" + WHOLE_CHUNK, b"400"),
    "two lengths that differ": (POST_HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", b"400"),
    "a negative length": (POST_HEAD + b"Content-Length: -5\r\n\r\n", b"400"),
    "a length that is no number": (POST_HEAD + b"Content-Length: many\r\n\r\n", b"400"),
    "an unknown transfer encoding": (POST_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"400"),
    "a chunk of no size": (POST_HEAD + CHUNKED + b"\r\n\r\nxyz\r\n", b"400"),
    "a length over the limit": (POST_HEAD + b"Content-Length: 1001\r\n\r\n", b"413"),
    "chunks over the limit": (POST_HEAD + CHUNKED + b"\r\n\r\n" + (b"12c\r\n" + b"a" * 300 + b"\r\n") * 4, b"413"),
    "half a request line": (b"GET /hea", b"408"),
    "half a header": (b"GET /healthz HTTP/1.1\r\nHost: local", b"408"),
    "half a body": (POST_HEAD + b"Content-Length: 500\r\n\r\n{", b"408"),
    "half a chunk": (POST_HEAD + CHUNKED + b"\r\n\r\n50\r\nabc", b"408"),
    "a target that is a URL": (get(b"http://elsewhere/healthz"), b"400"),
    "CONNECT": (b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n", b"400"),
    "a path that is not UTF-8": (get(b"/v1/models/%ff"), b"400"),
    "a path with a line break": (get(b"/v1/models/a%0d%0ab"), b"400"),
    "a foreign Host": (get(b"/healthz", CLOSE, host=b"evil.example"), b"421"),
    "a Host that only begins well": (get(b"/healthz", CLOSE, host=b"localhost.evil.example"), b"421"),
    "a Host with a user": (get(b"/healthz", CLOSE, host=b"localhost@evil.example"), b"421"),
    "HTTP/1.0 without Host": (b"GET /healthz HTTP/1.0\r\n\r\n", b"421"),
    "a foreign Origin": (get(b"/healthz", CLOSE, b"Origin: http://evil.example"), b"403"),
    "a null Origin": (get(b"/healthz", CLOSE, b"Origin: null"), b"403"),
    "another port's Origin": (get(b"/healthz", CLOSE, b"Origin: http://localhost:3000"), b"403"),
    "a cross-site request": (get(b"/healthz", CLOSE, b"Sec-Fetch-Site: cross-site"), b"403"),
    "a same-site request": (get(b"/healthz", CLOSE, b"Sec-Fetch-Site: same-site"), b"403"),
    "a preflight": (get(b"/v1/models", CLOSE, b"Origin: http://evil.example", method=b"OPTIONS"), b"403"),
    "an unknown path": (get(b"/v2/models", CLOSE), b"404"),
    "the wrong method": (get(b"/v1/chat/completions", CLOSE), b"405"),
    "an upgrade with a trailing byte": (get(b"/healthz", b"Connection: Upgrade", b"Upgrade: websocket") + b"x", b"200"),
    "our own Origin": (get(b"/healthz", CLOSE, b"Origin: http://localhost"), b"200"),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", b"200"),
    "a Host with a port, by address": (get(b"/healthz", CLOSE, host=b"127.0.0.1:4860"), b"200"),
    "IPv6 loopback": (get(b"/healthz", CLOSE, host=b"[::1]:4860"), b"200"),
    "a configured name": (get(b"/healthz", CLOSE, host=b"Box.Example:4860"), b"200"),
    "the node's name": (get(b"/healthz", CLOSE, host=b"entry"), b"200"),
    "a chunked body": (POST_HEAD + WHOLE_CHUNK, b"200"),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_case_of_the_table(name: str) -> None:
    """Each gets its status, an error object if it is one, the headers that every answer has, and the next client is served."""
    sent, status = CASES[name]
    async with served(app_of(FakeWorker()), SHORT) as serving:
        received = await serving.exchange(sent)
        head, _, body = received.partition(b"\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 " + status), received
        assert status == b"200" or body.startswith(b'{"error":{"message":'), received
        for header in (b"x-request-id: ", b"x-meshnode-node: ", b"x-meshnode-reason: ", b"openai-processing-ms: ", b"nosniff"):
            assert header in head
        assert b"frame-ancestors 'none'" in head
        assert b" 200 " in await serving.exchange(get(b"/healthz", CLOSE))


async def test_a_client_that_says_nothing_is_closed_without_a_word() -> None:
    async with served(app_of(FakeWorker()), SHORT) as serving:
        assert await serving.exchange(b"") == b""


async def test_an_idle_connection_is_kept_and_then_closed_without_a_word() -> None:
    async with served(app_of(FakeWorker()), SHORT) as serving, await serving.connect() as stream:
        for _ in range(2):
            await stream.send_all(get(b"/healthz"))
            await read_until(stream, b'{"status":"ok"}')

        assert await read_all(stream) == b""


async def test_dripped_headers_do_not_move_their_deadline() -> None:
    async with served(app_of(FakeWorker()), SHORT) as serving, await serving.connect() as stream, trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 1000:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.02)

        nursery.start_soon(drip)
        with trio.fail_after(1):
            assert b" 408 " in await read_until(stream, b"\r\n\r\n")
        nursery.cancel_scope.cancel()


async def test_three_pipelined_requests_get_three_answers_in_order() -> None:
    async with served(app_of(FakeWorker())) as serving:
        received = await serving.exchange(get(b"/healthz") + post(CHAT) + get(b"/readyz", CLOSE))

        assert received.count(b"HTTP/1.1 200") == 3
        assert received.index(b'"ok"') < received.index(b"Hello from a fake worker.") < received.index(b'"ready"')


async def test_a_request_pipelined_during_an_answer_is_answered_after_it() -> None:
    worker = FakeWorker(delay=0.03)
    async with served(app_of(worker)) as serving, await serving.connect() as stream:
        await stream.send_all(post(STREAMED))
        await read_until(stream, b'"content":"Hello"')
        await stream.send_all(get(b"/readyz", CLOSE))
        rest = await read_all(stream)

        assert rest.index(b"[DONE]") < rest.index(b'"ready"')
        assert worker.cancelled == 0


async def test_head_is_get_without_the_body() -> None:
    async with served(app_of(FakeWorker())) as serving:
        received = await serving.exchange(get(b"/healthz", method=b"HEAD") + get(b"/nowhere", CLOSE, method=b"HEAD"))

        first, second, rest = received.split(b"\r\n\r\n")
        assert b"content-length: 15" in first
        assert b" 404 " in second
        assert rest == b""


async def test_a_client_that_expects_100_is_told_to_continue_and_only_for_a_body_that_is_welcome() -> None:
    async with served(app_of(FakeWorker()), SHORT) as serving:
        async with await serving.connect() as stream:
            await stream.send_all(POST_HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n%b\r\n\r\n" % (len(CHAT), CLOSE))
            assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
            await stream.send_all(CHAT)
            assert b" 200 " in await read_all(stream)
        refused = await serving.exchange(POST_HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")

        assert refused.startswith(b"HTTP/1.1 413")


async def test_a_refusal_reaches_a_client_that_goes_on_sending() -> None:
    """A server that closes at once resets the connection, and the client never reads why."""
    async with served(app_of(FakeWorker())) as serving:
        received = await serving.exchange(POST_HEAD + b"Content-Length: 9000000\r\n\r\n" + b"a" * 9_000_000)

        assert received.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("body", "mark"),
    [(CHAT, b""), (STREAMED, b""), (STREAMED, b'"content":"Hello"')],
    ids=["unstreamed", "before the first token", "in mid-stream"],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_the_work_stops_when_the_client_leaves(body: bytes, mark: bytes, reset: bool) -> None:
    worker = FakeWorker(delay=0.05 if mark else 5.0, words=["Hello"] * 1000)
    async with served(app_of(worker)) as serving:
        stream = await serving.connect()
        await stream.send_all(post(body))
        await wait_until(lambda: len(worker.requests) == 1)
        if mark:
            await read_until(stream, mark)
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await stream.aclose()

        await wait_until(lambda: worker.cancelled == 1, 0.1)
        steps = worker.steps
        assert b" 200 " in await serving.exchange(get(b"/healthz", CLOSE))
        assert worker.steps == steps


async def _stalled(serving_port: int) -> trio.SocketStream:
    """A client with a small window that asks for an endless stream and does not read it."""
    raw = trio.socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await raw.connect(("127.0.0.1", serving_port))
    stream = trio.SocketStream(raw)
    await stream.send_all(post(STREAMED))
    await read_until(stream, b"HTTP/1.1 200")
    return stream


ENDLESS = ["x" * 20_000] * 100_000


async def test_a_reader_that_stands_still_loses_its_stream() -> None:
    worker = FakeWorker(words=ENDLESS)
    async with served(app_of(worker), SHORT) as serving, await _stalled(serving.port):
        await wait_until(lambda: worker.cancelled == 1)


async def test_the_server_stops_within_its_grace_although_a_reader_stands_still() -> None:
    worker = FakeWorker(words=ENDLESS)
    async with served(app_of(worker), Limits(grace_s=0.2)) as serving, await _stalled(serving.port):
        serving.stopping.set()
        with trio.fail_after(1):
            await serving.stopped.wait()

        assert worker.cancelled == 1


async def test_a_stop_ends_idle_connections_at_once_and_lets_an_answer_end() -> None:
    worker = FakeWorker(delay=0.05)
    async with served(app_of(worker), Limits(grace_s=10)) as serving:
        idle, busy = await serving.connect(), await serving.connect()
        async with idle, busy:
            await idle.send_all(get(b"/healthz"))
            await read_until(idle, b'"ok"')
            await busy.send_all(post(STREAMED))
            await read_until(busy, b'"content":"Hello"')
            serving.stopping.set()

            with trio.fail_after(2):
                assert await read_all(idle) == b""
            assert b"[DONE]" in await read_all(busy)
            await serving.stopped.wait()
            with pytest.raises(OSError, match="connect"):
                await serving.connect()


async def test_beyond_the_cap_a_client_is_told_so_at_once_and_later_served() -> None:
    async with served(app_of(FakeWorker()), Limits(connections=2)) as serving:
        first, second = await serving.connect(), await serving.connect()
        for stream in (first, second):
            await stream.send_all(get(b"/healthz"))
            await read_until(stream, b'"ok"')
        with trio.fail_after(0.5):
            async with await serving.connect() as third:
                refused = await read_until(third, b"overloaded")
        await first.aclose()
        await second.aclose()

        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in refused
        served_again = [await serving.exchange(get(b"/healthz", CLOSE)) for _ in range(3)]

        assert b" 200 " in served_again[-1]


class Exhausted:
    """A listener of a process that has no file descriptor left for the first two attempts."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.socket = listener.socket
        self._listener = listener
        self._attempts = 0

    async def accept(self) -> trio.SocketStream:
        self._attempts += 1
        if self._attempts <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return await self._listener.accept()


async def test_out_of_file_descriptors_the_server_pauses_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    [plain] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener: Any = Exhausted(plain)  # trio's own class is final
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app_of(FakeWorker()), [listener], stopping=trio.Event()))
        with trio.fail_after(2):
            answer = await Serving(port=plain.socket.getsockname()[1]).exchange(get(b"/healthz", CLOSE))
        nursery.cancel_scope.cancel()

    assert b" 200 " in answer
    assert sum("open files" in record.getMessage() for record in caplog.records) == 1
