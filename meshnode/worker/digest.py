"""The digest of a model file: what makes two files on two nodes the same model (security rule 20).

    digest = SHA-256( "meshnode-model-v1" || size || SHA-256(piece 0) || SHA-256(piece 1) || ... )

`size` is the file's length in bytes as 8 bytes little-endian; a piece is 4 MiB, the last one what remains; an empty file has no
piece. Over pieces, so that a copy can be checked while it arrives and a source of bad pieces be blamed.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from meshnode.errors import ConfigurationError
from meshnode.names import ModelDigest

PIECE = 4 * 1024 * 1024
_LABEL = b"meshnode-model-v1"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A remembered digest, good as long as the file looks the same."""

    path: bytes
    size: int
    mtime_ns: int
    inode: int
    digest: bytes


class Stopped(Exception):
    """The caller asked `digest_of` to stop before the end."""


def digest_of(
    path: Path,
    *,
    cache_dir: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    stop: threading.Event | None = None,
) -> ModelDigest:
    """The digest of `path`, from the cache when the file is unchanged since. Blocks for as long as reading takes: use a thread.

    Raises ConfigurationError when the file cannot be read or changes meanwhile.
    """
    try:
        before = _entry(path, b"")
        cache = cache_dir / f"{hashlib.sha256(before.path).hexdigest()[:32]}.json"
        remembered = _recall(cache)
        if remembered and before == msgspec.structs.replace(remembered, digest=b""):
            return ModelDigest(remembered.digest)
        digest = _compute(path, before.size, progress, stop or threading.Event())
        unchanged = _entry(path, b"") == before
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from error
    if not unchanged:
        raise ConfigurationError(f"{path} changed while it was read.", hint="It is read again once it stays as it is.")
    _remember(cache, msgspec.structs.replace(before, digest=digest))
    return digest


def _entry(path: Path, digest: bytes) -> _Entry:
    stat = path.stat()
    return _Entry(
        path=os.fsencode(path.resolve()), size=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino, digest=digest
    )


def _compute(path: Path, size: int, progress: Callable[[int, int], None], stop: threading.Event) -> ModelDigest:
    total = hashlib.sha256(_LABEL + size.to_bytes(8, "little"))
    buffer = memoryview(bytearray(PIECE))
    done = 0
    with path.open("rb") as file:
        while read := _fill(file.readinto, buffer):
            if stop.is_set():
                raise Stopped
            total.update(hashlib.sha256(buffer[:read]).digest())
            done += read
            progress(done, size)
    return ModelDigest(total.digest())


def _fill(readinto: Callable[[memoryview], int], buffer: memoryview) -> int:
    """A full piece, or what is left of the file."""
    filled = 0
    while filled < len(buffer) and (read := readinto(buffer[filled:])):
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
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
