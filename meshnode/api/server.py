"""The listeners' side of the HTTP server: accept, cap, contain, stop.

Each connection runs behind `_contain`: whatever a client sends, and whatever a bug of ours makes of it, ends that connection
only. trio turns Nagle's delay off for every socket that it accepts, so a chunk leaves when it is written.
"""

import errno
import logging
from collections.abc import Sequence

import trio

from meshnode.api.connection import Application, Connection, Idle
from meshnode.api.limits import Limits
from meshnode.errors import Overloaded

log = logging.getLogger("meshnode.api")

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_PAUSE_S = 0.1
"""Long enough for another connection to end, short enough not to be noticed."""
_REFUSALS = 64
"""Connections over the cap that are told so at the same time; more are closed without a word."""


async def serve(
    app: Application,
    listeners: Sequence[trio.SocketListener],
    *,
    stopping: trio.Event,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stopping` is set, then let running answers end for `limits.grace_s`, and cut the rest. Closes the listeners.

    Cancelled, it cuts at once. Either way it returns promptly: no write to a client that does not read is waited for.
    """
    server = _Server(app, limits or Limits())
    try:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener, connections)
                task_status.started()
                await stopping.wait()
                accepting.cancel_scope.cancel()
            _close(listeners)
            server.idle.stop()
            connections.cancel_scope.deadline = trio.current_time() + server.limits.grace_s
    finally:
        _close(listeners)


def _close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()


class _Server:
    def __init__(self, app: Application, limits: Limits) -> None:
        self.limits = limits
        self.idle = Idle()
        self._app = app
        self._open = 0
        self._paused = False

    async def accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        """Start a task in `connections` for each client: it outlives this one, which the stop cancels."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                await self._pause(error)
            else:
                self._paused = False
                connections.start_soon(self._contain, stream)

    async def _pause(self, error: OSError) -> None:
        if not self._paused:
            log.error("The API cannot accept connections for now (%s); raise the limit of open files.", error.strerror)
        self._paused = True
        await trio.sleep(_PAUSE_S)

    async def _contain(self, stream: trio.SocketStream) -> None:
        """Serve one client and let nothing of it out but cancellation."""
        self._open += 1
        try:
            await self._serve(stream)
        except* Exception:
            log.exception("A connection was cut by a bug; please report it.")
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        peer, local = _names(stream)
        connection = Connection(stream, self._app, limits=self.limits, idle=self.idle, peer=peer, local=local)
        if self._open <= self.limits.connections:
            await connection.run()
        elif self._open <= self.limits.connections + _REFUSALS:
            await connection.refuse(Overloaded(f"This node serves {self.limits.connections} connections at once.", retry_after=1))


def _names(stream: trio.SocketStream) -> tuple[str, str]:
    """Addresses of the client and of our end, without ports; empty when the client has gone already."""
    try:
        return stream.socket.getpeername()[0], stream.socket.getsockname()[0]
    except OSError:
        return "", ""
