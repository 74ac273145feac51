"""The two commands against a node that says what it is told to."""

import json
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
from meshnode.routing.breaker import Mode
from meshnode.routing.estimate import Estimate
from meshnode.routing.explain import Barred, Explained, Explanation


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextmanager
def node_that_says(path: Path, body: bytes, *, status: int = 200) -> Iterator[list[tuple[str, Any]]]:
    """What it was asked: paths and bodies."""
    asked: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(status if self.headers["Authorization"] == "Bearer hush" else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    data_dir = DataDir.open(path)
    data_dir.lock()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        data_dir.write_run({"pid": 7, "api": f"127.0.0.1:{server.server_port}", "secret": "hush"})
        yield asked
        server.shutdown()
        thread.join()


def row(name: str, *, chosen: bool, measured: bool, local: bool = False) -> Explained:
    estimate = Estimate(
        rtt=0.001, wait=2.5, load=0.0, prefill=0.25, decode=12.34, penalty=0.0, cached=0.0, alone=0.0, others=0.5, age=0.4,
        first=2.751, finish=15.1,
    )  # fmt: skip
    return Explained(
        node="aa", node_name=name, model="demo", local=local, origin="", state="ready", active=1, queued=2, slots=4, under_way=0,
        breaker=Mode.CLOSED, measured=measured, estimate=estimate, score=15.6, chosen=chosen,
        verdict="chosen: fastest" if chosen else "dearer by 3.0 s\x1b[31m",
    )  # fmt: skip


def explanation() -> Explanation:
    rows = (row("alpha", chosen=True, measured=True, local=True), row("beta", chosen=False, measured=False))
    barred = (Barred(node="bb", node_name="gamma", reason="draining"),)
    return Explanation(prompt_tokens=2000, output_tokens=200, reason="fastest", bound=16.0, candidates=rows, barred=barred)


def test_every_candidate_has_a_line_with_its_terms_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(tmp_path / "data", msgspec.json.encode(explanation())) as asked:
        code = main(["explain", "demo", "--prompt-tokens", "2000", "--data-dir", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line}

    assert code == 0
    assert asked == [("/mesh/v1/explain", {"model": "demo", "prompt_tokens": 2000, "max_tokens": None})]
    assert "2000 tokens to read, about 200 to write: fastest" in printed
    assert lines["alpha*"][1:16] == ["demo", "ready", "3/4", "2.500", "0.000", "0.250", "12.3", "0.001", "0.000", "2.751", "15.1",
                                     "0.500", "15.6", "0.4", "chosen:"]  # fmt: skip
    assert printed.count("guessed") == 1
    assert "gamma is not asked: draining" in printed
    assert "\x1b" not in printed


def test_programs_get_what_the_node_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(tmp_path / "data", msgspec.json.encode(explanation())):
        main(["explain", "demo", "--json", "--data-dir", str(tmp_path / "data")])

    assert json.loads(capsys.readouterr().out)["candidates"][0]["estimate"]["decode"] == 12.34


def test_a_model_that_nobody_has_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node_that_says(tmp_path / "data", b'{"error":{"message":"The model `x` does not exist."}}', status=404):
        code = main(["explain", "x", "--data-dir", str(tmp_path / "data")])

    assert code == 2
    assert "The model `x` does not exist." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "asked_for", "printed"),
    [
        ([], {"on": True, "hand_over": False}, "requests under way: 3"),
        (["--hand-over"], {"on": True, "hand_over": True}, "takes nothing new"),
        (["--off"], {"on": False, "hand_over": False}, "takes requests"),
        (["--json"], {"on": True, "hand_over": False}, '"running": 3'),
    ],
)
def test_a_node_is_drained_and_taken_back(
    path: Path, capsys: pytest.CaptureFixture[str], *, flags: list[str], asked_for: dict[str, bool], printed: str
) -> None:
    with node_that_says(path, json.dumps({"draining": asked_for["on"], "running": 3}).encode()) as asked:
        code = main(["drain", *flags, "--data-dir", str(path)])

    assert code == 0
    assert asked == [("/mesh/v1/drain", asked_for)]
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("command", [["drain"], ["explain", "demo"]])
def test_without_a_node_it_is_one_line_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--data-dir", str(tmp_path)]) == 1
    assert "no node runs" in capsys.readouterr().err
