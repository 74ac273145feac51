"""`meshnode add`, `remotes` and `remove` at real nodes, with a real service behind them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
from processes import NodeProcess, mesh_of, wait_until

KEY = "sk-very-secret-key"
HEADING = ["REMOTE", "KIND", "NODE", "STATE", "MODELS", "COST", "REQUESTS", "TOKENS", "ERRORS"]


class Service(BaseHTTPRequestHandler):
    """Lists `gpt`, and says two words; both only to who has the key."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b'{"data":[{"id":"gpt"}]}', "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        events = (b'data: {"choices":[{"delta":{"content":"Far away."},"finish_reason":"stop"}]}', b"data: [DONE]")
        self._answer(b"".join(event + b"\n\n" for event in events), "text/event-stream")

    def _answer(self, body: bytes, kind: str) -> None:
        known = self.headers["Authorization"] == f"Bearer {KEY}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body if known else b"{}")


@contextmanager
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def command(node: NodeProcess, *arguments: str, sent: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "meshnode", *arguments, "--data-dir", str(node.data_dir)]
    return subprocess.run(line, capture_output=True, text=True, input=sent, check=False)


@pytest.mark.slow
def test_one_person_adds_a_router_and_every_node_can_use_it_without_its_key(tmp_path: Path) -> None:
    with service() as address, mesh_of(tmp_path) as start:
        holder = start("holder", "--no-worker")
        entry = start("entry", "--no-worker", "--log-level", "debug", peer=holder)
        wait_until(lambda: entry.member("holder").get("routable"), "the link")
        wrong = command(holder, "add", "router", "far", address, "--api-key-file", "-", sent="sk-wrong")
        added = command(holder, "add", "router", "far", address, "--api-key-file", "-", sent=KEY)
        entry.wait_for_model("gpt")
        answer = entry.client().chat.completions.create(model="far/gpt", messages=[{"role": "user", "content": "Hi"}])
        table = command(entry, "remotes").stdout
        told = json.loads(command(entry, "remotes", "--json").stdout)
        status = json.dumps(entry.status()) + json.dumps(holder.status())
        arguments = Path(f"/proc/{holder.process.pid}/cmdline").read_bytes()
        removed = command(holder, "remove", "far")
        wait_until(lambda: not entry.get("/v1/models")[2]["data"], "the model's end")
        with pytest.raises(openai.NotFoundError):
            entry.client().chat.completions.create(model="gpt", messages=[{"role": "user", "content": "Hi"}])

    assert wrong.returncode == 2
    assert "far was not added (wrong key)" in wrong.stderr
    assert (added.returncode, added.stdout) == (0, "far was added. 1 models: gpt.\n")
    assert answer.choices[0].message.content == "Far away."
    assert table.splitlines()[0].split() == HEADING
    assert table.splitlines()[1].split()[:6] == ["far", "router", "holder", "ready", "1", "lan"]
    assert told[0]["remote"]["models"] == 1
    assert removed.stdout == "far is no remote of this node any more.\n"
    assert KEY not in status + table + added.stdout + added.stderr
    assert KEY.encode() not in arguments
    leaks = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert leaks == []


@pytest.mark.slow
def test_a_node_of_the_configuration_file_keeps_its_clients_at_home_with_local_only(tmp_path: Path) -> None:
    with service() as address, mesh_of(tmp_path) as start:
        (tmp_path / "key").write_text(KEY)
        remote = f'[[remote]]\nkind = "router"\nname = "far"\nurl = "{address}"\nkey_file = "{tmp_path}/key"\n'
        (tmp_path / "config.toml").write_text(remote)
        holder = start("holder", "--no-worker", "--config", str(tmp_path / "config.toml"))
        entry = start("entry", "--no-worker", "--local-only", peer=holder)
        holder.wait_for_model("gpt")
        wait_until(lambda: entry.member("holder").get("models"), "the model's record")
        with pytest.raises(openai.NotFoundError, match="beyond the scope"):
            entry.client().chat.completions.create(model="gpt", messages=[{"role": "user", "content": "Hi"}])
        kept = command(holder, "remove", "far")

    assert "configuration file" in kept.stderr


@pytest.mark.slow
def test_a_node_is_added_by_its_address(tmp_path: Path) -> None:
    with mesh_of(tmp_path) as start:
        first = start("first", "--no-worker")
        second = start("second", "--no-worker")
        address = first.mesh_address
        added = command(second, "add", "node", address)

    assert added.returncode == 0
    assert "Linked with first" in added.stdout
    assert address in (second.data_dir / "peers.json").read_text()


def test_without_a_node_there_is_nobody_to_try_it(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "meshnode", "add", "router", "far", "https://far.example", "--data-dir", str(tmp_path / "d")]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "meshnode up" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["router", "far", "https://h", "--alias", "x"], "--alias 'x' is no pair"),
        (["router", "far", "https://h", "--api-key-file", "/not/there"], "No such file"),
        (["cluster", "lab", "https://h", "--secret-key-file", "/not/there"], "No such file"),
        (["node", "a b"], "no address"),
        ([], "node|router|cluster"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "meshnode", "add", *arguments, *(["--data-dir", str(tmp_path / "d")] if arguments else [])]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
