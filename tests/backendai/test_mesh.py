"""A mesh with a real cluster behind one of its nodes: usable from every node, and secret at all of them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backendai.cluster import GEMMA, QWEN, Cluster
from openai.types.chat import ChatCompletionUserMessageParam
from processes import NodeProcess, mesh_of, wait_until

pytestmark = pytest.mark.slow
HELLO = ChatCompletionUserMessageParam(role="user", content="Hi")


def command(node: NodeProcess, *arguments: str, sent: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "meshnode", *arguments, "--data-dir", str(node.data_dir)]
    return subprocess.run(line, capture_output=True, text=True, input=sent, check=False)


def add(node: NodeProcess, cluster: Cluster) -> subprocess.CompletedProcess[str]:
    keys = cluster.user("alice")
    return command(node, "add", "cluster", "lab", cluster.url, "--access-key", keys["access_key"], sent=keys["secret_key"])


@contextmanager
def bridged(directory: Path, cluster: Cluster) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """The node that has the keys, and one that has none."""
    with mesh_of(directory) as start:
        holder = start("holder", "--no-worker", "--log-level", "debug")
        entry = start("entry", "--no-worker", "--log-level", "debug", peer=holder)
        wait_until(lambda: entry.member("holder").get("routable"), "the link")
        added = add(holder, cluster)
        assert added.returncode == 0, added.stderr
        entry.wait_for_model(QWEN)
        yield holder, entry


def models(node: NodeProcess) -> set[str]:
    return {str(each["id"]) for each in node.get("/v1/models")[2]["data"]}


def test_a_node_without_keys_streams_from_a_private_service_and_nothing_secret_shows(cluster: Cluster, tmp_path: Path) -> None:
    secret = cluster.user("alice")["secret_key"]
    with bridged(tmp_path, cluster) as (holder, entry):
        stream = entry.client().chat.completions.create(model=QWEN, messages=[HELLO], stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        shown = json.dumps(entry.status()) + json.dumps(holder.status()) + command(entry, "remotes").stdout
        arguments = b"".join(Path(f"/proc/{node.process.pid}/cmdline").read_bytes() for node in (holder, entry))
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert "".join(pieces).strip() == f"Hello from {QWEN} via app-proxy"
    assert len([piece for piece in pieces if piece]) == 5
    assert "dead-svc" in shown
    assert [path.name for path, content in files.items() if secret.encode() in content] == ["remotes.json"]
    assert b"eyJ" not in arguments + b"".join(files.values())  # what a service's token begins with
    assert secret not in shown
    assert secret.encode() not in arguments


def test_a_real_model_behind_the_cluster_tells_its_story_through_the_mesh(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; scripts/test installs it")
    port = cluster.lab.replicas + 5
    (tmp_path / "replica").mkdir()
    with mesh_of(tmp_path / "replica") as start:
        replica = start("replica", "--api", f"127.0.0.1:{port}")
        replica.wait_for_model("demo")
        cluster.lab.seed(old="23" in cluster.lab.facts()["managers"])
        with bridged(tmp_path, cluster) as (_, entry):
            wait_until(lambda: "demo" in models(entry), "the model", seconds=60)
            answer = entry.client().chat.completions.create(
                model="lab/demo",
                messages=[{"role": "user", "content": "Tell me a story about a fox."}],
                temperature=0,
                max_tokens=24,
            )

    assert (answer.choices[0].message.content or "").startswith("Once upon a time")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


def test_a_service_that_dies_vanishes_at_every_node_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    with bridged(tmp_path, cluster) as (_, entry):
        cluster.lab.stop_replica(2)
        with pytest.raises(Exception, match="lab/gemma-public"):
            entry.client().chat.completions.create(model=GEMMA, messages=[HELLO])
        began = time.monotonic()
        wait_until(lambda: GEMMA not in models(entry), "the dead service's end")
        vanished = time.monotonic() - began
        cluster.lab.seed(old="23" in cluster.lab.facts()["managers"])
        wait_until(lambda: GEMMA in models(entry), "the service's return", seconds=90)

    assert vanished < 5
