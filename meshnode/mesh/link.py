"""One WebSocket over one stream: open, accept, send, receive, close. The only module that knows trio_websocket.

The library has traps (each has a regression test in `tests/mesh/test_link.py`), and this is where they are defused:

- Its reader task raises what a peer can cause (a ping while we are closing: LocalProtocolError). It runs behind a barrier here:
  the link ends, with the reason, and nothing else does.
- It waits for ever when the peer goes away during the opening handshake, and it drops the reason. So it gets a `_Watched` stream,
  which remembers why it ended and cuts the wait short.
- A send that is cancelled leaves half a frame on the wire, and later sends vanish. So a send that does not complete, for whatever
  reason, drops the stream.
- Its close waits for the peer, and its reader for whoever should take the messages. Ours waits a second, then drops both.
- It bounds a message but not what comes between two messages (empty fragments, pings). `_Watched` does.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypedDict, cast

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream, wrap_server_stream

from meshnode.errors import LinkLost, PeerError
from meshnode.mesh.reasons import NO_WEBSOCKET, explain
from meshnode.names import printable
from meshnode.wire.codec import MAX_MESSAGE

STALL_S = 20.0
"""A peer that takes nothing for so long is gone."""
CLOSE_S = 1.0
_RECEIVE_BYTES = 64 * 1024
"""The library's 4 KiB cost twice the CPU for messages of 4 KiB, and three times for big ones."""
_QUEUE = 16
"""Messages between the library's reader and ours: saves a task switch each when bursts come."""
_MAX_SILENT_BYTES = 2 * MAX_MESSAGE
"""So many bytes without one complete message are an attack: a message with its framing is smaller."""
_PONG = 0x8A
"""RFC 6455, 5.2: the first byte of a pong."""
_MAX_PONGS = 64
"""We use no pings (heartbeats are frames, which measure the round trip even while the writer is busy), but each costs 50 us."""
_MAX_CLOSE_REASON = 123
"""RFC 6455, 5.5: a control frame carries 125 bytes, two of them the code."""
_ABNORMAL = 1006
"""RFC 6455, 7.1.5: there was no close frame."""


class _Limits(TypedDict):
    receive_buffer_size: int
    message_queue_size: int
    max_message_size: int


_LIMITS = _Limits(receive_buffer_size=_RECEIVE_BYTES, message_queue_size=_QUEUE, max_message_size=MAX_MESSAGE)

_log = logging.getLogger(__name__)


class _Watched(trio.abc.Stream):
    """A stream that remembers why it ended, and tells `on_end` at once."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.failure: BaseException | None = None
        """None after the peer's orderly end, too."""
        self.on_end: Callable[[], None] = lambda: None
        self.silent_bytes = 0
        self.pongs = 0
        """Both count from the last complete message."""
        self._stream = stream
        self._ended = False

    def end(self, failure: BaseException | None) -> None:
        """The first failure is the cause; what follows are its consequences."""
        if not self._ended:
            self._ended, self.failure = True, failure
        self.on_end()

    def message_received(self) -> None:
        self.silent_bytes = self.pongs = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.end(error)
            raise
        self.silent_bytes += len(data)
        if not data:
            self.end(None)
        elif self.silent_bytes > _MAX_SILENT_BYTES:
            self._flooded(f"{_MAX_SILENT_BYTES} bytes without a complete message")
        return data

    def _flooded(self, what: str) -> NoReturn:
        self.end(PeerError(what, close_code=4429))
        raise trio.BrokenResourceError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.pongs += data[0] == _PONG
        if self.pongs > _MAX_PONGS:
            self._flooded(f"{_MAX_PONGS} pings without a message")
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.end(error)
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """The library closes it itself, without a word, only when the peer breaks the WebSocket protocol."""
        self.end(PeerError(NO_WEBSOCKET))
        await self._stream.aclose()


