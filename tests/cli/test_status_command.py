import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshnode.cli.main import main
from meshnode.datadir import DataDir
from meshnode.search import Mdns, Search
from meshnode.status import Node, Worker, build
from meshnode.testing import fake_member


def report(*workers: Worker) -> bytes:
    me = fake_member("alpha", "demo")
    node = Node(id=me.id.hex(), name="alpha", version="0.1.0", api="x", mesh=("y",), pid=7, uptime_s=1.0)
    search = Search(alone_s=0.0, mdns=Mdns(state="starting"), advertised=())
    built = build(node=node, mesh_id="ab12", me=me.id, members=(me,), search=search, workers=workers, refusals=(), now=0.0)
    return msgspec.json.encode(built)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextmanager
def node_that_says(path: Path, body: bytes, *, host: str = "127.0.0.1") -> Iterator[HTTPServer]:
    """A lock, a run file, and an API that gives `body` to who has the secret; bound to `host`, as the run file says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Host"].startswith("127.0.0.1:") and self.path == "/mesh/v1/status"
            known = asked and self.headers["Authorization"] == "Bearer hush"
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(body if known else b'{"error": "who\x1b are you?"}')

        def log_message(self, format: str, *args: Any) -> None:
            pass

    data_dir = DataDir.open(path)
    data_dir.lock()
    with HTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        data_dir.write_run({"pid": 7, "api": f"{host}:{server.server_port}", "secret": "hush"})
        yield server
        server.shutdown()
        thread.join()


def test_status_without_a_node_is_one_line_that_says_how_to_start(path: Path) -> None:
    command = [sys.executable, "-m", "meshnode", "status", "--data-dir", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"meshnode: Cannot reach meshnode: no node runs on {path}. Start it with: meshnode up --data-dir {path}\n"
    )
    assert not path.exists()


def test_the_plain_command_is_enough_where_the_environment_finds_the_directory(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(path))

    assert main(["status"]) == 1
    assert capsys.readouterr().err.endswith("Start it with: meshnode up\n")


def test_a_healthy_node_is_a_table_and_exit_0(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(path, report()):
        assert main(["status", "--data-dir", str(path)]) == 0

    assert "alpha*" in capsys.readouterr().out


def test_a_degraded_node_is_exit_2(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(path, report(Worker(name="qwen", state="failed", reason="truncated"))):
        assert main(["status", "--data-dir", str(path)]) == 2

    assert "Health: the worker for qwen failed" in capsys.readouterr().out


def test_json_is_the_report_with_what_a_newer_node_adds(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = json.loads(report()) | {"weather": "fine"}
    with node_that_says(path, json.dumps(newer).encode()):
        assert main(["status", "--json", "--data-dir", str(path)]) == 0

    assert json.loads(capsys.readouterr().out) == newer


def test_a_node_on_every_address_is_asked_on_loopback(path: Path) -> None:
    with node_that_says(path, report(), host="0.0.0.0"):
        assert main(["status", "--data-dir", str(path)]) == 0


@pytest.mark.parametrize("body", [b"", b"{}", b'{"schema": 2}', b"\xff"])
def test_a_report_that_cannot_be_read_is_one_line(path: Path, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(path, body):
        assert main(["status", "--data-dir", str(path)]) == 2

    error = capsys.readouterr().err
    assert "another version" in error
    assert error.count("\n") == 1


def test_a_node_that_refuses_us_is_quoted_without_its_control_characters(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(path, report()) as server:
        DataDir(path).write_run({"pid": 7, "api": f"127.0.0.1:{server.server_port}", "secret": "wrong"})

        assert main(["status", "--data-dir", str(path)]) == 2

    error = capsys.readouterr().err
    assert "answered 401" in error
    assert "\x1b" not in error


def test_a_node_whose_api_is_silent_is_not_running_and_its_log_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(path, report()) as server:
        port = server.server_port
    assert main(["status", "--data-dir", str(path)]) == 1

    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert str(path / "logs") in error
    assert error.count("\n") == 1
