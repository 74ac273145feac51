"""One life of a child process, seen from the parent: start, frames both ways, last words, orderly end (trio)."""

import importlib.util
import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable

import msgspec
import trio

from meshnode.names import printable
from meshnode.worker import confinement
from meshnode.worker.protocol import Frames, FrameTooLarge, ToParent

GRACE_S = 2.0
"""For the child to end by itself once the socket is closed: it may be in the middle of a step."""
_TERM_S = 1.0
_RECEIVE = 256 * 1024
_LAST_WORDS = 4096
"""Bytes of standard error that are kept, the newest ones."""


def what_is_missing() -> str:
    """What a child could not do without, and what to do; empty when all is there."""
    missing = [module for module in ("llama_cpp", "numpy", "jinja2") if importlib.util.find_spec(module) is None]
    if not missing:
        return ""
    wanted = "Run: pip install 'meshnode[llama]', then start again; or start with --no-worker."
    return f"llama.cpp for Python is not installed ({', '.join(missing)} missing). {wanted}"


class Child:
    """A started child process. `run` owns it: until that is entered and left, nobody else ends it."""

    def __init__(self) -> None:
        """Start it. Synchronous, on the event loop's own thread: the kernel ends a child with the thread that started it, and
        trio's helper threads come and go."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                confinement.command("meshnode.worker.process", str(theirs.fileno()), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=confinement.environment(os.environ),
            )
        assert self._process.stderr is not None
        self._errors = trio.lowlevel.FdStream(os.dup(self._process.stderr.fileno()))
        self._process.stderr.close()
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        # Without bound, since `send` may not wait; the caller sends no request while too much is `unsent`.
        self._outbox, self._unsent = trio.open_memory_channel[bytes](math.inf)
        self._last_words = bytearray()
        self.unsent = 0
        """Bytes that the socket has not taken yet."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, data: bytes) -> None:
        """Have a frame written as soon as the socket takes it; to a child that is gone it is lost."""
        self.unsent += len(data)
        self._outbox.send_nowait(data)

    async def run(self, hear: Callable[[ToParent], None]) -> str:
        """Pass on every message until the child is gone; then how it ended, in words. Cancelled, it ends the child first."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                drained = await nursery.start(self._listen)
                await self._read(hear)
                await self._end()
                with trio.move_on_after(_TERM_S):
                    await drained.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # bounded: a process that was sent SIGKILL is gone at once
                await self._end()
                await self._errors.aclose()
        return self._verdict()

    async def _read(self, hear: Callable[[ToParent], None]) -> None:
        frames = Frames()
        try:
            while data := await self._stream.receive_some(_RECEIVE):
                for body in frames.feed(data):
                    hear(msgspec.msgpack.decode(body, type=ToParent))
        except trio.BrokenResourceError:
            pass
        except (FrameTooLarge, msgspec.DecodeError) as error:
            self._last_words += f"\nbroken message: {error}".encode()

    async def _write(self) -> None:
        try:
            async for data in self._unsent:
                await self._stream.send_all(data)
                self.unsent -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader sees the end too, and tells

    async def _listen(self, *, task_status: trio.TaskStatus[trio.Event]) -> None:
        drained = trio.Event()
        task_status.started(drained)
        while data := await self._errors.receive_some(4096):
            self._last_words = (self._last_words + data)[-_LAST_WORDS:]
        drained.set()

    async def _end(self) -> None:
        """Close the socket, which asks it to go; then SIGTERM, then SIGKILL. Returns when the process is reaped."""
        await trio.aclose_forcefully(self._stream)
        for patience, final in ((GRACE_S, signal.SIGTERM), (_TERM_S, signal.SIGKILL), (math.inf, None)):
            with trio.move_on_after(patience):
                while self._process.poll() is None:  # noqa: ASYNC110 - nothing tells us of a process's end but asking
                    await trio.sleep(0.01)
                return
            if final is not None:
                self._process.send_signal(final)

    def _verdict(self) -> str:
        code = self._process.returncode
        how = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        lines = [line.strip() for line in self._last_words.decode("utf-8", "replace").splitlines() if line.strip()]
        words = printable(" | ".join(lines[-3:]), 400)
        return f"{how}; its last words: {words}" if words else how
