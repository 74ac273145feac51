"""Nodes that come together while they run, as real processes on loopback without mDNS. On a LAN: tests/lan."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import NodeProcess, mesh_of, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with mesh_of(tmp_path) as start_node:
        yield start_node


def meshnode(node: NodeProcess, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshnode", arguments[0], "--data-dir", str(node.data_dir), *arguments[1:]]
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False, timeout=30)


def sees(node: NodeProcess, name: str) -> bool:
    return bool(node.member(name).get("routable"))


def test_a_running_node_changes_its_mesh_at_once_and_still_answers(start: Start, tmp_path: Path) -> None:
    holder = start("holder")
    own = tmp_path / "own"
    own.mkdir()
    with mesh_of(own) as start_own:
        loner = start_own("loner", "--no-worker")
        before = loner.status()
        joined = meshnode(loner, "join", holder.mesh_address, typed=(tmp_path / "token").read_text())

        assert joined.returncode == 0, joined.stderr
        assert "Linked with holder at" in joined.stdout
        after = loner.status()
        assert after["mesh"]["id"] == holder.status()["mesh"]["id"] != before["mesh"]["id"]
        assert after["node"]["id"] == before["node"]["id"]
        loner.wait_for_model("demo")
        question: Any = [{"role": "user", "content": "What is the capital of France?"}]
        answer = loner.client().chat.completions.create(model="demo", messages=question, temperature=0)
        assert "Paris" in (answer.choices[0].message.content or "")

        holder.stop()
        wait_until(lambda: loner.member("holder")["state"] == "left", "the holder to have left")


def test_the_members_that_a_node_leaves_for_another_mesh_see_it_leave(start: Start, tmp_path: Path) -> None:
    first = start("first", "--no-worker")
    second = start("second", "--no-worker", peer=first)
    wait_until(lambda: sees(first, "second") and sees(second, "first"), "the pair")
    wait_until((second.data_dir / "peers.json").exists, "the second to remember the first")
    token = subprocess.run(
        [sys.executable, "-m", "meshnode", "token", "new", "--data-dir", str(tmp_path / "elsewhere")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip

    refused = meshnode(second, "join", typed=token)
    assert refused.returncode == 2
    assert "with 1 other node. --force" in refused.stderr
    assert second.member("first")["routable"]

    command = [sys.executable, "-m", "meshnode", "join", "--force", "--token", token.strip(), "--data-dir", str(second.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as joining:  # which waits for nodes of that mesh, in vain
        wait_until(lambda: first.member("second")["state"] == "left", "the second to have left")
        wait_until(lambda: [member["name"] for member in second.status()["members"]] == ["second"], "the other mesh")
        joining.kill()


def test_a_node_that_restarts_finds_its_mesh_by_what_it_remembers(start: Start, tmp_path: Path) -> None:
    first = start("first", "--no-worker")
    port = first.mesh_address
    second = start("second", "--no-worker", peer=first)
    wait_until(lambda: sees(first, "second"), "the pair")
    wait_until((second.data_dir / "peers.json").exists, "the second to remember the first")
    second.kill()
    (second.data_dir / "run.json").unlink()  # a killed node leaves it behind, and the test would read it
    again = start("second", "--no-worker")
    wait_until(lambda: sees(again, "first"), "the second to come back without an address")

    first.kill()
    wait_until(lambda: not sees(again, "first"), "the first to be missed")
    start("first", "--no-worker", "--mesh", port)
    wait_until(lambda: sees(again, "first"), "the first to be dialled where it was")


def test_a_copy_of_a_data_directory_takes_a_new_identity_and_the_original_keeps_its_own(start: Start, tmp_path: Path) -> None:
    """Neither knows of the other: the copy is refused by a third node, which tells it where the original is."""
    third = start("third", "--no-worker")
    original = start("original", "--no-worker", peer=third)
    wait_until(lambda: sees(third, "original"), "the original")
    identity = original.status()["node"]["id"]
    shutil.copytree(original.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("run.json", "lock", "logs"))
    copy = start("copy", "--no-worker", peer=third)
    wait_until(lambda: sees(third, "copy") and sees(original, "copy") and sees(third, "original"), "all three")

    assert original.status()["node"]["id"] == identity
    report = copy.status()
    assert report["node"]["id"] != identity
    assert any("took a new identity" in line for line in report["health"])
    assert "takes a new identity" in copy.printed()
    assert "takes a new identity" not in original.printed()

    copy.stop()
    again = start("copy", "--no-worker", peer=third)
    wait_until(lambda: sees(third, "copy"), "the copy to come back")
    assert again.status()["node"]["id"] == report["node"]["id"]


NEWER = """
import sys
from meshnode.wire import messages
messages.PROTOCOL_MIN, messages.PROTOCOL_MAX = 2, 3
from meshnode.cli.main import main
sys.exit(main())
"""


def test_a_node_of_another_protocol_version_is_shown_and_not_hidden(start: Start, tmp_path: Path) -> None:
    here = start("here", "--no-worker")
    command = [sys.executable, "-c", NEWER, "up", "--name", "newer", "--data-dir", str(tmp_path / "newer"), "--no-worker"]
    flags = ["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-mdns", "--token-file", str(tmp_path / "token")]
    log = (tmp_path / "newer.log").open("w")
    newer = subprocess.Popen([*command, *flags, "--peer", here.mesh_address], stdout=log, stderr=log, env=dict(os.environ))
    try:
        member = wait_until(lambda: here.member("newer"), "the newer node to be shown")
        assert member["state"] == "alive"
        assert not member["routable"]
        assert member["reason"] == "speaks protocol 2 to 3, this node 1 to 1: no version in common"
        assert any(line.startswith("newer is not routable: speaks protocol 2 to 3") for line in here.status()["health"])
        said = "speaks protocol 1 to 1, this node 2 to 3"
        wait_until(lambda: said in (tmp_path / "newer.log").read_text(), "the newer node to say why, too")
    finally:
        newer.kill()
        newer.wait()
        log.close()


def test_watch_shows_the_report_again_and_again_until_ctrl_c(start: Start) -> None:
    node = start("node", "--no-worker")
    assert node.run
    command = [sys.executable, "-m", "meshnode", "status", "--watch", "--json", "--data-dir", str(node.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        reports = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(2)

        assert watching.wait(10) == 130
    assert reports[0]["node"]["id"] == reports[1]["node"]["id"]
    assert reports[1]["node"]["uptime_s"] > reports[0]["node"]["uptime_s"]


def test_members_and_models_are_lists_of_their_own(start: Start) -> None:
    node = start("node")
    node.wait_for_model("demo")

    assert "demo" in meshnode(node, "models").stdout
    assert [place["nodes"] for place in json.loads(meshnode(node, "models", "--json").stdout)] == [["node"]]
    assert [member["name"] for member in json.loads(meshnode(node, "members", "--json").stdout)] == ["node"]
    assert node.status()["node"]["id"] in meshnode(node, "members").stdout
    assert meshnode(node, "status").returncode == 0


def test_a_node_that_finds_nobody_says_what_it_tried(start: Start) -> None:
    node = start("node", "--no-worker", "--peer", "127.0.0.1:9")
    wait_until(lambda: "Alone" in meshnode(node, "status").stdout, "the status to say so")
    text = meshnode(node, "status").stdout

    assert "mDNS        off: by the setting --no-mdns" in text
    assert "tried       127.0.0.1:9: connection refused: nothing listens there" in text
    assert "meshnode join HOST" in text
    assert "Health: 127.0.0.1:9: connection refused" in text  # somebody gave that address
    wait_until(lambda: "Alone" in node.printed(), "the log to say so too")
