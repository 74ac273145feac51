"""Restart every node of a mesh of three under load, one after the other, while clients ask a fourth.

    .venv/bin/python scripts/rolling_restart.py              three rounds, six clients
    .venv/bin/python scripts/rolling_restart.py --rounds 1

In turns a node is only told to stop (SIGTERM), or drained with its streams handed over first. The exit code is 1 if any request
failed, or an answer had another number of tokens than was asked for.
"""

import argparse
import http.client
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_worker import Node, ready, token_of, wait_for

HOLDERS = ("a", "b", "c")
LONGEST = 400
"""Tokens of an answer."""


@dataclass
class Load:
    """What the clients share. `moved`: answers that went on elsewhere after their first text."""

    entry: Node
    over: threading.Event = field(default_factory=threading.Event)
    outcomes: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1

    @property
    def failures(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome not in {"answered", "moved"}}


def client(load: Load, seed: int) -> None:
    rng = random.Random(seed)
    while not load.over.is_set():
        try:
            load.note(ask(load.entry, rng))
        except (OSError, http.client.HTTPException) as error:
            load.note(f"failed: {type(error).__name__}: {error}")


def ask(entry: Node, rng: random.Random) -> str:
    """One request; what became of it."""
    tokens, stream = rng.randrange(1, LONGEST), rng.random() < 0.7
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Tell me a story about a fox. {rng.randrange(1000)}"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }
    connection = http.client.HTTPConnection(entry.run["api"], timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        return f"failed: {answer.status} {text[:200]}"
    if stream and "data: [DONE]" not in text:
        return f"failed: cut: {text[-200:]}"
    said = usage(text, stream=stream)["completion_tokens"]
    if said != tokens:
        return f"failed: {said} tokens of {tokens}"
    return "moved" if "x-meshnode-resumed" in text or answer.headers["x-meshnode-resumed"] else "answered"


def usage(text: str, *, stream: bool) -> dict[str, Any]:
    if not stream:
        return dict(json.loads(text)["usage"])
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return dict(next(event["usage"] for event in reversed(events) if event.get("usage")))


@contextmanager
def loaded(entry: Node, clients: int) -> Iterator[Load]:
    """Clients ask `entry` until the block is left."""
    load = Load(entry)
    threads = [threading.Thread(target=client, args=(load, seed)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join()


def drain(node: Node) -> None:
    connection = http.client.HTTPConnection(node.run["api"], timeout=10)
    headers = {"Authorization": f"Bearer {node.run['secret']}", "Content-Type": "application/json"}
    connection.request("POST", "/mesh/v1/drain", b'{"hand_over":true}', headers)
    connection.getresponse().read()
    connection.close()


def roll(base: Path, *, rounds: int, clients: int) -> Load:
    """Start a mesh in `base`, restart its nodes in turn under load, and stop it; returns what the clients saw."""
    nodes: dict[str, Node] = {}
    entry = Node(base, "entry", "--no-worker")
    try:
        joining = ("--token-file", str(token_of(entry, base / "token")), "--peer", str(entry.run["mesh"][0]))
        nodes.update((name, Node(base, name, *joining)) for name in HOLDERS)
        wait_for(lambda: ready(entry) == set(HOLDERS), "all models at the entry")
        with loaded(entry, clients) as load:
            time.sleep(1)
            for turn in range(rounds * len(HOLDERS)):
                name = HOLDERS[turn % len(HOLDERS)]
                if turn % 2:
                    drain(nodes[name])
                nodes[name].process.send_signal(signal.SIGTERM)
                nodes[name].process.wait()
                nodes[name] = Node(base, name, *joining)
                wait_for(lambda: routable(entry) == set(HOLDERS), f"{name} to be back")
    finally:
        for node in (*nodes.values(), entry):
            node.process.send_signal(signal.SIGTERM)
            node.process.wait()
    return load


def routable(entry: Node) -> set[str]:
    members = entry.get("/mesh/v1/status")["members"]
    return {each["name"] for each in members if each["routable"] and any(model["state"] == "ready" for model in each["models"])}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/rolling_restart.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meshnode-rolling-") as directory:
        load = roll(Path(directory), rounds=asked.rounds, clients=asked.clients)
    answered, moved = load.outcomes["answered"], load.outcomes["moved"]
    print(f"{answered + moved} answered, {moved} of them moved to another node in the middle; failed: {load.failures or 'none'}")
    return 1 if load.failures else 0


if __name__ == "__main__":
    sys.exit(main())
