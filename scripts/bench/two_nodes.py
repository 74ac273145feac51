"""What the main job costs on this machine: start, join, first token here and through a peer, cancellation, an idle node.

Run it as `.venv/bin/python scripts/bench/two_nodes.py [--rounds N]` in a checkout that is set up. Everything is measured in one
run on loopback with the demo model, direct and through a peer in turns, so that the ratio means something on a busy machine too.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "Tell me a story about a fox."
IDLE_S = 10.0


class Node:
    """A `meshnode up` of its own; `started` is when it was asked for."""

    def __init__(self, base: Path, name: str, *flags: str) -> None:
        self.data_dir = base / name
        ports = ["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0"]
        command = [sys.executable, "-m", "meshnode", "up", "--name", name, "--data-dir", str(self.data_dir), *ports, *flags]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        wait_for((self.data_dir / "run.json").exists)
        self.run: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())

    def since_start(self) -> float:
        return time.perf_counter() - self.started

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection(self.run["api"], timeout=30)
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.run['secret']}"})
        answer = json.load(connection.getresponse())
        connection.close()
        return answer

    def models(self) -> list[str]:
        return [model["id"] for model in self.get("/v1/models")["data"]]

    def active(self) -> int:
        members = self.get("/mesh/v1/status")["members"]
        return int(next(member["load"]["active"] for member in members if member["id"] == self.run["node_id"]))

    def cpu_s(self) -> float:
        """User and system time of the node's own process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Resident now; what is shared with other processes counts too."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Asker:
    """One kept-alive client connection."""

    def __init__(self, node: Node) -> None:
        self.connection = http.client.HTTPConnection(node.run["api"], timeout=60)

    def first_token_ms(self, max_tokens: int) -> float:
        """From the request to the first text, then the rest is read."""
        begun = time.perf_counter()
        answer = self.ask(max_tokens)
        first = 0.0
        while line := answer.readline():
            if not first and line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begun
        return first * 1000

    def ask(self, max_tokens: int) -> http.client.HTTPResponse:
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": "demo", "stream": True, "temperature": 1.5, "max_tokens": max_tokens, "messages": messages}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return self.connection.getresponse()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("two_nodes: waited a minute in vain")
        time.sleep(0.002)


def cancel_ms(client: Node, holder: Node) -> float:
    """From the client's leave in mid-answer until the holder's status shows nobody at work; the polling is in it."""
    asker = Asker(client)
    asker.ask(900).readline()
    begun = time.perf_counter()
    asker.connection.close()
    wait_for(lambda: holder.active() == 0)
    return (time.perf_counter() - begun) * 1000


def spread(values: list[float]) -> str:
    return f"median {statistics.median(values):.2f}  min {min(values):.2f}  max {max(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="meshnode-bench-") as directory:
        base = Path(directory)
        holder = Node(base, "holder")
        print(f"start to API                 {holder.since_start():.2f} s")
        wait_for(lambda: "demo" in holder.models())
        Asker(holder).first_token_ms(1)
        print(f"start to first answer        {holder.since_start():.2f} s")
        flags = ("--no-worker", "--token-file", str(holder.data_dir / "token"), "--peer", holder.run["mesh"][0])
        client = Node(base, "client", *flags)
        up = time.perf_counter()
        wait_for(lambda: "demo" in client.models())
        joined = time.perf_counter() - up
        print(f"join by address              {joined:.2f} s with the API up, {client.since_start():.2f} s from start")
        here, there = Asker(holder), Asker(client)
        pairs = [(here.first_token_ms(8), there.first_token_ms(8)) for _ in range(rounds)]
        direct, through = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        print(f"first token, direct (ms)     {spread(direct)}")
        print(f"first token, via peer (ms)   {spread(through)}")
        added = statistics.median(through) - statistics.median(direct)
        print(f"added by the peer            {added:.2f} ms, ratio {statistics.median(through) / statistics.median(direct):.2f}")
        print(f"cancel via peer (ms)         {spread([cancel_ms(client, holder) for _ in range(10)])}")
        before = client.cpu_s()
        time.sleep(IDLE_S)
        used = (client.cpu_s() - before) / IDLE_S
        print(f"idle node without a model    {client.memory_mib():.0f} MiB, {used:.1%} of a core")
        for name, node in (("client", client), ("holder", holder)):
            begun = time.perf_counter()
            node.stop()
            print(f"stop of the {name}           {time.perf_counter() - begun:.2f} s")


if __name__ == "__main__":
    main()
