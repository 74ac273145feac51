"""A small HTTP/1.1 client: h11 over trio streams, for one service. The only module of the bridges that knows h11, TLS or sockets.

What it does not do, on purpose: redirects (whoever holds our key decides alone where it goes), proxies of the environment,
cookies, compression, HTTP/2. httpcore was not taken because it loses connections of its pool when requests are cancelled, which
is what a router does all day (design D18).

What is subtle:
- A wait for bytes may be cancelled and begun again: nothing is lost, for h11 gets what was read before the next wait.
- A connection is used again only after a whole answer, and only if nothing waits to be read on it: a server that has closed it in
  the meantime is seen there. One that closes it in the very moment of our request is seen as `Failure(stale=True)`, before any
  byte of an answer: then the request is worth another connection, for the server had no time to begin it.
- A name is resolved once for each connection, each address is checked (`reach`), and the address itself is dialled: no second
  look-up can lead elsewhere.
"""

import math
import socket
import ssl
from collections.abc import Sequence
from typing import NamedTuple

import h11
import trio

from meshnode.address import Address
from meshnode.bridges import reach, tls
from meshnode.bridges.failure import Cause, Failure
from meshnode.names import printable
from meshnode.url import Url

CONNECT_S = 5.0
"""For looking up the name, connecting and TLS together: a LAN needs milliseconds, the other side of the world one second."""
ADDRESS_S = 2.0
"""For one of several addresses, so that a dead one leaves time for the next."""
WRITE_S = 20.0
"""Without progress in sending."""
IDLE_S = 15.0
"""A connection is kept for so long after its last answer. A server that closes it earlier is noticed before the next use."""
MAX_IDLE = 8
MAX_HEADERS = 64 * 1024
_MAX_ADDRESSES = 8
_PIECE = 64 * 1024

Headers = Sequence[tuple[str, str]]


class Ask(NamedTuple):
    """A request; `path` is below the service's own."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""


class Head:
    """Status and headers of an answer; names in lower case, the last of several counts."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers


