"""The digest of a model file: what makes two files on two nodes the same model (security rule 20).

    digest = SHA-256( "meshnode-model-v1" || size || SHA-256(piece 0) || SHA-256(piece 1) || ... )

`size` is the file's length in bytes as 8 bytes little-endian; a piece is 4 MiB, the last one what remains; an empty file has no
piece. Over pieces, so that a copy can be checked while it arrives and a source of bad pieces be blamed. A model that is split
over several files counts as one file: its parts, in order, without a gap.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from io import BufferedReader
from pathlib import Path

import msgspec

from meshnode.errors import ConfigurationError
from meshnode.names import ModelDigest

PIECE = 4 * 1024 * 1024
_LABEL = b"meshnode-model-v1"


MAX_REMEMBERED = 1024
"""Digests in the cache; of more, those written the longest ago are forgotten. Some 300 bytes each."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """What a file looks like: it is read again when that changes."""

    path: bytes
    size: int
    mtime_ns: int
    inode: int


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A remembered digest, good as long as the files look the same."""

    files: tuple[_File, ...]
    digest: bytes


class Stopped(Exception):
    """The caller asked `digest_of` to stop before the end."""


def digest_of(
    *parts: Path,
    cache_dir: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    stop: threading.Event | None = None,
) -> ModelDigest:
    """The digest of a model's `parts`, from the cache when they are unchanged since. Blocks while they are read: use a thread.

    Raises ConfigurationError when one cannot be read or changes meanwhile.
    """
    try:
        before = tuple(map(_look, parts))
        cache = cache_dir / f"{hashlib.sha256(before[0].path).hexdigest()[:32]}.json"
        remembered = _recall(cache)
        if remembered and remembered.files == before:
            return ModelDigest(remembered.digest)
        digest = _compute(parts, sum(file.size for file in before), progress, stop or threading.Event())
        unchanged = tuple(map(_look, parts)) == before
    except OSError as error:
        name = os.fsdecode(error.filename or parts[0])
        raise ConfigurationError(f"{name}: cannot be read: {error.strerror}.") from error
    if not unchanged:
        raise ConfigurationError(f"{parts[0]} changed while it was read.", hint="It is read again once it stays as it is.")
    _remember(cache, _Entry(files=before, digest=digest))
    return digest


def _look(path: Path) -> _File:
    stat = path.stat()
    return _File(path=os.fsencode(path.resolve()), size=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino)


def _compute(parts: Sequence[Path], size: int, progress: Callable[[int, int], None], stop: threading.Event) -> ModelDigest:
    total = hashlib.sha256(_LABEL + size.to_bytes(8, "little"))
    buffer = memoryview(bytearray(PIECE))
    done = 0
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(path.open("rb")) for path in parts]
        while read := _fill(files, buffer):
            if stop.is_set():
                raise Stopped
            total.update(hashlib.sha256(buffer[:read]).digest())
            done += read
            progress(done, size)
    return ModelDigest(total.digest())


def _fill(files: Sequence[BufferedReader], buffer: memoryview) -> int:
    """A full piece, or what is left of the files, which are read one after the other."""
    filled = 0
    for file in files:
        while filled < len(buffer) and (read := file.readinto(buffer[filled:])):
            filled += read
    return filled


def _recall(cache: Path) -> _Entry | None:
    try:
        entry = msgspec.json.decode(cache.read_bytes(), type=_Entry)
    except (OSError, msgspec.DecodeError):
        return None
    return entry if len(entry.digest) == 32 else None


def _remember(cache: Path, entry: _Entry) -> None:
    """One small file per model, so that two workers never overwrite each other's; a lost cache only costs time."""
    temporary = cache.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(entry))
        temporary.replace(cache)
        _forget(cache.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _forget(folder: Path) -> None:
    """Whatever comes and goes in a folder of models, the cache does not grow for ever."""
    entries = sorted((entry.stat().st_mtime_ns, entry.name) for entry in folder.glob("*.json"))
    for _, name in entries[:-MAX_REMEMBERED]:
        (folder / name).unlink(missing_ok=True)
