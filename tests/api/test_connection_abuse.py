"""Requests that are valid, or nearly, and made to cost the server more than they cost the client."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from api.serving import CHAT, CLOSE, app_of, get, in_memory, post, read_until, served
from trio.testing import memory_stream_pair

from meshnode.api.connection import Connection, Idle
from meshnode.api.http import Request, Response
from meshnode.api.limits import Limits
from meshnode.errors import MeshnodeError
from meshnode.testing import FakeWorker

CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def one_byte_chunks(body: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


class Metered(trio.abc.HalfCloseableStream):
    """A stream that counts what was read from it."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.read = 0
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self.read += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class CountingApp:
    """Answers at once; `held` is the most that the server had read and not yet answered when it was asked."""

    def __init__(self, sent: bytes) -> None:
        self.answered = 0
        self.held = 0.0
        self.stream: Metered | None = None
        self._each = len(sent)

    @asynccontextmanager
    async def __call__(self, request: Request) -> AsyncIterator[Response]:
        assert self.stream is not None
        await trio.testing.wait_all_tasks_blocked()  # so that the watch has read all that it wants to
        self.held = max(self.held, self.stream.read - self.answered * self._each)
        self.answered += 1
        yield Response(body=b"fine")

    def refuse(self, error: MeshnodeError) -> Response:
        raise AssertionError(error)


async def test_a_flood_of_small_requests_is_never_held_in_memory() -> None:
    """During each answer the server reads on; what it keeps must not add up over many answers that consume little."""
    one = get(b"/")
    app = CountingApp(one)
    ours, theirs = memory_stream_pair()
    app.stream = Metered(theirs)
    await ours.send_all(one * 20_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(app.stream, app, limits=Limits(), idle=Idle()).run)
        await read_until(ours, b"fine", 200)
        nursery.cancel_scope.cancel()

    assert app.held <= 3 * 64 * 1024


async def test_a_body_in_too_many_chunks_is_refused_and_the_same_body_in_fewer_is_not() -> None:
    async with served(app_of(FakeWorker()), Limits(body_chunks=len(CHAT))) as serving:
        assert (await serving.exchange(CHUNKED + one_byte_chunks(CHAT))).startswith(b"HTTP/1.1 200")
        refused = await serving.exchange(CHUNKED + one_byte_chunks(CHAT + b" "))

    assert refused.startswith(b"HTTP/1.1 413")
    assert b"chunks" in refused


async def test_a_body_of_tiny_chunks_lets_others_run_in_between() -> None:
    """All the chunks arrive in one read, and each costs as much to parse as a large one."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        with in_memory(app_of(FakeWorker()), nursery) as stream:
            await stream.send_all(CHUNKED + one_byte_chunks(b" " * 5000))
            nursery.start_soon(count_turns)
            await read_until(stream, b"\r\n\r\n")
            nursery.cancel_scope.cancel()

    assert turns > 2500


async def test_garbage_after_a_head_request_is_refused_with_a_body() -> None:
    """Only the answer to HEAD itself goes without."""
    async with served(app_of(FakeWorker())) as serving:
        received = await serving.exchange(get(b"/healthz", method=b"HEAD") + b"garbage\r\n\r\n")

    first, _, second = received.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 400")
    assert second.endswith(b'"code":"invalid_request"}}')


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (
            b'{"model":"m","messages":[' + b'{"role":"user","content":""},' * 20_000 + b'{"role":"user","content":""}]}',
            b"messages",
        ),
        (CHAT[:-1] + b',"tools":[' + b"{}," * 400_000 + b"{}]}", b"tools"),
    ],
    ids=["messages", "tools"],
)
async def test_a_body_within_its_limit_that_unfolds_into_millions_of_objects_is_refused(body: bytes, param: bytes) -> None:
    async with served(app_of(FakeWorker())) as serving:
        refused = await serving.exchange(post(body, CLOSE))

    assert refused.startswith(b"HTTP/1.1 400")
    assert b'"param":"%b"' % param in refused


async def test_a_client_that_drips_its_body_does_not_move_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        with in_memory(app_of(FakeWorker()), nursery, Limits(body_s=30, header_s=10)) as stream:

            async def drip() -> None:
                await stream.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(1)

            nursery.start_soon(drip)
            began = trio.current_time()
            received = await read_until(stream, b"\r\n\r\n")
            nursery.cancel_scope.cancel()

        assert received.startswith(b"HTTP/1.1 408")
        assert math.isclose(trio.current_time() - began, 30)