class Client:
    """Talks with the service at `url`. `loopback`: it may be on this machine. `connect_to` replaces where it is dialled, and
    nothing else: Host and the name in the certificate stay."""

    def __init__(
        self,
        url: Url,
        *,
        secured_by: ssl.SSLContext | None = None,
        loopback: bool | None = None,
        connect_to: Address | None = None,
    ) -> None:
        self.url = url
        self._tls = secured_by
        self._loopback = url.is_loopback if loopback is None else loopback
        self._to = connect_to or Address(url.host, url.port)
        self._idle: list[tuple[float, _Connection]] = []

    async def send(self, ask: Ask) -> "Exchange":
        """Send a request whole; its answer is then read from the Exchange, which must be closed. Raises Failure."""
        connection = self._take()
        fresh = connection is None
        if connection is None:
            connection = await self._connect()
        try:
            with trio.fail_after(WRITE_S):
                await connection.stream.send_all(_request(connection.http, ask, self.url))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await connection.close()
            raise Failure(Cause.CUT, "it closed the connection", stale=not fresh) from None
        except trio.TooSlowError:
            await connection.close()
            raise Failure(Cause.TOO_SLOW, f"it took no request for {WRITE_S:.0f} s") from None
        except BaseException:
            await connection.close()
            raise
        return Exchange(self, connection, fresh=fresh)

    async def fetch(self, ask: Ask, *, limit: int, seconds: float) -> tuple[Head, bytes]:
        """A whole answer of at most `limit` bytes within `seconds`. Raises Failure."""
        try:
            with trio.fail_after(seconds):
                try:
                    return await self._fetch(ask, limit)
                except Failure as failure:
                    if not failure.stale:
                        raise
                    return await self._fetch(ask, limit)
        except trio.TooSlowError:
            raise Failure(Cause.TOO_SLOW, f"no answer within {seconds:.0f} s") from None

    async def _fetch(self, ask: Ask, limit: int) -> tuple[Head, bytes]:
        exchange = await self.send(ask)
        try:
            head = await exchange.head()
            content = bytearray()
            while data := await exchange.read():
                content += data
                if len(content) > limit:
                    raise Failure(Cause.TOO_LARGE, f"its answer is larger than {limit} bytes")
            return head, bytes(content)
        finally:
            await exchange.close()

    async def close(self) -> None:
        """Close the connections that are kept."""
        kept, self._idle = self._idle, []
        for _, connection in kept:
            await connection.close()

    def keep(self, connection: "_Connection") -> bool:
        """Whether the connection was taken back for later."""
        if len(self._idle) >= MAX_IDLE:
            return False
        self._idle.append((trio.current_time() + IDLE_S, connection))
        return True

    def _take(self) -> "_Connection | None":
        """The latest that is alive; the others are closed as they are met."""
        now = trio.current_time()
        while self._idle:
            expires, connection = self._idle.pop()
            if expires > now and connection.is_quiet():
                return connection
            connection.drop()
        return None

    async def _connect(self) -> "_Connection":
        try:
            with trio.fail_after(CONNECT_S):
                return await self._dial(await self._addresses())
        except trio.TooSlowError:
            raise Failure(Cause.UNREACHABLE, f"no connection to {self._to} within {CONNECT_S:.0f} s") from None

    async def _addresses(self) -> list[str]:
        try:
            found = await trio.socket.getaddrinfo(self._to.host, self._to.port, type=socket.SOCK_STREAM)
        except OSError:
            raise Failure(Cause.UNREACHABLE, f"no machine is called {printable(self._to.host, 128)}") from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        allowed = [address for address in addresses if not reach.refusal(address, loopback=self._loopback)]
        if not allowed:
            why = reach.refusal(addresses[0], loopback=self._loopback) if addresses else "it has no address"
            raise Failure(Cause.FORBIDDEN, why)
        return allowed[:_MAX_ADDRESSES]

    async def _dial(self, addresses: list[str]) -> "_Connection":
        failure = Failure(Cause.UNREACHABLE, "it has no address")
        for address in addresses:
            try:
                with trio.fail_after(ADDRESS_S if len(addresses) > 1 else math.inf):
                    stream = await trio.open_tcp_stream(address, self._to.port)
            except trio.TooSlowError:
                failure = Failure(Cause.UNREACHABLE, f"no answer from {Address(address, self._to.port)}")
                continue
            except OSError as error:
                failure = Failure(Cause.UNREACHABLE, f"{Address(address, self._to.port)}: {_why(error)}")
                continue
            return await self._secured(stream)
        raise failure

    async def _secured(self, stream: trio.SocketStream) -> "_Connection":
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return _Connection(stream, stream.socket)
        secured = trio.SSLStream(stream, self._tls, server_hostname=self.url.host, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(secured)
            raise Failure(Cause.TLS, tls.words(error.__cause__)) from None
        except BaseException:
            await trio.aclose_forcefully(secured)
            raise
        return _Connection(secured, stream.socket)


class Exchange:
    """One request that was sent, and its answer: `head`, then `read` until empty, then `close`. Waits may be cancelled and
    begun again."""

    def __init__(self, client: Client, connection: "_Connection", *, fresh: bool) -> None:
        self._client = client
        self._connection = connection
        self._fresh = fresh
        self._head: Head | None = None
        self._ended = False

    async def head(self) -> Head:
        """Raises Failure, as `read` does."""
        while self._head is None:
            event = await self._next()
            if isinstance(event, h11.Response):
                pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
                self._head = Head(event.status_code, dict(pairs))
            elif not isinstance(event, h11.InformationalResponse):
                raise Failure(Cause.CUT, "it closed the connection without an answer", stale=not self._fresh)
        return self._head

    async def read(self) -> bytes:
        """The next bytes of the body; empty at its end."""
        while not self._ended:
            event = await self._next()
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
            else:
                self._ended = True
        return b""

    async def close(self) -> None:
        """The connection is kept if the answer was read to its end. Never waits."""
        http = self._connection.http
        if self._ended and http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
            if self._client.keep(self._connection):
                return
        await self._connection.close()

    async def _next(self) -> h11.Event:
        connection = self._connection
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                event = connection.http.next_event()
            except h11.RemoteProtocolError as error:
                raise self._protocol_failure(error) from None
            if event is not h11.NEED_DATA:
                assert isinstance(event, h11.Event)
                return event
            try:
                data = await connection.stream.receive_some(_PIECE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Failure(Cause.CUT, "the connection was cut", stale=self._may_be_stale()) from None
            connection.http.receive_data(bytes(data))

    def _protocol_failure(self, error: h11.RemoteProtocolError) -> Failure:
        if self._connection.http.trailing_data[1]:
            return Failure(Cause.CUT, "it closed the connection in the middle of its answer", stale=self._may_be_stale())
        if error.error_status_hint == 431:
            return Failure(Cause.TOO_LARGE, f"the headers of its answer are larger than {MAX_HEADERS} bytes")
        return Failure(Cause.NOT_HTTP, "it does not speak HTTP/1.1")

    def _may_be_stale(self) -> bool:
        return not self._fresh and self._head is None


class _Connection:
    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS)
        self._socket = sock

    def is_quiet(self) -> bool:
        """Whether nothing waits to be read: neither an end nor what nobody asked for."""
        if self.http.trailing_data[0]:
            return False
        descriptor = socket.socket(fileno=self._socket.fileno())
        try:
            descriptor.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            descriptor.detach()
        return False

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)

    def drop(self) -> None:
        """Close without a word to the other side."""
        self._socket.close()


def _why(error: OSError) -> str:
    """trio's own error stands for those of its attempts."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    found = cause if isinstance(cause, OSError) else error
    return (found.strerror or "cannot be reached").lower()


def _request(http: h11.Connection, ask: Ask, url: Url) -> bytes:
    every = [("Host", url.authority), *ask.headers, ("User-Agent", "meshnode"), ("Accept-Encoding", "identity")]
    if ask.body or ask.method == "POST":
        every.append(("Content-Length", str(len(ask.body))))
    head = http.send(h11.Request(method=ask.method, target=url.below(ask.path), headers=every))
    return head + (http.send(h11.Data(data=ask.body)) if ask.body else b"") + http.send(h11.EndOfMessage())
