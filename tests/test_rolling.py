"""A mesh whose nodes go, freeze and come back under load, with real processes. `scripts/rolling_restart.py` is the long form."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import NodeProcess, mesh_of, wait_until

pytest.importorskip("llama_cpp")

from rolling_restart import roll

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]
STORY: Any = [{"role": "user", "content": "Tell me a story about a fox."}]
LONG: dict[str, Any] = {
    "model": "demo", "messages": STORY, "temperature": 0, "max_tokens": 300, "stream": True, "extra_body": {"ignore_eos": True},
    "stream_options": {"include_usage": True},
}  # fmt: skip


def children(node: NodeProcess) -> list[int]:
    path = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
    if not path.exists():
        pytest.skip("needs Linux's list of child processes")
    return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[tuple[NodeProcess, dict[str, NodeProcess]]]:
    """A node that only asks, and two that serve the demo model."""
    with mesh_of(tmp_path) as start:
        asker = start("asker", "--no-worker")
        holders = {name: start(name, peer=asker) for name in ("first", "second")}

        def ready() -> bool:
            states = [model["state"] for name in holders for model in asker.member(name).get("models", [])]
            return states == ["ready", "ready"]

        wait_until(ready, "two holders")
        yield asker, holders


@contextmanager
def halted(node: NodeProcess) -> Iterator[None]:
    """Its worker stands still, so that what follows comes in mid-answer for certain."""
    workers = children(node)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def interrupted(asker: NodeProcess, holders: dict[str, NodeProcess], trouble: Callable[[NodeProcess], None]) -> tuple[str, int]:
    """Text and tokens of an answer whose node meets `trouble` after the first piece."""
    text, tokens = "", 0
    raw = asker.client().chat.completions.with_raw_response.create(**LONG)
    pieces = iter(raw.parse())
    text += next(pieces).choices[0].delta.content or ""
    serving = holders[raw.headers["x-meshnode-node"]]
    with halted(serving):
        trouble(serving)
        for piece in pieces:
            text += "".join(choice.delta.content or "" for choice in piece.choices)
            tokens = piece.usage.completion_tokens if piece.usage else tokens
    return text, tokens


def undisturbed(asker: NodeProcess) -> str:
    pieces = asker.client().chat.completions.create(**LONG)
    return "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)


def test_a_frozen_node_costs_seconds_and_no_word(mesh: tuple[NodeProcess, dict[str, NodeProcess]]) -> None:
    """Nobody would know of the stopped process before its link is closed after ten seconds of silence."""
    asker, holders = mesh
    whole = undisturbed(asker)
    began = time.monotonic()
    text, tokens = interrupted(asker, holders, lambda node: node.process.send_signal(signal.SIGSTOP))

    assert (text, tokens) == (whole, 300)
    assert time.monotonic() - began < 9


def test_a_node_that_is_stopped_hands_over_what_it_cannot_finish(mesh: tuple[NodeProcess, dict[str, NodeProcess]]) -> None:
    asker, holders = mesh
    whole = undisturbed(asker)
    stopped: list[NodeProcess] = []

    def stop(node: NodeProcess) -> None:
        node.process.send_signal(signal.SIGTERM)
        stopped.append(node)

    text, tokens = interrupted(asker, holders, stop)

    assert (text, tokens) == (whole, 300)
    assert stopped[0].process.wait(10) == 0


def command(node: NodeProcess, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "meshnode", *arguments, "--data-dir", str(node.data_dir)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_drained_node_serves_nobody_until_it_is_taken_back(mesh: tuple[NodeProcess, dict[str, NodeProcess]]) -> None:
    """Neither its peers nor its own clients, whom it sends on."""
    asker, holders = mesh
    first = holders["first"]

    def who_answers(node: NodeProcess) -> str:
        raw = node.client().chat.completions.with_raw_response.create(model="demo", messages=STORY, max_tokens=3)
        return raw.headers["x-meshnode-node"]

    said = command(first, "drain")
    wait_until(lambda: asker.member("first")["draining"], "the news of the drain")
    table = command(asker, "explain", "demo", "--prompt-tokens", "500")
    drained = {who_answers(node) for node in (asker, first, asker, first)}
    command(first, "drain", "--off")
    wait_until(lambda: asker.member("first")["routable"], "first to be back")
    back = json.loads(command(asker, "explain", "demo", "--json"))

    assert "takes nothing new" in said
    assert drained == {"second"}
    assert "500 tokens to read" in table
    assert "second" in table
    assert "first is not asked: draining" in table
    assert {row["node_name"] for row in back["candidates"]} == {"first", "second"}
    assert who_answers(first) == "first"


def test_a_mesh_is_restarted_node_by_node_and_no_request_fails(tmp_path: Path) -> None:
    load = roll(tmp_path, rounds=1, clients=2)

    assert not load.failures
    assert load.outcomes.total() > 3
