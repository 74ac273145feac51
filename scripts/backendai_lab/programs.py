"""What the lab needs installed, and processes that outlive this one and are found again by their pid."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

DEBIAN = ("redis-tools", "etcd-server", "etcd-client", "liblzf1", "libjemalloc2", "libatomic1")
"""Unpacked into a directory of ours; `redis-server` is another name of `redis-check-rdb`."""
RELEASES = {
    "26": ("3.13", ("manager", "client", "appproxy-coordinator", "appproxy-worker"), "26.9.6"),
    "23": ("3.11", ("manager", "client"), "23.9.10"),
}
PINNED = {"23": ["yarl==1.9.4"]}
"""Newer ones break manager and client 23.09."""
START_S = 120.0


class Unavailable(Exception):
    """The lab cannot be had on this machine; the text says why, in one line."""


def postgres_bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise Unavailable("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found[-1].parent


def unpack_debian(directory: Path) -> None:
    """Redis and etcd, without touching the system."""
    root = directory / "root"
    if (root / "usr/bin/etcd").exists():
        return
    if shutil.which("apt-get") is None:
        raise Unavailable("Redis and etcd come from Debian packages, and this is no Debian")
    downloads = directory / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(["apt-get", "download", *DEBIAN], cwd=downloads, capture_output=True, text=True, check=False)
    packages = sorted(downloads.glob("*.deb"))
    if fetched.returncode != 0 or not packages:
        raise Unavailable(f"Debian packages cannot be downloaded: {fetched.stderr.strip()[-200:]}")
    for package in packages:
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    server = root / "usr/bin/redis-server"
    if not server.exists():
        server.symlink_to("redis-check-rdb")


def environment_of(release: str, directory: Path) -> Path:
    """The virtual environment of a release, made if it is missing."""
    version, packages, number = RELEASES[release]
    made = directory / f"venv{release}"
    if (made / "bin/backend.ai").exists():
        return made
    python = _python(version)
    subprocess.run([python, "-m", "venv", "--clear", made], check=True)
    wanted = [f"backend.ai-{package}=={number}" for package in packages] + PINNED.get(release, [])
    old_tools = ["setuptools<70", "wheel"] if release == "23" else []
    for batch in filter(None, (old_tools, wanted)):
        installed = subprocess.run(
            [made / "bin/pip", "-q", "--disable-pip-version-check", "install", *batch],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode != 0:
            raise Unavailable(f"Backend.AI {number} cannot be installed: {installed.stderr.strip()[-300:]}")
    return made


def _python(version: str) -> str:
    candidates = [
        *sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python")),
        Path(shutil.which(f"python{version}") or ""),
    ]
    for candidate in candidates:
        if candidate.is_file() and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    raise Unavailable(f"Backend.AI needs Python {version}, which is not installed")


class Processes:
    """Started by name in sessions of their own; the pid of each is in a file."""

    def __init__(self, directory: Path) -> None:
        self._pids = directory / "run"
        self._logs = directory / "log"

    def start(
        self, name: str, command: Sequence[str | Path], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Unless it runs."""
        if self.is_alive(name):
            return
        self._logs.mkdir(parents=True, exist_ok=True)
        self._pids.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        self._file(name).write_text(str(process.pid))

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM) -> None:
        pid = self._pid(name)
        if pid:
            try:
                os.killpg(pid, how)
                _wait(lambda: not _runs(pid), f"{name} to end", seconds=20)
            except ProcessLookupError:
                pass
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
        self._file(name).unlink(missing_ok=True)

    def is_alive(self, name: str) -> bool:
        return _runs(self._pid(name))

    def log(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_port(self, name: str, port: int) -> None:
        def is_open() -> bool:
            if not self.is_alive(name):
                raise Unavailable(f"{name} ended: {self.log(name).strip()[-400:]}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        _wait(is_open, f"{name} at port {port}", seconds=START_S)

    def wait_for_line(self, name: str, words: str) -> None:
        _wait(lambda: words in self.log(name), f"{name} to say {words!r}", seconds=START_S)

    def _pid(self, name: str) -> int:
        path = self._file(name)
        return int(path.read_text()) if path.exists() and path.read_text().isdigit() else 0

    def _file(self, name: str) -> Path:
        return self._pids / f"{name}.pid"


def _runs(pid: int) -> bool:
    """A child of ours that has ended counts as gone."""
    if not pid:
        return False
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)
