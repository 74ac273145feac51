"""Real nodes as real processes on loopback, for the tests of the whole."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import openai

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], what: str, *, seconds: float = 20.0) -> T:
    """Poll `condition` until it gives something true; the limit is for a broken program, not a measurement."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


class NodeProcess:
    """One `meshnode up`. `run` is its run file; `status()` what `GET /mesh/v1/status` says."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *flags: str,
        peer: "NodeProcess | None" = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.data_dir = directory / name
        token = directory / "token"
        if not token.exists():
            subprocess.run(
                [sys.executable, "-m", "meshnode", "token", "new", "--data-dir", str(directory / "maker")],
                check=True, stdout=token.open("w"),
            )  # fmt: skip
        peers = ["--peer", peer.mesh_address] if peer else []
        self.output = (directory / f"{name}.out").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "meshnode", "up", "--name", name, "--data-dir", str(self.data_dir), "--api", "127.0.0.1:0",
                "--mesh", "127.0.0.1:0", "--no-mdns", "--token-file", str(token), *peers, *flags,
            ],
            stdout=self.output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})},
        )  # fmt: skip

    @property
    def run(self) -> dict[str, Any]:
        path = self.data_dir / "run.json"

        def read() -> dict[str, Any]:
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.printed()}"
            return dict(json.loads(path.read_text())) if path.exists() else {}

        return wait_until(read, f"the run file of {self.name}")

    @property
    def mesh_address(self) -> str:
        return str(self.run["mesh"][0])

    @property
    def api_address(self) -> str:
        return str(self.run["api"])

    def printed(self) -> str:
        return Path(self.output.name).read_text()

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        host, _, port = self.api_address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, json.loads(body)

    def status(self) -> dict[str, Any]:
        code, _, report = self.get("/mesh/v1/status", Authorization=f"Bearer {self.run['secret']}")
        assert code == 200, report
        assert isinstance(report, dict)
        return report

    def member(self, name: str) -> dict[str, Any]:
        return next((member for member in self.status()["members"] if member["name"] == name), {})

    def wait_for_model(self, model: str) -> None:
        """Until this node can route to `model`."""
        wait_until(lambda: model in [each["id"] for each in self.get("/v1/models")[2]["data"]], f"{model} seen by {self.name}")

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://{self.api_address}/v1", api_key="unused", max_retries=0, **options)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@contextmanager
def mesh_of(directory: Path) -> Iterator[Callable[..., NodeProcess]]:
    """A function that starts nodes of one mesh; what still runs at the end is killed."""
    started: list[NodeProcess] = []

    def start(name: str, *flags: str, **options: Any) -> NodeProcess:
        started.append(NodeProcess(name, directory, *flags, **options))
        return started[-1]

    try:
        yield start
    finally:
        for node in started:
            node.process.kill()
            node.process.wait()
            node.output.close()