class _Barrier:
    """Stands for the nursery that the library starts its reader in, so that the reader's exceptions end there."""

    def __init__(self, nursery: trio.Nursery, stream: _Watched) -> None:
        self.stream = stream
        self._nursery = nursery
        self._scope = trio.CancelScope()

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._guard, reader)

    async def _guard(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            with self._scope:
                await reader()
        except Exception as error:  # whatever a peer can make the library raise
            _log.debug("the WebSocket reader ended: %r", error)
            self.stream.end(PeerError(NO_WEBSOCKET))
            await trio.aclose_forcefully(self.stream)

    async def drop(self, failure: BaseException | None) -> None:
        """The reader may be waiting for someone to take its messages, so closing the stream is not enough to end it."""
        self.stream.end(failure)
        self._scope.cancel()
        await trio.aclose_forcefully(self.stream)


class Link:
    """An open WebSocket. One task may send, one may receive, any may close; errors are LinkLost or PeerError."""

    def __init__(self, socket: WebSocketConnection, barrier: _Barrier, *, dialled: bool) -> None:
        self.dialled = dialled
        self._socket = socket
        self._barrier = barrier
        self._stream = barrier.stream

    async def send(self, message: bytes) -> None:
        """Send one message, within 20 s. Unless this returns, the stream is dropped: half a message may be on the wire."""
        sent = False
        try:
            with trio.fail_after(STALL_S):
                await self._socket.send_message(message)
            sent = True
        except trio.TooSlowError as error:
            self._stream.end(LinkLost(f"it took nothing for {STALL_S:.0f} s"))
            raise self._lost(error) from error
        except Exception as error:  # ConnectionClosed, and LocalProtocolError while closing
            raise self._lost(error) from error
        finally:
            if not sent:
                await self.abort()

    async def receive(self) -> bytes:
        """The next message. A cancelled wait loses nothing."""
        try:
            message = await self._socket.get_message()
        except ConnectionClosed as error:
            raise self._lost(error) from error
        self._stream.message_received()
        if not isinstance(message, bytes):
            raise PeerError("a text message; frames travel in binary ones")
        return message

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye, wait for the answer a second at most, and be gone."""
        cut = reason.encode()[:_MAX_CLOSE_REASON].decode(errors="ignore")
        try:
            with trio.move_on_after(CLOSE_S):
                await self._socket.aclose(code, cut)
        except Exception as error:  # the library's state may be anything by now, and the stream is dropped in any case
            _log.debug("closing a WebSocket: %r", error)
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Drop the stream at once."""
        await self._barrier.drop(LinkLost("dropped"))

    def _lost(self, error: Exception) -> Exception:
        """What the close frame says, or else what happened to the stream."""
        failure = self._stream.failure
        closed = self._socket.closed
        if closed is not None and closed.code != _ABNORMAL:
            why = printable(closed.reason or "") or closed.name
            return LinkLost(f"closed with {closed.code}: {why}", close_code=closed.code)
        if isinstance(failure, PeerError):
            return failure
        return LinkLost(explain(failure or error, dialled=self.dialled))


async def _opening(barrier: _Barrier, handshake: Callable[[], Awaitable[WebSocketConnection]], *, dialled: bool) -> Link:
    """Run the library's opening handshake until it is done or the stream ends, which the library would not notice."""
    stream = barrier.stream
    try:
        with trio.CancelScope() as scope:
            stream.on_end = scope.cancel
            socket = await handshake()
            stream.on_end = lambda: None
            return Link(socket, barrier, dialled=dialled)
    except BaseException:
        await barrier.drop(None)
        raise
    failure = stream.failure
    await barrier.drop(None)
    raise LinkLost(explain(failure, dialled=dialled)) from failure


async def open_link(nursery: trio.Nursery, stream: trio.abc.Stream) -> Link:
    """Ask for a WebSocket over `stream`. The library's reader runs in `nursery`, never failing it. Wants a deadline around it."""
    barrier = _Barrier(nursery, _Watched(stream))

    async def ask() -> WebSocketConnection:
        tasks, watched = cast(trio.Nursery, barrier), cast(trio.SocketStream, barrier.stream)
        return await wrap_client_stream(tasks, watched, "mesh", "/", **_LIMITS)

    return await _opening(barrier, ask, dialled=True)


async def accept_link(nursery: trio.Nursery, stream: trio.abc.Stream) -> Link:
    """Wait for the other end's `open_link`; as that in all else."""
    barrier = _Barrier(nursery, _Watched(stream))

    async def answer() -> WebSocketConnection:
        request = await wrap_server_stream(cast(trio.Nursery, barrier), barrier.stream, **_LIMITS)
        return await request.accept()

    return await _opening(barrier, answer, dialled=False)
