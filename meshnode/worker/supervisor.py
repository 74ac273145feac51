"""A local model as a Backend: its file checked and hashed, its child process kept alive, its requests routed (trio).

    available --a request, or told to--> loading --loaded and hashed--> ready --unused, or its room is needed--> available
    loading --bad file, or child gone--> failed <--child gone-- ready
    failed --back-off over, or the bad file changed--> loading, or available if it is not resident

A resident model is loaded from the start and stays. Any other is loaded for whoever asks first, while the request waits and is
told of the progress, and is unloaded when nobody has used it for a while. A model with an open request is never unloaded. A
request that comes while it is being unloaded waits, and loads it again.

The back-off doubles from `BACKOFF_S` to `MAX_BACKOFF_S`, and starts anew after a good life. A file that is at fault is not tried
again until it changes. Whatever happens to the child, its open requests get a WorkerFailed with its last words, and the node
goes on.
"""

import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

import trio

from meshnode.backend import Events
from meshnode.errors import ConfigurationError, ModelUnavailable, WorkerFailed
from meshnode.gossip.member import Model
from meshnode.inference import Request
from meshnode.names import ModelDigest, printable
from meshnode.wire.messages import ModelState
from meshnode.worker import context, machine
from meshnode.worker.child import Child, what_is_missing
from meshnode.worker.compute import Compute
from meshnode.worker.gguf import Facts
from meshnode.worker.known import Known, read_digest, read_facts, stamp, wait_changed
from meshnode.worker.memory import Held, Need, need
from meshnode.worker.protocol import Cached, Load, Ready, Refused, Step, Threads, ToParent, frame
from meshnode.worker.requests import Requests, work_s
from meshnode.worker.room import Room
from meshnode.worker.stream import Stream

DEFAULT_SLOTS = 4
BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
DISK_BYTES_PER_S = 500e6
"""To guess how long a model takes that was never loaded: a solid state disk of the slower kind."""
GOOD_LIFE_S = 60.0
"""A child that was ready for so long did not die of its start."""

log = logging.getLogger(__name__)
_NO_STEP = Step(events=())


