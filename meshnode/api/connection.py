"""One client's connection: HTTP/1.1 by h11 over any trio stream. The only module that knows h11.

Theory of operation. The connection is served by one task, which alternates between two states:

    reading     `_next_request` collects a whole request, under one deadline that moves: idle -> headers -> body
    answering   the application makes the response and `_send` writes it, while a second task, `_watch`, reads the socket

What is subtle:
- `_watch` is how we learn that a client left while there is nothing to write: end of file or a reset cancels the answer, and with
  it the work in whichever node does it. A client that half-closes after its request (shutdown(SHUT_WR)) is therefore taken for
  gone, as by most servers. What arrives instead is the next, pipelined request: kept for later, and only so much of it.
- h11 accepts a message with both Content-Length and Transfer-Encoding; we do not, for such a message is read differently by the
  proxies in front of us (request smuggling).
- A connection closed with unread bytes in its buffer is reset by the kernel, which may throw away the refusal that we have just
  written. So a refusal is followed by `_linger`: end of our side, then read and forget, for a bounded time.
- The chunks of a streamed answer are framed by hand: h11's send(Data) costs as much as the rest of the write. h11 still sees the
  head and the end, so that its state is right.
- After a cancelled write nobody knows what the client has: the connection is never used again.
"""

import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from email.utils import formatdate
from typing import Protocol

import h11
import trio

from meshnode.api.http import Request, Response, split_target
from meshnode.api.limits import Limits
from meshnode.errors import BodyTooLarge, HeadersTooLarge, InvalidRequest, MeshnodeError, RequestError, RequestTimeout

_PIECE = 64 * 1024


