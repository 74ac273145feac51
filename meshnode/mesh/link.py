"""The transport of a link: whole binary messages over one WebSocket. The only module that imports trio_websocket.

The five methods (`opened`, `accepted`, `send`, `receive`, `close`) hide a library with traps, each met here once:

- a peer that closes TCP during the opening handshake leaves the library waiting for ever: `_Watched` notices the end of the stream;
- a cancelled `send_message` leaves half a frame on the wire and the link silent without an error: `send` drops the stream then;
- a ping that arrives while we close raises out of the library's reader task: it ends in our nursery, and only this link with it;
- closing waits for the other side for a minute: we give it one second, then drop the stream;
- a TLS refusal is seen only on the first read, inside the library, which forgets the reason: `_Watched` keeps it.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
import trio_websocket
import wsproto.utilities

from meshnode.errors import LinkLost, PeerError
from meshnode.mesh.reasons import explain
from meshnode.wire.codec import MAX_MESSAGE

SEND_STALL_S = 20.0
"""A peer that takes nothing for so long is gone or frozen; a slow one takes something."""
CLOSE_S = 1.0
_RECEIVE_BUFFER = 65536
_MESSAGE_QUEUE = 16
_RESOURCE = "/mesh/1"

# The library logs what peers send it, as warnings of its own.
logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)


class _Watched(trio.abc.Stream):
    """A stream that remembers how it ended."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.ended = trio.Event()
        self.fault: BaseException | None = None
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(error)
            raise
        if not data:
            self._end(None)
        return bytes(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(error)
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Without TLS's farewell, which a frozen peer would never answer: the WebSocket has said goodbye already."""
        self._end(None)
        await trio.aclose_forcefully(self._stream)

    def _end(self, error: BaseException | None) -> None:
        self.fault = self.fault or error
        self.ended.set()


class Transport:
    """Messages to and from one peer. After the first LinkLost every call raises LinkLost."""

    def __init__(self, connection: trio_websocket.WebSocketConnection, stream: _Watched) -> None:
        self._connection = connection
        self._stream = stream

    async def send(self, message: bytes) -> None:
        """Send one message; one task only. A send that is cancelled or stalls for 20 s tore the message, and costs the link."""
        whole = False
        try:
            with trio.fail_after(SEND_STALL_S):
                await self._connection.send_message(message)
            whole = True
        except trio.TooSlowError as error:
            raise LinkLost("the peer took nothing for 20 s") from error
        except (trio_websocket.ConnectionClosed, wsproto.utilities.LocalProtocolError) as error:
            raise self._lost() from error
        finally:
            if not whole:
                await trio.aclose_forcefully(self._stream)

    async def receive(self) -> bytes:
        """The next message. Raises LinkLost with the peer's reason when there will be none."""
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as error:
            raise self._lost() from error
        if isinstance(message, str):
            raise LinkLost("the peer sent text, not frames")
        return bytes(message)

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye for at most a second, then drop the stream."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            await self._connection.aclose(code, reason[:120])
        await trio.aclose_forcefully(self._stream)

    def _lost(self) -> LinkLost:
        closed = self._connection.closed
        if closed is not None and closed.code not in (1000, 1006) and closed.reason:
            return LinkLost(f"{closed.reason} (closed by the peer with {closed.code})")
        return LinkLost(explain(self._stream.fault) if self._stream.fault else "the peer closed the connection")


@asynccontextmanager
async def opened(stream: trio.abc.Stream) -> AsyncIterator[Transport]:
    """A link over `stream`, which we dialled. Raises LinkLost; put a deadline around entering."""
    async with _connected(stream, _client) as transport:
        yield transport


@asynccontextmanager
async def accepted(stream: trio.abc.Stream) -> AsyncIterator[Transport]:
    """A link over `stream`, which the peer dialled. Raises LinkLost; put a deadline around entering."""
    async with _connected(stream, _server) as transport:
        yield transport


_Connect = Callable[[trio.Nursery, _Watched], Awaitable[trio_websocket.WebSocketConnection]]


async def _client(nursery: trio.Nursery, stream: _Watched) -> trio_websocket.WebSocketConnection:
    return await trio_websocket.wrap_client_stream(
        nursery,
        stream,  # type: ignore[arg-type]  # it asks for trio's own two streams, and uses no more than the interface
        "mesh",
        _RESOURCE,
        message_queue_size=_MESSAGE_QUEUE,
        max_message_size=MAX_MESSAGE,
        receive_buffer_size=_RECEIVE_BUFFER,
    )


async def _server(nursery: trio.Nursery, stream: _Watched) -> trio_websocket.WebSocketConnection:
    request = await trio_websocket.wrap_server_stream(
        nursery, stream, message_queue_size=_MESSAGE_QUEUE, max_message_size=MAX_MESSAGE, receive_buffer_size=_RECEIVE_BUFFER
    )
    return await request.accept()


@asynccontextmanager
async def _connected(raw: trio.abc.Stream, connect: _Connect) -> AsyncIterator[Transport]:
    """The library's reader task lives in this nursery; what it raises, and what the block raises, leaves it as one error."""
    stream = _Watched(raw)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                connection = await _handshake(connect, nursery, stream)
                yield Transport(connection, stream)
            except (LinkLost, PeerError) as error:
                failure = error
            nursery.cancel_scope.cancel()
    except* wsproto.utilities.ProtocolError as group:
        failure = LinkLost(f"the peer broke the WebSocket protocol: {group.exceptions[0]}")
    finally:
        await trio.aclose_forcefully(stream)
    if failure:
        raise failure


async def _handshake(connect: _Connect, nursery: trio.Nursery, stream: _Watched) -> trio_websocket.WebSocketConnection:
    """The opening handshake, or LinkLost as soon as the stream ends: the library itself would wait for ever."""
    connection: trio_websocket.WebSocketConnection | None = None

    async def shake() -> None:
        nonlocal connection
        try:
            connection = await connect(nursery, stream)
        except (trio_websocket.HandshakeError, trio_websocket.ConnectionClosed):
            stream.ended.set()
        race.cancel_scope.cancel()

    async with trio.open_nursery() as race:
        race.start_soon(shake)
        await stream.ended.wait()
        race.cancel_scope.cancel()
    if connection is None:
        raise LinkLost(explain(stream.fault) if stream.fault else "the peer closed the connection before it was a link")
    return connection
