"""The sockets of the mesh port, and the loop that accepts on them."""

import errno
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

from meshnode.address import MESH_PORT, Address, parse
from meshnode.errors import ConfigurationError

_BACKLOG = 128
_USER_TIMEOUT_MS = 8000
"""Sent and not acknowledged for so long: the connection is dead. The kernel's own limit is a quarter of an hour."""
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_PAUSE_S = 0.1
_WARN_EVERY_S = 60.0
_NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}

_log = logging.getLogger(__name__)


def tune(stream: trio.SocketStream) -> None:
    """trio has set TCP_NODELAY. TCP_USER_TIMEOUT is Linux's."""
    if sys.platform == "linux":
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


def local_address(listener: trio.SocketListener) -> Address:
    """Where the listener is bound."""
    return Address(*listener.socket.getsockname()[:2])


async def open_mesh_listeners(specs: Sequence[str]) -> tuple[trio.SocketListener, ...]:
    """Bind every HOST:PORT of `--mesh`. Raises ConfigurationError when one cannot be bound, closing the others.

    IPv6 that this machine lacks is passed over if something else was bound. Where port 0 is asked for, the port of the first is
    tried for the others, so that one number is enough to be dialled by either family.
    """
    listeners: list[trio.SocketListener] = []
    missing: ConfigurationError | None = None
    chosen = 0
    try:
        for spec in specs:
            wanted = parse(spec, flag="--mesh", default_port=MESH_PORT)
            bound, missing_here = await _bind(wanted, chosen)
            missing = missing or missing_here
            listeners += bound
            if bound and not chosen and not wanted.port:
                chosen = local_address(bound[0]).port
    except BaseException:
        await _close(listeners)
        raise
    if missing and not listeners:
        raise missing
    return tuple(listeners)


async def _close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        await trio.aclose_forcefully(listener)


async def _bind(wanted: Address, chosen: int) -> tuple[list[trio.SocketListener], ConfigurationError | None]:
    """Listeners on every address of `wanted.host`; instead of them the error, when the machine lacks that family."""
    bound: list[trio.SocketListener] = []
    try:
        for family, host in await _resolve(wanted):
            bound.append(await _bind_one(family, host, wanted.port or chosen, any_port=not wanted.port))
    except OSError as error:
        await _close(bound)
        failure = _failure(wanted, error)
        if error.errno in _NO_SUCH_FAMILY and ":" in wanted.host:
            return [], failure
        raise failure from error
    return bound, None


async def _resolve(wanted: Address) -> list[tuple[int, str]]:
    found = await trio.socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, str(address[0])) for family, _, _, _, address in found]


async def _bind_one(family: int, host: str, port: int, *, any_port: bool) -> trio.SocketListener:
    """A number that is taken is an error, unless any would do."""
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            await sock.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not any_port or not port:
                raise
            await sock.bind((host, 0))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


def _failure(wanted: Address, error: OSError) -> ConfigurationError:
    match error.errno:
        case errno.EADDRINUSE:
            another = Address(wanted.host, wanted.port + 1 if wanted.port < 65535 else 0)
            return ConfigurationError(
                f"--mesh {wanted}: the port is in use.", hint=f"Stop what uses it, or choose another: --mesh {another}"
            )
        case errno.EACCES:
            return ConfigurationError(f"--mesh {wanted}: this user may not bind that port.", hint="Choose one above 1023.")
        case _:
            return ConfigurationError(
                f"--mesh {wanted}: {error.strerror or error}.", hint="Give an address of this machine, or 0.0.0.0 for all."
            )


async def accept(
    listener: trio.SocketListener, handle: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery
) -> None:
    """Start `handle` in `nursery` for each connection, for ever. Out of descriptors it pauses and goes on."""
    warned_at = -_WARN_EVERY_S
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _OUT_OF_DESCRIPTORS:
                raise
            if trio.current_time() - warned_at >= _WARN_EVERY_S:
                warned_at = trio.current_time()
                _log.warning("cannot accept links now: %s", error.strerror)
            await trio.sleep(_PAUSE_S)
        else:
            nursery.start_soon(handle, stream)
