"""The servers that `engine.py` measures, as processes: a meshnode, llama-server, and the server of llama-cpp-python."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llama_server import llama_server
from streams import Server

HERE = Path(__file__).resolve().parent
START_S = 120.0
CONTEXT = 2048
"""Tokens of one slot."""


@dataclass(frozen=True)
class Running:
    """A server that answers, and the process that it is."""

    server: Server
    pid: int

    def cpu_s(self) -> float:
        """Processor time of the process and its children so far."""
        ticks = 0
        for pid in (self.pid, *_children(self.pid)):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def meshnode(model: Path, folder: Path, *, slots: int, unified: bool, watch: Path | None = None) -> Iterator[Running]:
    """A node of its own. `watch`: a file for how late its event loop was."""
    program: list[str | Path] = [HERE / "lateness.py", watch] if watch else ["-m", "meshnode"]
    command: list[str | Path] = [
        sys.executable,
        *program,
        "up",
        "--name",
        "bench",
        "--data-dir",
        folder,
        "--no-mdns",
        "--model",
        f"bench={model}",
    ]
    ports = ["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0"]
    sizes = ["--slots", str(slots), "--context-length", str(CONTEXT), *([] if unified else ["--no-kv-unified"])]
    run_file = folder / "run.json"
    run_file.unlink(missing_ok=True)
    with _process([*command, *ports, *sizes]) as process:
        _wait(run_file.exists, process)
        run = json.loads(run_file.read_text())
        server = Server(port=int(run["api"].rpartition(":")[2]), secret=run["secret"])
        _wait(lambda: "bench" in _get(server, "/v1/models"), process)
        yield Running(server, process.pid)


@contextmanager
def llama(model: Path, *, slots: int, unified: bool, threads: int) -> Iterator[Running]:
    """llama-server as it comes, but for what both must have alike."""
    port = _free_port()
    sizes = ["-np", str(slots), "-c", str(slots * CONTEXT), "-kvu" if unified else "-no-kvu"]
    common = ["--host", "127.0.0.1", "--port", str(port), "-a", "bench", "-t", str(threads), "-b", "512", "-ub", "512"]
    with _process([llama_server(), "-m", model, *common, *sizes]) as process:
        server = Server(port=port)
        _wait(lambda: '"ok"' in _get(server, "/health"), process)
        yield Running(server, process.pid)


@contextmanager
def llama_cpp_python(model: Path, python: Path, *, threads: int) -> Iterator[Running]:
    """`python -m llama_cpp.server`, told not to cut off an answer when another is asked for."""
    port = _free_port()
    options = ["--n_ctx", str(CONTEXT), "--n_threads", str(threads), "--interrupt_requests", "False", "--model_alias", "bench"]
    command: list[str | Path] = [
        python,
        "-m",
        "llama_cpp.server",
        "--model",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *options,
    ]
    with _process(command) as process:
        server = Server(port=port)
        _wait(lambda: "bench" in _get(server, "/v1/models"), process)
        yield Running(server, process.pid)


@contextmanager
def busy_core() -> Iterator[None]:
    """Somebody else's work that never waits."""
    with _process([sys.executable, "-c", "while True: pass"]):
        yield


@contextmanager
def _process(command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while not condition():
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > until:
            sys.exit(f"{process.args!r} does not answer after {START_S:.0f} s")
        time.sleep(0.05)


def _get(server: Server, path: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    if server.secret:
        request.add_header("Authorization", f"Bearer {server.secret}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *_children(child)]
    return found
