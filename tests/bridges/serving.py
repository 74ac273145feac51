"""A server that says exactly what a test tells it to, over real sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio

from meshnode import url
from meshnode.url import Url

SSE = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]


@dataclass
class Asked:
    """One request as it came, and how to answer it; `write` sends bytes as they are."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    stream: trio.abc.Stream = field(repr=False)
    http: h11.Connection = field(repr=False)

    async def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        every = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
        head = self.http.send(h11.Response(status_code=status, headers=every))
        await self.stream.send_all(head + self.http.send(h11.Data(data=body)) + self.http.send(h11.EndOfMessage()))

    async def events(self, *pieces: bytes, end: bool = True) -> None:
        """A stream of server-sent events; without its `end` the connection is cut."""
        await self.stream.send_all(self.http.send(h11.Response(status_code=200, headers=SSE)))
        for piece in pieces:
            await self.stream.send_all(self.http.send(h11.Data(data=piece)))
        if end:
            await self.stream.send_all(self.http.send(h11.EndOfMessage()))

    async def write(self, raw: bytes) -> None:
        await self.stream.send_all(raw)


Wrap = Callable[[trio.SocketStream], trio.abc.Stream]
Script = Callable[[Asked], Awaitable[None]]


@dataclass
class Server:
    """`asked` are all requests so far; `gone` counts connections that the client ended."""

    url: Url
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    gone: int = 0


@asynccontextmanager
async def scripted(script: Script, *, wrap: Wrap | None = None) -> AsyncIterator[Server]:
    """A server on loopback that runs `script` for each request; a connection ends where its script did not answer whole."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    scheme = "https" if wrap else "http"
    server = Server(url.parse(f"{scheme}://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flag="URL"))

    async def serve(stream: trio.SocketStream) -> None:
        server.connections += 1
        connection = server.connections
        try:
            carried = wrap(stream) if wrap else stream
            await _converse(carried, script, server, connection)
            await carried.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            server.gone += 1
        except h11.RemoteProtocolError:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def _converse(stream: trio.abc.Stream, script: Script, server: Server, connection: int) -> None:
    http = h11.Connection(h11.SERVER)
    while True:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                server.gone += 1
                return
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        asked = Asked(head.method.decode(), head.target.decode(), headers, bytes(body), connection, stream, http)
        server.asked.append(asked)
        await script(asked)
        if http.our_state is not h11.DONE:
            return
        http.start_next_cycle()
