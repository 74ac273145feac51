"""Thousands of requests of every kind through a mesh of three: clients give up and, if wanted, workers are killed.

Run: scripts/soak-worker [--requests N] [--kills K]. Two nodes serve the demo model, a third only forwards. The exit code is 1 if
a request failed, if a worker's memory grew, or if anything is still at work when nobody asks any more.
"""

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLIENTS = 8
START_S, SETTLE_S = 60.0, 20.0
SAMPLE_S = 1.0
MAX_GROWTH_MIB = 8.0
"""Of the last quarter's median over the second quarter's: in the first one caches fill."""
QUESTIONS = ("Tell me a story about a fox.", "What is 3 + 4?", "who are you", "What is the capital of France?", "Say hello.")


class Node:
    """A `meshnode up` on loopback."""

    def __init__(self, base: Path, name: str, *flags: str) -> None:
        self.data_dir = data_dir = base / name
        ports = ["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-mdns"]
        command = [sys.executable, "-m", "meshnode", "up", "--name", name, "--data-dir", str(data_dir), *ports, *flags]
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        wait_for((data_dir / "run.json").exists, f"{name} to start")
        self.run: dict[str, Any] = json.loads((data_dir / "run.json").read_text())

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection(self.run["api"], timeout=30)
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.run['secret']}"})
        answer = json.load(connection.getresponse())
        connection.close()
        return answer

    def worker(self) -> int | None:
        """The process of its model: of its children the one with the most memory, since each has a small one beside it."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return max(children, key=resident, default=None)


def resident(pid: int) -> float:
    """MiB; 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def wait_for(condition: Any, what: str) -> None:
    until = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"waited {START_S:.0f} s for {what}")
        time.sleep(0.05)


@dataclass
class Load:
    """What the clients share."""

    entry: Node
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def note(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1


def client(load: Load, seed: int) -> None:
    rng = random.Random(seed)
    while load.take():
        try:
            load.note(ask(load.entry, rng))
        except (OSError, http.client.HTTPException) as error:
            load.note(f"failed: {type(error).__name__}")


def ask(entry: Node, rng: random.Random) -> str:
    """One request; what became of it, in a word or two."""
    stream, gives_up = rng.random() < 0.5, rng.random() < 0.15
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"{rng.choice(QUESTIONS)} {rng.randrange(1000)}"}],
        "max_tokens": rng.randrange(1, 64),
        "temperature": rng.choice((0, 0.7)),
        "n": rng.choice((1, 1, 1, 2)),
        "stream": stream,
    }
    connection = http.client.HTTPConnection(entry.run["api"], timeout=120)
    try:
        headers = {"Authorization": f"Bearer {entry.run['secret']}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        if gives_up:
            time.sleep(rng.random() * 0.05)
            return "given up"
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        return f"failed: {answer.status} {text[:120]}"
    if stream and "data: [DONE]" not in text:
        return f"failed: stream cut: {text[-120:]}"
    return "answered"


def kill_at_random(load: Load, nodes: list[Node], kills: int, rng: random.Random) -> None:
    """One worker at a time, and only once the entry knows that every node has one."""
    for number in range(kills):
        waiting = rng.uniform(0.2, 2.0)
        while not load.over.wait(waiting) and len(ready(load.entry)) < len(nodes):
            waiting = 0.2
        if load.over.is_set():
            print(f"only {number} of {kills} kills in the time", file=sys.stderr)
            return
        if pid := rng.choice(nodes).worker():
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak-worker", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0, metavar="K", help="workers to kill meanwhile")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meshnode-soak-") as directory, ExitStack() as stack:
        base = Path(directory)
        first = stack.enter_context(Node(base, "first"))
        joining = ("--token-file", str(token_of(first, base / "token")), "--peer", first.run["mesh"][0])
        serving = [first, stack.enter_context(Node(base, "second", *joining))]
        entry = stack.enter_context(Node(base, "entry", "--no-worker", *joining))
        wait_for(lambda: ready(entry) == {"first", "second"}, "both models at the entry")
        return soak(entry, serving, asked)


def token_of(node: Node, path: Path) -> Path:
    command = [sys.executable, "-m", "meshnode", "token", "--data-dir", str(node.data_dir)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    path.touch(mode=0o600)
    path.write_text(shown.stdout)
    return path


def ready(node: Node) -> set[str]:
    """The names of those who can serve, as `node` sees it."""
    return {member["name"] for member in members(node) if any(model["state"] == "ready" for model in member["models"])}


def members(node: Node) -> list[dict[str, Any]]:
    return list(node.get("/mesh/v1/status")["members"])


def soak(entry: Node, serving: list[Node], asked: argparse.Namespace) -> int:
    requests, kills, seed = asked.requests, asked.kills, asked.seed
    load = Load(entry, requests)
    threads = [threading.Thread(target=client, args=(load, seed + number)) for number in range(CLIENTS)]
    killer = threading.Thread(target=kill_at_random, args=(load, serving, kills, random.Random(seed)))
    samples: list[float] = []
    begun = time.monotonic()
    for thread in (*threads, killer):
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(SAMPLE_S)
        samples.append(max(resident(pid) for node in serving if (pid := node.worker())))
        if len(samples) % 30 == 0:
            print(f"{requests - max(0, load.left)} of {requests}, worker {samples[-1]:.0f} MiB", file=sys.stderr)
    load.over.set()
    killer.join()
    took = time.monotonic() - begun
    busy = still_busy(serving)
    quarter = max(1, len(samples) // 4)
    growth = statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter] or samples)
    print(f"{requests} requests in {took:.0f} s; " + "; ".join(f"{count} {what}" for what, count in load.outcomes.most_common()))
    print(f"worker's memory: {samples[-1]:.0f} MiB, {growth:+.1f} MiB from the second to the last quarter")
    failed = sum(count for what, count in load.outcomes.items() if what.startswith("failed"))
    problems = [f"{failed} requests failed"] * bool(failed)
    problems += ["a worker's memory grew"] * (growth > MAX_GROWTH_MIB and not kills)
    problems += [f"still at work: {busy}"] * bool(busy)
    print("; ".join(problems) or "nothing failed, nothing grew, nothing is left at work")
    return 1 if problems else 0


def still_busy(serving: list[Node]) -> str:
    """Which node has work though nobody asks; empty when none has."""
    until = time.monotonic() + SETTLE_S
    while True:
        active = {node.name: sum(member["load"]["active"] for member in members(node) if member["load"]) for node in serving}
        busy = ", ".join(f"{name} ({count})" for name, count in active.items() if count)
        if not busy or time.monotonic() > until:
            return busy
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
