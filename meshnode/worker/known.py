"""What is known of a model file without loading it: its facts, its digest, and how it looked when they were read (trio)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event as ThreadEvent

import trio

from meshnode.names import ModelDigest
from meshnode.worker import digest, gguf, split

FILE_POLL_S = 2.0
"""How often a bad file is looked at again."""

Stamp = tuple[int, int, int]
"""Size, time of the last change, inode: changes when the file does."""


@dataclass(frozen=True)
class Known:
    facts: gguf.Facts
    digest: ModelDigest


async def read_facts(path: Path) -> gguf.Facts:
    """As `gguf.read_facts`, in a thread."""
    return await trio.to_thread.run_sync(gguf.read_facts, path, abandon_on_cancel=True)


async def read_digest(
    path: Path, facts: gguf.Facts, *, cache_dir: Path, progress: Callable[[int, int], None] = lambda _done, _size: None
) -> ModelDigest:
    """As `digest.digest_of`, in a thread, which calls `progress`; cancelled, it ends within one piece."""
    stop = ThreadEvent()
    hashing = partial(digest.digest_of, *split.parts(path, facts.parts), cache_dir=cache_dir, progress=progress, stop=stop)
    try:
        return await trio.to_thread.run_sync(hashing, abandon_on_cancel=True)
    except digest.Stopped:
        raise AssertionError("only we stop it, and then do not wait for it") from None
    finally:
        stop.set()


async def stamp(path: Path) -> Stamp | None:
    """None when there is no file."""
    try:
        stat = await trio.Path(path).stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


async def wait_changed(path: Path, before: Stamp | None) -> None:
    while await stamp(path) == before:  # noqa: ASYNC110 - nothing portable tells us of a file's change but asking
        await trio.sleep(FILE_POLL_S)
