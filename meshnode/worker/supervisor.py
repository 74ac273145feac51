"""A local model as a Backend: its file checked and hashed, its child process kept alive, its requests routed (trio).

    loading --loaded and hashed--> ready --child gone--> failed --back-off over--> loading
       '--bad file, or child gone--> failed --back-off over, or the bad file changed--> loading

The back-off doubles from `BACKOFF_S` to `MAX_BACKOFF_S`, and starts anew after a good life. A file that is at fault is not tried
again until it changes. Whatever happens to the child, its open requests get a WorkerFailed with its last words, and the node
goes on.
"""

import importlib.util
import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from threading import Event as ThreadEvent
from typing import assert_never

import trio

from meshnode.backend import Events
from meshnode.errors import ConfigurationError, InvalidRequest, ModelUnavailable, Overloaded, WorkerFailed, from_code
from meshnode.gossip.member import Model
from meshnode.inference import Event, Request
from meshnode.names import ModelDigest, printable
from meshnode.wire.messages import ModelState
from meshnode.worker import digest, gguf
from meshnode.worker.child import Child
from meshnode.worker.protocol import Cached, Cancel, Failure, FrameTooLarge, Load, Ready, Refused, Step, Submit, ToParent, frame
from meshnode.worker.stream import MAX_UNREAD, Stream

DEFAULT_SLOTS = 4
DEFAULT_CONTEXT = 4096
"""Tokens of a slot, where the model was trained for as many. More costs memory whether it is used or not."""
MAX_WAITING = 64
"""Requests beyond the slots that a child is given."""
MAX_UNSENT = 64 * 1024 * 1024
"""Bytes of requests that a busy child has not read yet. Their number is no bound: whoever leaves makes room for another."""
BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
GOOD_LIFE_S = 60.0
"""A child that was ready for so long did not die of its start."""
FILE_POLL_S = 2.0
"""How often a bad file is looked at again."""

log = logging.getLogger(__name__)
_NO_STEP = Step(events=())


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class _Setback:
    """Why a life ended, and whether the file is to blame."""

    reason: str
    permanent: bool = False


