"""Nodes as real processes on the hosts of a LAN. They find each other by themselves: nothing here names one to another."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
from netlan import Host
from processes import NodeProcess, wait_until

MESHNODE = ("-m", "meshnode")


class LanNode(NodeProcess):
    """One `meshnode up` on `host`, with the ports that a user has. `directory` holds its data and, made when missing, the token.

    Started again under the same name, it has the memory of the one before. It serves a model (the demo's, if no flag names
    another) only with `worker`. It may not be ready at once: `run`, and all that needs it, waits. `program` is what Python is to
    run instead of ours.
    """

    def __init__(
        self,
        host: Host,
        directory: Path,
        *flags: str,
        worker: bool = False,
        name: str = "",
        token: Path | None = None,
        environment: dict[str, str] | None = None,
        program: tuple[str, ...] = MESHNODE,
    ) -> None:
        self.host = host
        self.name = name or host.name
        self.data_dir = directory / self.name
        (self.data_dir / "run.json").unlink(missing_ok=True)  # of a node that was killed: it would be taken for the new one's
        self.output = (directory / f"{self.name}.out").open("a+")
        self.process = host.popen(
            sys.executable, *program, "up", "--name", self.name, "--data-dir", str(self.data_dir),
            "--token-file", str(token or token_of(directory)), *([] if worker else ["--no-worker"]), *flags,
            stdout=self.output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.output.close()  # the node has its own; the name is still of use

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        connection = self.connection()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, json.loads(body)

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "unused", "max_retries": 0, "http_client": httpx2.Client(transport=Within(self)), **options}
        return openai.OpenAI(base_url=f"http://{self.api_address}/v1", **options)

    def connection(self) -> http.client.HTTPConnection:
        """To the API, from the node's own host: it listens on loopback there."""
        host, _, port = self.api_address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port))
        connection.sock = self.host.connect(int(port), host)
        return connection

    def meshnode(self, command: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """What `meshnode COMMAND` says on this host, as its user would ask; `typed` is its standard input."""
        line = (sys.executable, *MESHNODE, command, "--data-dir", str(self.data_dir), *arguments)
        return self.host.run(*line, check=False, input=typed)

    def members(self) -> dict[str, dict[str, Any]]:
        return {member["name"]: member for member in self.status()["members"]}


class Within(httpx2.BaseTransport):
    """Sends the requests of an HTTP client from the host of a node; answers come as they are streamed."""

    def __init__(self, node: LanNode) -> None:
        self.node = node

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        connection = self.node.connection()
        connection.sock.settimeout(request.extensions.get("timeout", {}).get("read"))
        connection.request(request.method, request.url.raw_path.decode(), request.read(), dict(request.headers))
        answer = connection.getresponse()
        return httpx2.Response(answer.status, headers=answer.getheaders(), stream=Body(connection, answer))


class Body(httpx2.SyncByteStream):
    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self.connection = connection
        self.answer = answer

    def __iter__(self) -> Iterator[bytes]:
        while part := self.answer.read1():
            yield part

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def token_of(directory: Path) -> Path:
    """The file with the token of the mesh whose nodes live in `directory`."""
    token = directory / "token"
    if not token.exists():
        command = [sys.executable, "-m", "meshnode", "token", "new", "--data-dir", str(directory / "maker")]
        token.touch(mode=0o600)
        token.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return token


def see_each_other(*nodes: LanNode, seconds: float = 15.0) -> None:
    """Wait until every node can send to every other one."""
    names = {node.name for node in nodes}
    for node in nodes:
        wait_until(
            lambda node=node: names <= {name for name, member in node.members().items() if member["routable"]},  # type: ignore[misc]
            f"{node.name} to see {', '.join(sorted(names))}",
            seconds=seconds,
        )