class Application(Protocol):
    """What answers the requests of every connection."""

    def __call__(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """The response, whose body is sent inside the `async with`. Cancelled there when the client leaves."""
        ...

    def refuse(self, error: MeshnodeError) -> Response:
        """The answer to what never became a request."""
        ...


class Idle:
    """The scopes of the connections that wait for a request: they can be ended at any time without harm to anybody."""

    def __init__(self) -> None:
        self.stopping = False
        self.scopes: set[trio.CancelScope] = set()

    def stop(self) -> None:
        """End every wait for a request, and those to come."""
        self.stopping = True
        for scope in self.scopes:
            scope.cancel()


class _ClientGone(Exception):
    """Nobody is there to read an answer, or nobody reads it."""


class Connection:
    """Serves one client. `run` returns when the client has gone or has been refused; it closes nothing."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        app: Application,
        *,
        limits: Limits,
        idle: Idle,
        peer: str = "",
        local: str = "",
    ) -> None:
        self._stream = stream
        self._app = app
        self._limits = limits
        self._idle = idle
        self._peer = peer
        self._local = local
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._ahead = bytearray()
        self._eof = False
        self._head_only = False
        self._patience = limits.header_s

    async def run(self) -> None:
        try:
            await self._converse()
        except* (_ClientGone, trio.BrokenResourceError):
            pass

    async def refuse(self, error: MeshnodeError) -> None:
        """Answer without reading a request."""
        try:
            await self._refuse(error)
        except* (_ClientGone, trio.BrokenResourceError):
            pass

    async def _converse(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                await self._answer(request)
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return await self._linger()
                self._http.start_next_cycle()
                self._head_only = False
                self._patience = self._limits.idle_s
        except RequestError as error:
            await self._refuse(error)

    async def _refuse(self, error: MeshnodeError) -> None:
        response = self._app.refuse(error)
        await self._send(replace(response, headers=(*response.headers, ("connection", "close"))))
        await self._linger()

    async def _linger(self) -> None:
        """End our side, and wait a little for the client to end its own."""
        with trio.move_on_after(self._limits.refuse_s):
            await self._stream.send_eof()
            while await self._stream.receive_some(_PIECE):
                pass

    # Reading

    async def _next_request(self) -> Request | None:
        """The next whole request; None when the client is done, or never began one, or when we stop."""
        if self._idle.stopping:
            return None
        with trio.CancelScope(deadline=trio.current_time() + self._patience) as wait:
            try:
                self._idle.scopes.add(wait)
                head = await self._next_head(wait)
                if head is None:
                    return None
                wait.deadline = trio.current_time() + self._limits.body_s
                return self._request(head, await self._body(head))
            finally:
                self._idle.scopes.discard(wait)
        if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            return None
        raise RequestTimeout("The request did not arrive in time.")

    async def _next_head(self, wait: trio.CancelScope) -> h11.Request | None:
        if self._ahead:
            self._http.receive_data(bytes(self._ahead))
            self._ahead.clear()
        if self._http.trailing_data[0]:
            self._begin(wait)
        while (event := self._event()) is h11.NEED_DATA:
            await self._receive()
            if wait in self._idle.scopes:
                self._begin(wait)
        if isinstance(event, h11.ConnectionClosed):
            return None
        assert isinstance(event, h11.Request)
        self._head_only = event.method == b"HEAD"
        self._check_head(event)
        return event

    def _begin(self, wait: trio.CancelScope) -> None:
        """The first byte is here: from now on the client is in a request, which a stop does not cut."""
        self._idle.scopes.discard(wait)
        wait.deadline = min(wait.deadline, trio.current_time() + self._limits.header_s)

    def _check_head(self, head: h11.Request) -> None:
        size = len(head.target) + sum(len(name) + len(value) for name, value in head.headers)
        if size > self._limits.header_bytes:
            raise HeadersTooLarge(f"The request's headers are larger than {self._limits.header_bytes} bytes.")
        headers = dict(head.headers)
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise InvalidRequest("The request has both a Content-Length and a Transfer-Encoding.")
        if int(headers.get(b"content-length", b"0")) > self._limits.body_bytes:
            raise self._too_large()

    async def _body(self, head: h11.Request) -> bytes:
        if self._http.they_are_waiting_for_100_continue:
            await self._stream.send_all(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        body = bytearray()
        chunks = 0
        while True:
            event = self._event()
            if event is h11.NEED_DATA:
                await self._receive()
            elif isinstance(event, h11.Data):
                body += event.data
                chunks += event.chunk_start
                if len(body) > self._limits.body_bytes:
                    raise self._too_large()
                if chunks > self._limits.body_chunks:
                    raise BodyTooLarge(f"The request's body comes in more than {self._limits.body_chunks} chunks.")
                await trio.lowlevel.checkpoint()  # one read may hold ten thousand chunks, which would hold up everybody else
            else:
                return bytes(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body is larger than {self._limits.body_bytes} bytes.")

    def _request(self, head: h11.Request, body: bytes) -> Request:
        path, query = split_target(head.target.decode("latin-1"))
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        method = head.method.decode("latin-1")
        return Request(method=method, path=path, query=query, headers=headers, body=body, peer=self._peer, local=self._local)

    def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            if self._eof:
                raise _ClientGone from None
            if error.error_status_hint == 431:
                raise HeadersTooLarge(f"The request's headers are larger than {self._limits.header_bytes} bytes.") from None
            raise InvalidRequest(f"This is not HTTP/1.1: {error}.") from None

    async def _receive(self) -> None:
        data = await self._stream.receive_some(_PIECE)
        self._eof = not data
        self._http.receive_data(bytes(data))

    # Answering

    async def _answer(self, request: Request) -> None:
        gone = False
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gone
                await self._watch()
                gone = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            async with self._app(request) as response:
                await self._send(response)
            nursery.cancel_scope.cancel()
        if gone:
            raise _ClientGone

    async def _watch(self) -> None:
        """Returns when the client has left; keeps what it sends, and with enough of that reads no further.

        What h11 already holds counts: it grows by what was read here during each answer, and one answer may consume very little.
        """
        held = len(self._http.trailing_data[0])
        try:
            while held < self._limits.ahead_bytes:
                data = await self._stream.receive_some(_PIECE)
                if not data:
                    return
                self._ahead += data
                held += len(data)
        except trio.BrokenResourceError:
            return
        await trio.sleep_forever()

    async def _send(self, response: Response) -> None:
        with trio.CancelScope() as stall:
            if isinstance(response.body, bytes):
                await self._write(self._head(response, len(response.body)) + self._whole(response.body), stall)
            else:
                async with aclosing(response.body) as pieces:
                    await self._send_pieces(response, pieces, stall)
        if stall.cancelled_caught:
            raise _ClientGone

    async def _send_pieces(self, response: Response, pieces: AsyncGenerator[bytes, None], stall: trio.CancelScope) -> None:
        head = self._head(response, None)
        if not self._head_only:
            chunked = (self._http.their_http_version or b"") >= b"1.1"
            async for piece in pieces:
                await self._write(head + (b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece), stall)
                head = b""
        await self._write(head + self._http.send(h11.EndOfMessage()), stall)

    def _head(self, response: Response, length: int | None) -> bytes:
        headers = [("date", formatdate(usegmt=True)), *response.headers]
        if length is not None:
            headers.append(("content-length", str(length)))
        if self._idle.stopping:
            headers.append(("connection", "close"))
        return self._http.send(h11.Response(status_code=response.status, headers=headers))

    def _whole(self, body: bytes) -> bytes:
        """The body of an answer of known length: none to HEAD."""
        data = b"" if self._head_only else self._http.send(h11.Data(data=body))
        return data + self._http.send(h11.EndOfMessage())

    async def _write(self, data: bytes, stall: trio.CancelScope) -> None:
        """In pieces, each with its own time: a slow reader is served, one that stands still is not.

        One scope for the whole answer, whose deadline moves: a new one for each chunk costs 7 to 17 us.
        """
        for start in range(0, len(data), _PIECE):
            stall.deadline = trio.current_time() + self._limits.write_s
            await self._stream.send_all(data[start : start + _PIECE])
        stall.deadline = math.inf
