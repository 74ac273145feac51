"""The data directory: keys, token, epoch, run file. Private files in a private directory, and one node at a time.

    lock        held (flock) by the running node, with its pid inside
    node.key    the node's long-lived key
    token       the mesh's token
    epoch       the last epoch used, so that each start has a higher one
    run.json    while a node runs: where its API is, and the admin secret for it
    cache/      digests of model files
    logs/       the rotating log

Files are created exclusively and renamed into place; a mode looser than 0600 (0700 for the directory) refuses to start and names
the `chmod` (security rule 6).
"""

import contextlib
import fcntl
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from meshnode.errors import ConfigurationError


class DataDir:
    """An open data directory. Only `lock` makes it ours; reading needs no lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_file: int | None = None

    @classmethod
    def open(cls, path: Path) -> "DataDir":
        """The directory at `path`, made if it is missing. Raises ConfigurationError when others could read it."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = path.stat().st_mode
        except OSError as error:
            raise ConfigurationError(f"--data-dir {path}: {error.strerror}.", hint="Give a directory that you own.") from error
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigurationError(f"Others may look into {path}, which holds secrets.", hint=f"Run: chmod 700 {path}")
        return cls(path)

    def lock(self) -> None:
        """Make this process the directory's node until it ends. Raises ConfigurationError naming the one that is."""
        lock_file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(lock_file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(lock_file)
            raise ConfigurationError(
                f"A node already runs on {self.path} (pid {pid}).", hint="Give a second node its own --data-dir."
            ) from error
        os.ftruncate(lock_file, 0)
        os.write(lock_file, f"{os.getpid()}\n".encode())
        self._lock_file = lock_file

    def is_locked(self) -> bool:
        """Whether a node runs on this directory."""
        try:
            lock_file = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock_file)
        return False

    def read(self, name: str) -> bytes | None:
        """The content of a private file; None if there is none. Raises ConfigurationError when others could read it."""
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}.", hint="It must be a plain file that you own.") from error
        with open(descriptor, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigurationError(f"Others may read {path}, which is a secret.", hint=f"Run: chmod 600 {path}")
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Replace a private file as a whole, so that a crash leaves the old one or the new one."""
        path = self.path / name
        temporary = self.path / f".{name}.{secrets.token_hex(4)}"
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
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def write_run(self, facts: dict[str, Any]) -> None:
        self.write("run.json", json.dumps(facts, indent=1).encode())

    def read_run(self) -> dict[str, Any] | None:
        """The run file of the node that runs here now; one that a killed node left behind does not count."""
        content = self.read("run.json")
        if content is None or not self.is_locked():
            return None
        facts = json.loads(content)
        return facts if isinstance(facts, dict) else None
