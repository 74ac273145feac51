"""All models of this node: those that were given by name, which stay loaded, and those of folders, loaded when asked for (trio).

A folder is scanned every `RESCAN_S`, and when somebody asks for a model that nobody knows. A new file is checked first - its
facts read, its digest computed, one file at a time - and only then offered: without a digest no other node could tell what it is.
A file that is bad is kept in mind with its reason until it changes. One that is gone, or is another now, is dropped as soon as
nobody uses it; what is loaded keeps the file open meanwhile.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import trio

from meshnode.errors import ConfigurationError
from meshnode.gossip.member import Model
from meshnode.names import ModelDigest, printable
from meshnode.wire.messages import ModelState
from meshnode.worker.compute import Compute
from meshnode.worker.known import Known, read_digest, read_facts
from meshnode.worker.naming import name_of
from meshnode.worker.room import Room
from meshnode.worker.scan import Found, Scan, scan
from meshnode.worker.supervisor import State, Worker

MAX_MODELS = 64
"""What a heartbeat can tell of (SPEC 7.1)."""
RESCAN_S = 30.0
"""A scan of a folder with a hundred files takes a millisecond."""
RESCAN_APART_S = 2.0
"""So often at most, whoever asks for models that do not exist."""
CHECKING = "checking"
"""The state of a file whose digest is not known yet; it may not be asked for."""
_NO_MODELS = frozenset({"clip"})
"""Architectures of files that belong to a model and are none: projectors for images."""

log = logging.getLogger(__name__)


class Trouble(NamedTuple):
    """Something that needs a person: a worker that failed, or a file or folder that cannot be used."""

    name: str
    reason: str
    of_file: bool = False


@dataclass(eq=False)
class _Offer:
    """A file of a folder, from when it was found until it is gone."""

    found: Found
    name: str
    aliases: tuple[str, ...]
    scope: trio.CancelScope
    """Of its check, then of its worker's life: cancelled when the file is gone."""
    checked: bool = False
    reason: str = ""
    """Why it cannot be offered; empty for one that is no model of its own, too."""
    worker: Worker | None = None


