"""The main job with real processes: ask one node for a model that another one has, and what happens when things go wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from processes import NodeProcess, mesh_of, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., NodeProcess]
DEMO = Path(__file__).parents[1] / "meshnode/data/demo.gguf"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
STORY: Any = [{"role": "user", "content": "Tell me a story about a fox."}]


def health_about(node: NodeProcess, word: str) -> str:
    return next((line for line in node.status()["health"] if word in line), "")


def children(node: NodeProcess) -> list[int]:
    path = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
    if not path.exists():
        pytest.skip("needs Linux's list of child processes")
    return [int(pid) for pid in path.read_text().split()]


def states(member: dict[str, Any]) -> dict[str, str]:
    return {model["name"]: model["state"] for model in member["models"]}


def holders(node: NodeProcess) -> list[str]:
    """Who can serve the demo model now, as `node` sees it."""
    return [
        member["name"]
        for member in node.status()["members"]
        if member["routable"] and any(model["digest"] and model["state"] == "ready" for model in member["models"])
    ]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with mesh_of(tmp_path) as start_node:
        yield start_node


@pytest.fixture
def pair(start: Start) -> tuple[NodeProcess, NodeProcess]:
    """A node that serves the demo model, and one without a worker that only asks."""
    holder = start("holder")
    asker = start("asker", "--no-worker", peer=holder)
    asker.wait_for_model("demo")
    return holder, asker


def test_the_official_client_is_answered_through_a_node_without_a_worker(pair: tuple[NodeProcess, NodeProcess]) -> None:
    _, asker = pair
    raw = asker.client().chat.completions.with_raw_response.create(model="demo", messages=QUESTION, temperature=0)
    answer = raw.parse()

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 3
    assert raw.headers["x-meshnode-node"] == "holder"
    assert raw.headers["x-meshnode-reason"] == "only-holder"
    assert raw.headers["x-request-id"]


def test_one_search_finds_a_request_in_the_logs_of_both_nodes(pair: tuple[NodeProcess, NodeProcess]) -> None:
    """Its id, its trace, and whose key it came with; nothing of what was asked, and nothing of the key but its id."""
    holder, asker = pair
    text = made_key(asker)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "find-me", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    client = asker.client().with_options(api_key=text)
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=QUESTION, extra_headers=headers, max_tokens=5)
    key = text.split("_")[1]

    def line_of(node: NodeProcess) -> str | None:
        log = (node.data_dir / "logs" / "meshnode.log").read_text()
        return next((line for line in log.splitlines() if f"id={raw.headers['x-request-id']}" in line), None)

    for node in (asker, holder):
        line = wait_until(partial(line_of, node), f"{node.name} logs the request")

        assert f"trace={trace}" in line
        assert key in line
        assert text.split("_")[2] not in line
        assert "capital" not in line


def made_key(node: NodeProcess) -> str:
    """By the command, while the node runs."""
    command = [sys.executable, "-m", "meshnode", "key", "new", "--data-dir", str(node.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_stream_through_a_peer_is_the_unstreamed_answer_in_pieces(pair: tuple[NodeProcess, NodeProcess]) -> None:
    _, asker = pair
    whole = asker.client().chat.completions.create(model="demo", messages=STORY, temperature=0, max_tokens=30)
    stream = asker.client().chat.completions.create(
        model="demo", messages=STORY, temperature=0, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert text == whole.choices[0].message.content
    assert len(chunks) > 20
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_several_choices_come_through_a_peer_whole_and_in_pieces(pair: tuple[NodeProcess, NodeProcess]) -> None:
    _, asker = pair
    create: Any = partial(
        asker.client().chat.completions.create, model="demo", messages=STORY, temperature=1.5, seed=3, max_tokens=12, n=3
    )
    whole = create()
    texts = ["", "", ""]
    finishes = []
    for chunk in create(stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
    with pytest.raises(openai.BadRequestError) as caught:
        create(n=9)

    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message.content for choice in whole.choices] == texts
    assert len(set(texts)) == 3
    assert len(finishes) == 3
    assert whole.usage is not None
    assert whole.usage.prompt_tokens < 40
    assert whole.usage.completion_tokens > 2 * 12
    assert caught.value.param == "n"
    assert "from 1 to 8, not 9" in caught.value.message


def test_a_killed_holder_means_503_and_the_status_says_why(pair: tuple[NodeProcess, NodeProcess]) -> None:
    holder, asker = pair
    holder.kill()
    with pytest.raises(openai.InternalServerError) as caught:
        asker.client().chat.completions.create(model="demo", messages=QUESTION)

    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert "holder" in caught.value.message
    wait_until(lambda: not asker.member("holder")["routable"], "holder unroutable")
    member = asker.member("holder")
    assert member["state"] == "alive"
    assert member["reason"]
    assert any("holder" in line for line in asker.status()["health"])


def test_a_second_holder_answers_when_the_first_is_killed(start: Start) -> None:
    first = start("first")
    second = start("second", peer=first)
    asker = start("asker", "--no-worker", peer=first)
    wait_until(lambda: len(holders(asker)) == 2, "two holders")
    first.kill()
    for _ in range(4):
        raw = asker.client().chat.completions.with_raw_response.create(model="demo", messages=QUESTION)
        assert raw.headers["x-meshnode-node"] == "second"
    assert second.process.poll() is None


def test_a_holder_killed_before_the_first_byte_costs_a_retry_or_503(start: Start) -> None:
    """The holder is stopped while the request is on its way, so that it is accepted by nobody and lost for certain."""
    first = start("first")
    asker = start("asker", "--no-worker", peer=first)
    asker.wait_for_model("demo")
    first.process.send_signal(signal.SIGSTOP)  # the link is up and the node silent
    host, _, port = asker.api_address.rpartition(":")
    body = json.dumps({"model": "demo", "messages": QUESTION}).encode()
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.3)  # let the request reach the stopped node's socket
        first.kill()
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after" in answer.lower()


def test_a_holder_killed_in_mid_stream_is_an_error_event_and_no_done(pair: tuple[NodeProcess, NodeProcess]) -> None:
    holder, asker = pair
    host, _, port = asker.api_address.rpartition(":")
    body = json.dumps({"model": "demo", "messages": STORY, "stream": True, "temperature": 1.9, "seed": 1}).encode()
    received = b""
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while received.count(b'"content"') < 3:
            received += client.recv(256)
        holder.process.send_signal(signal.SIGSTOP)
        holder.kill()
        while b'"error"' not in received and (more := client.recv(65536)):
            received += more

    assert received.startswith(b"HTTP/1.1 200")
    assert b'"error"' in received
    assert b"[DONE]" not in received


def test_a_holder_that_is_stopped_finishes_what_it_answers_for_a_peer(pair: tuple[NodeProcess, NodeProcess]) -> None:
    """Its worker is held still meanwhile, so that the stop comes in mid-answer for certain."""
    holder, asker = pair
    workers = children(holder)
    with asker.client().chat.completions.create(model="demo", messages=STORY, stream=True, temperature=0) as stream:
        pieces = iter(stream)
        next(pieces)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        holder.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in holder.printed(), "the holder to begin its stop")
        time.sleep(0.5)  # it must not give up in this time
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        rest = list(pieces)

    assert rest[-1].choices[0].finish_reason == "stop"
    assert holder.process.wait(10) == 0


def test_a_client_that_leaves_stops_the_work_on_the_serving_node(pair: tuple[NodeProcess, NodeProcess]) -> None:
    holder, asker = pair
    for _ in range(3):
        with asker.client().chat.completions.create(model="demo", messages=STORY, stream=True, temperature=1.5) as stream:
            next(iter(stream))
    wait_until(lambda: holder.member("holder")["load"]["active"] == 0, "the work to stop", seconds=2)


def test_an_unknown_model_is_404_with_the_nearest_name(pair: tuple[NodeProcess, NodeProcess]) -> None:
    with pytest.raises(openai.NotFoundError, match="demo") as caught:
        pair[1].client().chat.completions.create(model="dem0", messages=QUESTION)

    assert caught.value.code == "model_not_found"


def test_a_pin_reaches_the_named_node_and_no_other(pair: tuple[NodeProcess, NodeProcess]) -> None:
    client = pair[1].client()

    assert client.chat.completions.create(model="demo@holder", messages=QUESTION).choices
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="demo@asker", messages=QUESTION)


def test_status_shows_both_nodes_from_both_sides(pair: tuple[NodeProcess, NodeProcess]) -> None:
    for node in pair:
        report = node.status()
        assert report["schema"] == 1
        assert {(member["name"], member["state"], member["routable"]) for member in report["members"]} == {
            ("holder", "alive", True),
            ("asker", "alive", True),
        }
        holder = node.member("holder")
        assert [model["name"] for model in holder["models"]] == ["demo"]
        assert len(holder["models"][0]["digest"]) == 64
        assert holder["load"]["slots"] >= 1


def test_a_node_that_stops_has_left_and_is_not_missed(pair: tuple[NodeProcess, NodeProcess]) -> None:
    holder, asker = pair

    assert holder.stop() == 0
    assert wait_until(lambda: asker.member("holder")["state"] == "left", "holder left")
    assert not (holder.data_dir / "run.json").exists()


def test_a_killed_holder_that_comes_back_serves_again(pair: tuple[NodeProcess, NodeProcess], tmp_path: Path) -> None:
    holder, asker = pair
    port = holder.mesh_address
    holder.kill()
    again = NodeProcess("holder", tmp_path, "--mesh", port)
    try:
        asker.wait_for_model("demo")
        assert asker.client().chat.completions.create(model="demo", messages=QUESTION, temperature=0).choices
    finally:
        again.kill()


def test_a_wrong_token_is_refused_with_the_reason_on_both_sides(start: Start, tmp_path: Path) -> None:
    holder = start("holder")
    other = tmp_path / "other"
    other.mkdir()
    with mesh_of(other) as start_stranger:
        stranger = start_stranger("stranger", "--no-worker", peer=holder)
        for node in (holder, stranger):
            assert "127.0.0.1" in wait_until(partial(health_about, node, "token"), f"{node.name} to say why")
    assert [member["name"] for member in holder.status()["members"]] == ["holder"]


def test_a_second_node_on_the_same_data_directory_is_refused(start: Start) -> None:
    first = start("first", "--no-worker")
    pid = first.run["pid"]
    second = start("first", "--no-worker")

    assert second.process.wait(20) == 2
    assert str(pid) in second.printed()
    assert "--data-dir" in second.printed()


@pytest.mark.parametrize("flag", ["--api", "--mesh"])
def test_a_port_in_use_names_the_flag(start: Start, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = start("late", "--no-worker", flag, f"127.0.0.1:{taken.getsockname()[1]}")

        assert node.process.wait(20) == 2
        assert flag in node.printed()


def test_a_file_that_is_no_model_is_a_failed_worker_and_the_node_goes_on(start: Start, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model at all" * 100)
    node = start("node", "--model", f"broken={bad}")

    assert "GGUF" in wait_until(partial(health_about, node, "broken"), "the failure")
    with pytest.raises(openai.InternalServerError, match="broken"):
        node.client().chat.completions.create(model="broken", messages=QUESTION)


def test_a_killed_worker_is_restarted_and_the_node_lives(start: Start) -> None:
    node = start("node")
    node.wait_for_model("demo")
    (child,) = children(node)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: [pid for pid in children(node) if pid != child], "another worker")
    node.wait_for_model("demo")

    def answered() -> bool:
        try:
            return bool(node.client().chat.completions.create(model="demo", messages=QUESTION).choices)
        except openai.InternalServerError:
            return False

    assert wait_until(answered, "an answer from the new worker")


def test_a_model_of_a_folder_is_loaded_for_who_asks_through_another_node(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "fox.gguf").symlink_to(DEMO)
    (folder / "bad.gguf").write_text("no model")
    holder = start("holder", "--models-dir", str(folder), "--keep-alive", "1")
    asker = start("asker", "--no-worker", peer=holder)
    asker.wait_for_model("fox")
    before = children(holder)
    raw = asker.client().chat.completions.with_raw_response.create(model="fox", messages=QUESTION, temperature=0)
    during = children(holder)
    with pytest.raises(openai.InternalServerError, match=r"bad.*holder: failed") as bad:
        asker.client().chat.completions.create(model="bad", messages=QUESTION)
    wait_until(lambda: not children(holder), "the model unloaded")

    assert (before, len(during)) == ([], 1)
    assert "Paris" in (raw.parse().choices[0].message.content or "")
    assert raw.headers["x-meshnode-node"] == "holder"
    assert bad.value.status_code == 503
    assert "is not a GGUF file" in health_about(holder, "bad.gguf")
    wait_until(lambda: states(asker.member("holder")) == {"fox": "available", "bad": "failed"}, "the states told")


def test_a_file_that_was_put_into_the_folder_is_found_by_who_asks_for_it(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    node = start("node", "--models-dir", str(folder))
    wait_until(node.status, "the node up")
    (folder / "late.gguf").symlink_to(DEMO)

    def asked() -> str:
        try:
            answer = node.client().chat.completions.create(model="late", messages=QUESTION, temperature=0)
        except (openai.NotFoundError, openai.InternalServerError):
            return ""
        return answer.choices[0].message.content or ""

    assert "Paris" in wait_until(asked, "an answer of the new model", seconds=15)