class Worker:
    """One model file, served by a child process of its own. `run` must be running; everything else only looks or asks."""

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        aliases: tuple[str, ...] = (),
        cache_dir: Path,
        slots: int = DEFAULT_SLOTS,
        context_length: int | None = None,
        unified: bool = True,
        chain_of: Callable[[Request, ModelDigest], tuple[int, ...]] = lambda _request, _digest: (),
    ) -> None:
        """`context_length` is a slot's; with a `unified` KV cache a request may have that of all slots, up to the model's own.
        `chain_of` gives the hashes of a prompt's text by which `cached` shall name it (design D22)."""
        self.name = name
        self.path = path
        self.state = State.LOADING
        self.reason = "not started yet"
        """For people: why it is not ready, or what is not as it should be although it is."""
        self.trouble = ""
        """Why the last life ended, until it is ready again: what a person wants to know while it is tried again and again."""
        self.model: Model | None = None
        """None until it was loaded and hashed; kept through failures, for then it is still a model that we know."""
        self._aliases = aliases
        self._cache_dir = cache_dir
        self._slots = slots
        self._wanted_context = context_length
        self._unified = unified
        self._chain_of = chain_of
        self.cached: tuple[tuple[int, ...], ...] = ()
        """The chains of what is in the KV cache, each cut where that ends, the most useful first."""
        self._on_change: Callable[[], None] = lambda: None
        self._child: Child | None = None
        self._streams: dict[int, Stream] = {}
        self._next_stream = 0
        self._retry_at = 0.0
        self._last_step = _NO_STEP
        self._facts: gguf.Facts | None = None
        self._digest: ModelDigest | None = None
        self._ready: Ready | None = None
        self._ready_since = math.inf
        self._setback: _Setback | None = None

    @property
    def pid(self) -> int | None:
        """Of the child process."""
        return self._child.pid if self._child else None

    def load(self) -> ModelState:
        """The live load: what we know here, which is fresher than what the child reports, and its measured speed."""
        active = min(len(self._streams), self._slots)
        room = self._slots * self._context(self._facts) if self._facts else 0
        reported = self._streams and self._last_step is not _NO_STEP
        return ModelState(
            name=self.name,
            digest=self.model.digest if self.model else ModelDigest(b""),
            state=self.state.value,
            active=active,
            slots=self._slots,
            queued=len(self._streams) - active,
            remaining_ms=round(self._last_step.remaining_s * 1000) if reported else 0,
            kv_free_tokens=self._last_step.kv_free_tokens if reported else room,
            tokens_per_s=self._last_step.tokens_per_s,
        )

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        """See `Backend.submit`. Raises ModelUnavailable when it is not ready, Overloaded when too many wait already."""
        number, stream, child = self._open(request)
        try:
            yield stream
        finally:
            self._close(number, stream, child)

    def _open(self, request: Request) -> tuple[int, Stream, Child]:
        if self.state is not State.READY or self._child is None:
            raise ModelUnavailable(f"{self.name} is {self.state} on this node: {self.reason}", retry_after=self._retry_after())
        if self._child.unsent > MAX_UNSENT:
            raise Overloaded(f"The worker of {self.name} is behind with reading requests.", retry_after=5)
        if len(self._streams) >= self._slots + MAX_WAITING:
            raise Overloaded(f"{len(self._streams)} requests for {self.name} are open on this node.", retry_after=5)
        self._next_stream += 1
        chain = self._chain_of(request, self.model.digest) if self.model else ()
        try:
            self._child.send(frame(Submit(stream=self._next_stream, request=request, chain=chain)))
        except UnicodeEncodeError as error:
            raise InvalidRequest("The messages hold half of a surrogate pair.", param="messages") from error
        except FrameTooLarge as error:
            raise InvalidRequest("The messages are too long.", param="messages") from error
        stream = self._streams[self._next_stream] = Stream()
        return self._next_stream, stream, self._child

    def _close(self, number: int, stream: Stream, child: Child) -> None:
        self._streams.pop(number, None)
        if not stream.finished:
            stream.finished = True
            child.send(frame(Cancel(stream=number)))

    def _retry_after(self) -> float:
        if self.state is State.LOADING:
            return 2.0
        return min(MAX_BACKOFF_S, max(1.0, self._retry_at - trio.current_time()))

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Serve until cancelled, which ends the child. `on_change` is called after every change of `state`."""
        self._on_change = on_change
        backoff = BACKOFF_S
        while True:
            stamp = await _stamp(self.path)
            setback = await self._live()
            backoff = BACKOFF_S if trio.current_time() - self._ready_since >= GOOD_LIFE_S else backoff
            self._retry_at = math.inf if setback.permanent else trio.current_time() + backoff
            self._enter(State.FAILED, setback.reason)
            self.trouble = self.reason
            if setback.permanent:
                await _wait_changed(self.path, stamp)
            else:
                await trio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_S)

    async def _live(self) -> _Setback:
        """One life, from the file's check to the child's end; all its requests have got their error when it returns."""
        self._facts = self._digest = self._ready = self._setback = None
        self._ready_since = math.inf
        self._last_step = _NO_STEP
        missing = [module for module in ("llama_cpp", "numpy", "jinja2") if importlib.util.find_spec(module) is None]
        if missing:
            wanted = "Run: pip install 'meshnode[llama]', then start again; or start with --no-worker."
            return _Setback(f"llama.cpp for Python is not installed ({', '.join(missing)} missing). {wanted}", permanent=True)
        self._enter(State.LOADING, "loading")
        try:
            self._facts = await trio.to_thread.run_sync(gguf.read_facts, self.path, abandon_on_cancel=True)
        except ConfigurationError as error:
            return _Setback(str(error), permanent=True)
        return await self._live_with_child(self._facts)

    async def _live_with_child(self, facts: gguf.Facts) -> _Setback:
        try:
            self._child = Child()
        except OSError as error:
            return _Setback(f"its worker process cannot be started: {error.strerror}")
        ending = "stopped"
        try:
            load = Load(
                path=os.fsencode(self.path),
                facts=facts,
                slots=self._slots,
                context_length=self._context(facts),
                unified=self._unified,
            )
            self._child.send(frame(load))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hash, nursery.cancel_scope)
                ending = await self._child.run(self._hear)
                nursery.cancel_scope.cancel()
        finally:
            self._child = None
            self.cached = ()
            self._fail_streams(ending)
        return self._setback or _Setback(f"its worker process ended: {ending}")

    def _context(self, facts: gguf.Facts) -> int:
        return min(self._wanted_context or DEFAULT_CONTEXT, facts.context_length)

    async def _hash(self, life: trio.CancelScope) -> None:
        stop = ThreadEvent()
        hashing = partial(digest.digest_of, self.path, cache_dir=self._cache_dir, progress=self._tell_hashing, stop=stop)
        try:
            self._digest = await trio.to_thread.run_sync(hashing, abandon_on_cancel=True)
        except ConfigurationError as error:
            self._setback = _Setback(str(error), permanent=True)
            life.cancel()
        except digest.Stopped:
            raise AssertionError("only we stop it, and then do not wait for it") from None
        finally:
            stop.set()
        self._become_ready()

    def _tell_hashing(self, done: int, size: int) -> None:
        """Called in the hashing thread; one assignment is safe there."""
        if self.state is State.LOADING:
            self.reason = f"loading, {100 * done // max(size, 1)} % of the file hashed"

    def _become_ready(self) -> None:
        if self._digest is None or self._ready is None or self._facts is None:
            return
        self.model = Model(
            name=self.name,
            aliases=self._aliases,
            digest=self._digest,
            size=self._facts.size,
            context_length=self._ready.context_length,
            slots=self._slots,
        )
        self._ready_since = trio.current_time()
        self.trouble = ""
        self._enter(State.READY, self._ready.note)

    def _hear(self, message: ToParent) -> None:
        match message:
            case Ready():
                self._ready = message
                self._become_ready()
            case Refused():
                self._setback = _Setback(f"{message.message} {message.hint}".rstrip(), permanent=message.permanent)
            case Step():
                self._last_step = message
                for number, event in message.events:
                    if number in self._streams:
                        self._pass_on(number, event)
            case Cached():
                self.cached = message.chains
            case _:
                assert_never(message)

    def _pass_on(self, number: int, event: Event | Failure) -> None:
        stream = self._streams[number]
        if isinstance(event, Failure):
            stream.fail(from_code(event.code, event.message, param=event.param, retry_after=event.retry_after))
            return
        stream.put(event)
        if stream.overrun and not stream.finished:
            stream.fail(Overloaded(f"The reader of this answer is more than {MAX_UNREAD} tokens behind."))
            if self._child:
                self._child.send(frame(Cancel(stream=number)))

    def _fail_streams(self, ending: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(WorkerFailed(f"The worker process of {self.name} ended: {ending}."))

    def _enter(self, state: State, reason: str) -> None:
        changed = state is not self.state
        # It may quote a file's name or what llama.cpp said of the file: hostile text (security rule 23), and not always UTF-8.
        self.state, self.reason = state, printable(reason.encode("utf-8", "replace").decode())
        if changed:
            level = logging.WARNING if state is State.FAILED else logging.INFO
            log.log(level, "%s is %s%s", self.name, state, f": {self.reason}" if self.reason else "")
            self._on_change()


async def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None when there is none."""
    try:
        stat = await trio.Path(path).stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


async def _wait_changed(path: Path, stamp: tuple[int, int, int] | None) -> None:
    while await _stamp(path) == stamp:  # noqa: ASYNC110 - nothing portable tells us of a file's change but asking
        await trio.sleep(FILE_POLL_S)