class State(StrEnum):
    AVAILABLE = "available"
    """On disk, and loaded when somebody asks for it."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class _Setback:
    """Why a life ended, whether the file is to blame, and whether nothing is, for only memory is short."""

    reason: str
    permanent: bool = False
    no_room: bool = False


class Worker:
    """One model, served by a child process of its own. `run` must be running; everything else only looks or asks."""

    def __init__(  # noqa: PLR0913 - each has a name at the call, and a default
        self,
        name: str,
        path: Path,
        *,
        aliases: tuple[str, ...] = (),
        cache_dir: Path,
        slots: int = DEFAULT_SLOTS,
        context_length: int | None = None,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        chain_of: Callable[[Request, ModelDigest], tuple[int, ...]] = lambda _request, _digest: (),
        known: Known | None = None,
        room: Room | None = None,
    ) -> None:
        """`context_length` is a slot's; with a `unified` KV cache a request may have that of all slots, up to the model's own.
        `chain_of` gives the hashes of a prompt's text by which `cached` shall name it (design D22). `known` makes it one that is
        loaded on request, and unloaded as the room says."""
        self.name = name
        self.path = path
        self.resident = known is None
        self.state = State.LOADING if self.resident else State.AVAILABLE
        self.reason = "not started yet"
        """For people: why it is not ready, or what is not as it should be although it is."""
        self.trouble = ""
        """Why the last life ended, until it is ready again: what a person wants to know while it is tried again and again."""
        self.model: Model | None = None
        """None until it was hashed; kept through failures, for then it is still a model that we know."""
        self.last_used = -math.inf
        self.aliases = aliases
        self._cache_dir = cache_dir
        self._slots = slots
        self._wanted_context = context_length
        self._compute = compute
        self._chain_of = chain_of
        self._room = room or Room()
        self.cached: tuple[tuple[int, ...], ...] = ()
        """The chains of what is in the KV cache, each cut where that ends, the most useful first."""
        self._on_change: Callable[[], None] = lambda: None
        self._child: Child | None = None
        self._requests = Requests(name, slots, work_s=lambda request: work_s(request, self._measured))
        self._retry_at = 0.0
        self._last_step = _NO_STEP
        self._measured = _NO_STEP
        """The last step that told speeds, of this life or one before: the machine is the same."""
        self._loading_since = 0.0
        self._load_s = 0.0
        """Of the last loading; 0 before the first one was over."""
        self._facts: Facts | None = None
        self._digest: ModelDigest | None = None
        self._ready: Ready | None = None
        self._ready_since = math.inf
        self._setback: _Setback | None = None
        self._wanted = trio.Event()
        self._life: trio.CancelScope | None = None
        self._leaving = False
        self._threads = self._told_threads = 0
        if self.resident:
            self._wanted.set()
        if known:
            self._facts = known.facts
            limit = context.of_request(known.facts, context_length, slots=slots, unified=compute.unified)
            self.model = self._as_model(known.facts, known.digest, limit)

    @property
    def pid(self) -> int | None:
        """Of the child process."""
        return self._child.pid if self._child else None

    @property
    def busy(self) -> bool:
        """Whether a request is open."""
        return bool(self._requests)

    @property
    def held(self) -> Held | None:
        """The main memory that it has or will have taken; None without a process, or when it is on a graphics processor."""
        if self._child is None or self._facts is None or self.on_gpu:
            return None
        needed = self._need(self._facts).total
        return Held(needed, machine.resident(self._child.pid) or needed)

    @property
    def on_gpu(self) -> bool:
        """Whether it has a process whose model is on a graphics processor."""
        return self._child is not None and self._ready is not None and self._ready.on_gpu

    def load(self) -> ModelState:
        """The live load: what we know here, which is fresher than what the child reports, and its measured speed."""
        active = self._requests.active
        room = self._slots * context.of_slot(self._facts, self._wanted_context) if self._facts else 0
        reported = self._requests.at_work and self._last_step is not _NO_STEP
        return ModelState(
            name=self.name,
            digest=self.model.digest if self.model else ModelDigest(b""),
            state=self.state.value,
            active=active,
            slots=self._slots,
            queued=len(self._requests) - active,
            remaining_ms=round((self._last_step.remaining_s + self._requests.waiting_s) * 1000) if reported else 0,
            kv_free_tokens=self._last_step.kv_free_tokens if reported else room,
            tokens_per_s=self._last_step.tokens_per_s,
            prefill_per_s=self._measured.prefill_per_s,
            step_ms=1000 * self._measured.step_s,
            stream_ms=1000 * self._measured.stream_s,
            load_ms=round(1000 * self._load_left()),
        )

    def _load_left(self) -> float:
        """Seconds from a request on until it could begin; 0 when it is loaded, or nothing is known."""
        size = self.model.size if self.model else 0
        whole = self._load_s or size / DISK_BYTES_PER_S
        match self.state:
            case State.AVAILABLE:
                return whole
            case State.LOADING:
                return max(0.0, whole - (trio.current_time() - self._loading_since))
            case _:
                return 0.0

    def wake(self) -> None:
        """Load it, if it is not loaded."""
        self._wanted.set()

    def unload(self) -> bool:
        """Begin to end the child, which gives its memory back; False, and nothing is done, while a request is open."""
        if self.busy:
            return False
        self._wanted = trio.Event()
        if self._life:
            self._leaving = True
            self._life.cancel()
            self._enter(State.AVAILABLE, "being unloaded")
        return True

    def set_threads(self, count: int) -> None:
        """Its share of the cores from now on."""
        self._threads = count
        self._tell_threads()

    def _tell_threads(self) -> None:
        if self._child and self.state is State.READY and self._threads != self._told_threads:
            self._told_threads = self._threads
            self._child.send(frame(Threads(count=self._threads)))

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        """See `Backend.submit`. Raises ModelUnavailable when it failed or is not known yet, Overloaded when too many wait."""
        number, stream = self._open(request)
        try:
            yield stream
        finally:
            self._close(number, stream)

    def _open(self, request: Request) -> tuple[int, Stream]:
        if self.state is State.FAILED or self.model is None:
            raise ModelUnavailable(f"{self.name} is {self.state} on this node: {self.reason}", retry_after=self._retry_after())
        chain = self._chain_of(request, self.model.digest)
        opened = self._requests.open(
            request, self._child if self.state is State.READY else None, chain=chain, remaining_s=self._last_step.remaining_s
        )
        self._wanted.set()
        self._room.change()
        return opened

    def _close(self, number: int, stream: Stream) -> None:
        self._requests.close(number, stream, self._child if self.state is State.READY else None)
        self.last_used = trio.current_time()
        self._room.change()

    def _retry_after(self) -> float:
        if self.state is State.LOADING:
            return 2.0
        return min(MAX_BACKOFF_S, max(1.0, self._retry_at - trio.current_time()))

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Serve until cancelled, which ends the child. `on_change` is called after every change of `state`."""
        self._on_change = on_change
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._requests.reassure)
            await self._serve()

    async def _serve(self) -> None:
        backoff = BACKOFF_S
        while True:
            if not self._wanted.is_set():
                self._enter(State.AVAILABLE, "")
            await self._wanted.wait()
            before = await stamp(self.path)
            if not self._wanted.is_set():
                continue  # it was called off meanwhile
            setback = await self._live()
            if setback is None or (setback.no_room and self._room.unload_on_gpu()):
                continue
            backoff = BACKOFF_S if trio.current_time() - self._ready_since >= GOOD_LIFE_S else backoff
            self._retry_at = math.inf if setback.permanent else trio.current_time() + backoff
            self._fail(setback.reason)
            if setback.permanent:
                await wait_changed(self.path, before)
            else:
                await trio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_S)
            if not self.resident:
                self._wanted = trio.Event()
                self.trouble = "" if setback.no_room else self.trouble

    def _fail(self, reason: str) -> None:
        self._enter(State.FAILED, reason)
        self.trouble = self.reason
        why = f"{self.name} cannot be loaded on this node: {self.reason}"
        self._requests.refuse_waiting(ModelUnavailable(why, retry_after=self._retry_after()))

    async def _live(self) -> _Setback | None:
        """One life, from the file's check to the child's end; all the child's requests have got their error when it returns.

        None when the child was unloaded, or got no room in time, and nothing is wrong.
        """
        self._digest = self._ready = self._setback = None
        self._ready_since = math.inf
        self._last_step, self.cached = _NO_STEP, ()
        self._leaving, self._told_threads = False, 0
        setback = None
        try:
            with trio.CancelScope() as self._life:
                setback = await self._load_and_serve()
        finally:
            self._life = None
            self._room.left(self)
        return None if self._leaving else setback

    async def _load_and_serve(self) -> _Setback | None:
        if missing := what_is_missing():
            return _Setback(missing, permanent=True)
        self._loading_since = trio.current_time()
        self._enter(State.LOADING, "loading")
        try:
            self._facts = await read_facts(self.path)
            free = await self._room.wait_turn(self, self._need(self._facts))
        except ConfigurationError as error:
            return _Setback(str(error), permanent=True)
        except ModelUnavailable as error:
            log.warning("%s", error)
            if not self.resident:
                self._wanted = trio.Event()
            self._requests.refuse_waiting(error)
            return None
        return await self._live_with_child(self._facts, free)

    def _need(self, facts: Facts) -> Need:
        slot = context.of_slot(facts, self._wanted_context)
        return need(facts, slots=self._slots, context_length=slot, kv_type=self._compute.kv_type)

    async def _live_with_child(self, facts: Facts, free: int | None) -> _Setback:
        try:
            self._child = Child()
        except OSError as error:
            return _Setback(f"its worker process cannot be started: {error.strerror}")
        ending = "stopped"
        load = Load(
            path=os.fsencode(self.path),
            facts=facts,
            slots=self._slots,
            context_length=context.of_slot(facts, self._wanted_context),
            compute=self._compute,
            memory_free=free,
        )
        try:
            self._child.send(frame(load))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hash, facts, nursery.cancel_scope)
                nursery.start_soon(self._unload_unused)
                ending = await self._child.run(self._hear)
                nursery.cancel_scope.cancel()
        finally:
            self._child = None
            self.cached = ()
            self._requests.fail_given(WorkerFailed(f"The worker process of {self.name} ended: {ending}."))
        return self._setback or _Setback(f"its worker process ended: {ending}")

    async def _unload_unused(self) -> None:
        keep_alive = self._room.keep_alive
        if self.resident or keep_alive == math.inf:
            return
        while True:
            since = max(self.last_used, self._ready_since if self.state is State.READY else trio.current_time())
            left = keep_alive if self.busy else since + keep_alive - trio.current_time()
            if left <= 0 and self.unload():
                log.info("%s is unloaded: unused for %.0f s", self.name, keep_alive)
                return
            await trio.sleep(max(left, 0.1))

    async def _hash(self, facts: Facts, life: trio.CancelScope) -> None:
        try:
            self._digest = await read_digest(self.path, facts, cache_dir=self._cache_dir, progress=self._tell_hashing)
        except ConfigurationError as error:
            self._setback = _Setback(str(error), permanent=True)
            life.cancel()
        self._become_ready()

    def _tell_hashing(self, done: int, size: int) -> None:
        """Called in the hashing thread; one assignment is safe there."""
        if self.state is State.LOADING:
            self.reason = f"loading, {100 * done // max(size, 1)} % of the file hashed"

    def _become_ready(self) -> None:
        if self._digest is None or self._ready is None or self._facts is None or self._child is None or self._leaving:
            return
        self.model = self._as_model(self._facts, self._digest, self._ready.context_length)
        self._ready_since = trio.current_time()
        self._load_s = self._ready_since - self._loading_since
        self.trouble = ""
        notes = self._ready.note, context.warning(self._facts, self._wanted_context)
        self._enter(State.READY, " ".join(filter(None, notes)))
        self._requests.give(self._child)
        self._tell_threads()

    def _as_model(self, facts: Facts, digest: ModelDigest, context_length: int) -> Model:
        return Model(
            name=self.name,
            aliases=self.aliases,
            digest=digest,
            size=facts.size,
            context_length=context_length,
            slots=self._slots,
        )

    def _hear(self, message: ToParent) -> None:
        match message:
            case Ready():
                self._ready = message
                self._room.end_turn(self)
                self._become_ready()
            case Refused():
                reason = f"{message.message} {message.hint}".rstrip()
                self._setback = _Setback(reason, permanent=message.permanent, no_room=not message.permanent)
            case Step():
                self._last_step = message
                if message.step_s:
                    self._measured = message
                for number, event in message.events:
                    self._requests.hear(number, event, self._child)
            case Cached():
                self.cached = message.chains
            case _:
                assert_never(message)

    def _enter(self, state: State, reason: str) -> None:
        changed = state is not self.state
        # It may quote a file's name or what llama.cpp said of the file: hostile text (security rule 23), and not always UTF-8.
        self.state, self.reason = state, printable(reason.encode("utf-8", "replace").decode())
        if changed:
            level = logging.WARNING if state is State.FAILED or (state is State.READY and self.reason) else logging.INFO
            log.log(level, "%s is %s%s", self.name, state, f": {self.reason}" if self.reason else "")
            self._on_change()
