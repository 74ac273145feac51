"""The data directory: keys, token, epoch, run file. Private files in a private directory, and one node at a time.

    lock        held (flock) by the running node, with its pid inside
    node.key    the node's long-lived key
    token       the mesh's token
    keys.json   hashes of the API keys
    peers.json  addresses to dial after a restart
    remotes.json  clusters and routers that were added, with their keys
    epoch       the last epoch used, so that each start has a higher one
    run.json    while a node runs: where its API is, and the admin secret for it
    cache/      digests of model files
    logs/       the rotating log

Files are created exclusively and renamed into place; a mode looser than 0600 (0700 for the directory) refuses to start and names
the `chmod` (security rule 6). A killed node leaves its run file behind, but never the lock: so the lock says whether a run file
counts. Whoever only looks takes the lock shared and for an instant, so that two lookers never take each other for a node, and a
node that starts tries a little longer than a look lasts.
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import msgspec

from meshnode.errors import ConfigurationError

_LOCK_TRIES = 20
_LOCK_PAUSE_S = 0.01
"""A look at the lock lasts microseconds; 0.2 s in all outlasts any, and is no wait for a person."""
_RUN = "run.json"


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a command reads of the run file; more is in it, for people."""

    pid: int
    api: str
    """HOST:PORT, as bound."""
    secret: str
    """Makes its reader an admin of the node."""

    def __repr__(self) -> str:
        return f"RunFile(pid={self.pid}, api={self.api!r})"


class DataDir:
    """An open data directory. Only `lock` makes it ours; reading needs no lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_file: int | None = None

    @classmethod
    def open(cls, path: Path) -> "DataDir":
        """The directory at `path`, made if it is missing. Raises ConfigurationError when others could read it."""
        with _explained(f"--data-dir {path}", "Give a directory that you own."):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigurationError(f"Others may look into {path}, which holds secrets.", hint=f"Run: chmod 700 {path}")
        return cls(path)

    def lock(self) -> None:
        """Make this process the directory's node until it ends. Raises ConfigurationError naming the one that is.

        A run file that is there now is a killed node's, and goes, so that nobody takes it for ours.
        """
        with self._lock_opened(os.O_CREAT) as lock_file:
            for _ in range(_LOCK_TRIES):
                if _try_lock(lock_file, fcntl.LOCK_EX):
                    break
                sleep(_LOCK_PAUSE_S)
            else:
                pid = os.read(lock_file, 32).decode("ascii", "replace").strip() or "unknown"
                raise ConfigurationError(
                    f"A node already runs on {self.path} (pid {pid}).", hint="Give a second node its own --data-dir."
                )
            os.ftruncate(lock_file, 0)
            os.write(lock_file, f"{os.getpid()}\n".encode())
            self._lock_file = os.dup(lock_file)  # the same lock, which lives as long as one of its descriptors
        self.remove(_RUN)

    def unlock(self) -> None:
        """Undo `lock`."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def is_locked(self) -> bool:
        """Whether a node runs on this directory."""
        if not (self.path / "lock").exists():
            return False
        with self._lock_opened() as lock_file:
            return not _try_lock(lock_file, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _lock_opened(self, flags: int = 0) -> Iterator[int]:
        path = self.path / "lock"
        with _explained(path, "It must be a plain file that you own, on a disk that knows locks."):
            lock_file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
            try:
                yield lock_file
            finally:
                os.close(lock_file)

    def read(self, name: str) -> bytes | None:
        """The content of a private file; None if there is none. Raises ConfigurationError when others could read it."""
        path = self.path / name
        with _explained(path, "It must be a plain file that you own."):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            try:
                _check_private(path, os.fstat(descriptor).st_mode)
                with open(descriptor, "rb", closefd=False) as file:
                    return file.read()
            finally:
                os.close(descriptor)

    def write(self, name: str, content: bytes) -> None:
        """Replace a private file as a whole, so that a crash leaves the old one or the new one."""
        path = self.path / name
        temporary = self.path / f".{name}.{os.urandom(4).hex()}"
        with _explained(path, "Is the disk full, or the directory not yours?"):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / name).unlink()

    def next_epoch(self, wall_ms: int) -> int:
        """A number above every epoch that a node had on this directory. The clock is only a help when the file is lost."""
        last = self.read("epoch") or b"0"
        epoch = max(int(last) + 1 if last.strip().isdigit() else 0, wall_ms)
        self.write("epoch", f"{epoch}\n".encode())
        return epoch

    def subdirectory(self, name: str) -> Path:
        path = self.path / name
        with _explained(path, "It must be a directory that you own."):
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def write_run(self, facts: dict[str, Any]) -> None:
        self.write(_RUN, json.dumps(facts, indent=1).encode())

    def read_run(self) -> RunFile | None:
        """The run file of the node that runs here now; None without one, or while it starts."""
        content = self.read(_RUN)
        if content is None or not self.is_locked():
            return None
        try:
            return msgspec.json.decode(content, type=RunFile)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.path / _RUN} is damaged.", hint="Restart the node: it writes a new one.") from error


@contextlib.contextmanager
def _explained(what: object, hint: str) -> Iterator[None]:
    """What the system refuses here is for the operator to mend: a sentence with the path, never a traceback."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{what}: {error.strerror or error}.", hint=hint) from error


def _try_lock(lock_file: int, kind: int) -> bool:
    try:
        fcntl.flock(lock_file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_private(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"{path} is not a plain file.", hint="Move it away.")
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(f"Others may read {path}, which is a secret.", hint=f"Run: chmod 600 {path}")