class Models:
    """`run` must be running; everything else only looks or asks."""

    def __init__(
        self,
        given: Iterable[tuple[str, Path]],
        folders: Sequence[Path],
        *,
        cache_dir: Path,
        slots: int,
        context_length: int | None,
        compute: Compute,
        keep_alive: float,
    ) -> None:
        self._folders = folders
        self._cache_dir = cache_dir
        self._slots = slots
        self._context_length = context_length
        self._compute = compute
        self._room = Room(lambda: self.workers, keep_alive=keep_alive)
        self._given = tuple(self._worker(name, path) for name, path in given)
        self._offers: dict[Path, _Offer] = {}
        self._troubles: tuple[str, ...] = ()
        self._news = trio.Event()
        self._scanning = trio.Lock()
        self._scanned_at = float("-inf")
        self._on_change: Callable[[], None] = lambda: None

    def _worker(self, name: str, path: Path, *, aliases: tuple[str, ...] = (), known: Known | None = None) -> Worker:
        return Worker(
            name,
            path,
            aliases=aliases,
            cache_dir=self._cache_dir,
            slots=self._slots,
            context_length=self._context_length,
            compute=self._compute,
            known=known,
            room=self._room,
        )

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Of every model that can be asked for, and of those given by name in any case."""
        return (*self._given, *(offer.worker for offer in self._offers.values() if offer.worker))

    def load(self) -> tuple[ModelState, ...]:
        """The live load of each; the same weights once."""
        workers = [worker.load() for worker in self._distinct()]
        states = [
            (offer.name, State.FAILED if offer.reason else CHECKING)
            for offer in self._offers.values()
            if offer.reason or not offer.checked
        ]
        return (*workers, *(ModelState(name=name, digest=ModelDigest(b""), state=state) for name, state in states))[:MAX_MODELS]

    def records(self) -> list[Model]:
        """The slow facts of each that is known."""
        return [worker.model for worker in self._distinct() if worker.model is not None]

    def _distinct(self) -> list[Worker]:
        """Without those of folders that have the weights of one that was given by name."""
        given = {worker.model.digest for worker in self._given if worker.model}
        return [worker for worker in self.workers if worker.resident or worker.model is None or worker.model.digest not in given]

    def backend(self, digest: ModelDigest) -> Worker | None:
        """The one that serves these weights now, or will when it is asked."""
        usable = [worker for worker in self._distinct() if worker.model is not None and worker.state is not State.FAILED]
        return next((worker for worker in usable if worker.model and worker.model.digest == digest), None)

    def find(self, name: str) -> Worker | None:
        """The one that is called so, to be told `wake` or `unload`."""
        return next((worker for worker in self.workers if name == worker.name or name in worker.aliases), None)

    def troubles(self) -> list[Trouble]:
        failed = [Trouble(worker.name, worker.trouble) for worker in self.workers if worker.trouble]
        bad = [Trouble(offer.name, offer.reason, True) for offer in self._offers.values() if offer.reason]
        return [*failed, *bad, *(Trouble("", trouble, True) for trouble in self._troubles)]

    def waiting(self) -> list[str]:
        """What is not ready yet, for people: `name: state`."""
        checking = [f"{offer.name}: {CHECKING}" for offer in self._offers.values() if not offer.checked]
        return [*(f"{worker.name}: {worker.state.value}" for worker in self.workers), *checking]

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Serve until cancelled, which ends all children. `on_change` is called when what the others above tell has changed."""
        self._on_change = on_change
        async with trio.open_nursery() as nursery:
            for worker in self._given:
                nursery.start_soon(self._run_worker, worker)
            if self._folders:
                nursery.start_soon(self._check_all, nursery)
                while True:
                    await self._scan()
                    await trio.sleep(RESCAN_S)

    async def _run_worker(self, worker: Worker) -> None:
        await worker.run(on_change=self._on_change)

    async def look_again(self) -> bool:
        """Scan the folders unless that was just done; whether anything was found that was not known."""
        before = set(self._offers)
        if self._folders and trio.current_time() - self._scanned_at >= RESCAN_APART_S:
            await self._scan()
        return not before >= set(self._offers)

    async def _scan(self) -> None:
        async with self._scanning:
            found = await trio.to_thread.run_sync(scan, self._folders, abandon_on_cancel=True)
            self._scanned_at = trio.current_time()
            self._apply(found)

    def _apply(self, result: Scan) -> None:
        """Drop what is gone, take up what is new."""
        given = {os.path.realpath(worker.path) for worker in self._given}
        found = {each.path: each for each in result.found if os.path.realpath(each.path) not in given}
        for path, offer in list(self._offers.items()):
            if found.get(path) != offer.found and not (offer.worker and offer.worker.busy):
                log.info("%s: %s is no more, or is another file now", offer.name, path)
                offer.scope.cancel()
                del self._offers[path]
        new = [each for path, each in found.items() if path not in self._offers]
        room = max(0, MAX_MODELS - len(self._given) - len(self._offers))
        taken = {name for worker in self.workers for name in (worker.name, *worker.aliases)}
        taken |= {name for offer in self._offers.values() for name in (offer.name, *offer.aliases)}
        for each in new[:room]:
            name, aliases = name_of(each.path, each.label, taken)
            taken |= {name, *aliases}
            self._offers[each.path] = _Offer(each, name, aliases, trio.CancelScope())
        left_out = [f"{len(new) - room} model files are too many: a node offers at most {MAX_MODELS}"] if len(new) > room else []
        self._troubles = (*result.troubles, *left_out)
        self._news.set()
        self._on_change()

    async def _check_all(self, nursery: trio.Nursery) -> None:
        """Check what is new, one after the other, and offer what is good. The workers run in `nursery`, which outlives this."""
        while True:
            self._news = trio.Event()
            offer = next((offer for offer in self._offers.values() if not offer.checked), None)
            if offer is None:
                await self._news.wait()
                continue
            with offer.scope:
                await self._check(offer)
            offer.checked = True
            if offer.worker and self._offers.get(offer.found.path) is offer:
                offer.scope = trio.CancelScope()
                nursery.start_soon(self._run_offered, offer.worker, offer.scope)
            self._on_change()

    async def _check(self, offer: _Offer) -> None:
        path = offer.found.path
        try:
            facts = await read_facts(path)
            if facts.architecture in _NO_MODELS:
                log.info("%s is no model of its own (%s)", path, facts.architecture)
                return
            known = Known(facts, await read_digest(path, facts, cache_dir=self._cache_dir))
        except ConfigurationError as error:
            offer.reason = printable(str(error).encode("utf-8", "replace").decode())
            log.warning("%s is not offered: %s", offer.name, offer.reason)
            return
        if any(worker.model and worker.model.digest == known.digest for worker in self.workers):
            log.info("%s holds the same weights as a model that is offered", path)
            return
        offer.worker = self._worker(offer.name, path, aliases=offer.aliases, known=known)
        log.info("%s is offered: %s", offer.name, path)

    async def _run_offered(self, worker: Worker, scope: trio.CancelScope) -> None:
        with scope:
            await self._run_worker(worker)
