import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

import meshnode
from meshnode.cli.main import main
from meshnode.errors import ConfigurationError
from meshnode.identity import Token
from meshnode.start import Running, Start

RUNNING = Running(
    name="alpha",
    node_id="616c706861",
    mesh_id="ab12",
    api="127.0.0.1:4860",
    mesh=("0.0.0.0:4850", "[::]:4850"),
    advertised=("127.0.0.1:4850", "192.168.1.7:4850"),
)
Node = Callable[[Start], Awaitable[None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    """What the node was started with; it announces itself and ends."""
    starts: list[Start] = []

    async def run(start: Start) -> None:
        starts.append(start)
        start.announce(RUNNING)

    run_instead(run, monkeypatch)
    return starts


def run_instead(run: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node: Any = ModuleType("meshnode.node")
    node.run = run
    monkeypatch.setitem(sys.modules, "meshnode.node", node)
    monkeypatch.setattr(meshnode, "node", node, raising=False)


def test_the_first_run_makes_a_mesh_and_says_so(path: Path, started: list[Start], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--data-dir", str(path)]) == 0

    assert capsys.readouterr().out == (
        "meshnode alpha (616c7068) is up\n"
        "  mesh    ab12 (new), port open on 0.0.0.0:4850, [::]:4850\n"
        "  API     http://127.0.0.1:4860/v1\n"
        "  models  loading demo\n"
        f"  data    {path}\n"
        f"  log     {path}/logs/meshnode.log\n"
    )
    assert started[0].token.text() + "\n" == (path / "token").read_text()


def test_the_address_for_ollamas_clients_is_told(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(start: Start) -> None:
        start.announce(replace(RUNNING, ollama="127.0.0.1:11434"))

    run_instead(run, monkeypatch)
    main(["up", "--as-ollama", "--data-dir", str(path)])

    assert "\n  Ollama  http://127.0.0.1:11434\n" in capsys.readouterr().out


def test_the_next_run_is_of_the_same_mesh(path: Path, started: list[Start], capsys: pytest.CaptureFixture[str]) -> None:
    """Closing the lock's descriptor is what the end of the first process does."""
    main(["up", "--data-dir", str(path)])
    os.close(started[0].data_dir._lock_file or -1)
    main(["--data-dir", str(path)])

    assert started[0].token == started[1].token
    assert capsys.readouterr().out.count("(new)") == 1


def test_what_is_served_is_told(path: Path, started: list[Start], capsys: pytest.CaptureFixture[str]) -> None:
    model = path.parent / "some model.gguf"
    model.touch()
    main(["--model", str(model), "--model", f"b={model}", "--data-dir", str(path)])
    main(["--no-worker", "--data-dir", str(path.parent / "other")])

    output = capsys.readouterr().out
    assert "  models  loading some-model, b\n" in output
    assert "  models  none: this node only asks\n" in output


def test_programs_get_the_same_as_json(path: Path, started: list[Start], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", "--data-dir", str(path)])

    facts = json.loads(capsys.readouterr().out)
    assert (facts["api"], facts["models"], facts["data_dir"], facts["new_mesh"]) == ("127.0.0.1:4860", ["demo"], str(path), True)


@pytest.mark.parametrize(
    ("mesh", "advertised", "peer"),
    [
        (("0.0.0.0:4850",), ("127.0.0.1:4850", "192.168.1.7:4850"), "192.168.1.7"),
        (("0.0.0.0:4851",), ("192.168.1.7:4851",), "192.168.1.7:4851"),
        (("[::]:9",), ("[2001:db8::1]:9",), "[2001:db8::1]:9"),
        (("0.0.0.0:4850",), (), "thishost"),
        (("0.0.0.0:9",), (), "thishost:9"),
        (("127.0.0.1:9",), ("127.0.0.1:9",), "127.0.0.1:9"),
    ],
)
def test_on_a_terminal_the_next_step_is_told_without_the_token(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    *, mesh: tuple[str, ...], advertised: tuple[str, ...], peer: str,
) -> None:  # fmt: skip
    async def run(start: Start) -> None:
        start.announce(Running(name="a", node_id="1", mesh_id="2", api="127.0.0.1:1", mesh=mesh, advertised=advertised))

    run_instead(run, monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("socket.gethostname", lambda: "thishost")
    main(["--data-dir", str(path)])

    output = capsys.readouterr().out
    assert output.endswith(
        f"meshnode token --data-dir {path}):\n"
        f"  meshnode join {peer} && meshnode up\n"
        f"See the mesh: meshnode status --data-dir {path}\n"
    )
    assert "mn1-" not in output


def test_a_token_given_is_kept(path: Path, started: list[Start], monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token.new()
    monkeypatch.setenv("MESHNODE_TOKEN", token.text())
    main(["--data-dir", str(path)])

    assert started[0].token == token
    assert (path / "token").read_text().strip() == token.text()
    assert "MESHNODE_TOKEN" not in os.environ


def test_a_token_that_replaces_another_is_told_and_not_shown(
    path: Path, started: list[Start], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["token", "--data-dir", str(path)])
    file = path.parent / "mesh-token"
    file.write_text(Token.new().text())
    file.chmod(0o600)
    capsys.readouterr()
    main(["--token-file", str(file), "--data-dir", str(path)])

    output = capsys.readouterr()
    assert "replaces the one" in output.err
    assert "others may read" not in output.err
    assert "mn1-" not in output.err + output.out
    assert (path / "token").read_text().strip() == file.read_text()


def test_a_token_file_that_others_may_read_is_told(path: Path, started: list[Start], capsys: pytest.CaptureFixture[str]) -> None:
    file = path.parent / "mesh-token"
    file.write_text(Token.new().text())
    file.chmod(0o644)

    assert main(["--token-file", str(file), "--data-dir", str(path)]) == 0
    assert f"chmod 600 {file}" in capsys.readouterr().err


def test_a_given_token_replaces_a_damaged_one(
    path: Path, started: list[Start], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["token", "--data-dir", str(path)])
    (path / "token").write_text("mn1-half")
    monkeypatch.setenv("MESHNODE_TOKEN", Token.new().text())

    assert main(["--data-dir", str(path)]) == 0
    assert "is replaced by the token given" in capsys.readouterr().err


def test_two_different_tokens_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = path.parent / "mesh-token"
    file.write_text(Token.new().text())
    monkeypatch.setenv("MESHNODE_TOKEN", Token.new().text())

    assert main(["--token-file", str(file), "--data-dir", str(path)]) == 2
    assert "--token-file and MESHNODE_TOKEN hold different tokens" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"hunter2", b"", b"\xff\xfehunter2", b"hunter2" * 10_000])
def test_a_token_of_the_wrong_form_names_its_source_and_is_not_repeated(
    path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = path.parent / "mesh-token"
    file.write_bytes(content)
    file.chmod(0o600)

    assert main(["up", "--token-file", str(file), "--data-dir", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"meshnode: --token-file {file}: ")
    assert "meshnode token new" in error
    assert "hunter2" not in error


def test_a_variable_that_nothing_reads_is_told(
    path: Path, started: list[Start], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESHNODE_PEERS", "x")
    main(["--data-dir", str(path)])

    assert "MESHNODE_PEERS is no setting of meshnode. Did you mean 'MESHNODE_PEER'?" in capsys.readouterr().err


def test_a_node_that_cannot_start_is_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However deep in nurseries it was found."""

    async def run(start: Start) -> None:
        async with trio.open_nursery(strict_exception_groups=True), trio.open_nursery(strict_exception_groups=True):
            raise ConfigurationError("--api 127.0.0.1:1: the port is in use.", hint="Choose another.")

    run_instead(run, monkeypatch)

    assert main(["--data-dir", str(path)]) == 2
    assert capsys.readouterr().err == "meshnode: --api 127.0.0.1:1: the port is in use. Choose another.\n"


def test_ctrl_c_in_the_midst_is_130_without_a_traceback(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(start: Start) -> None:
        async with trio.open_nursery(strict_exception_groups=True):
            raise KeyboardInterrupt

    run_instead(run, monkeypatch)

    assert main(["--data-dir", str(path)]) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_is_loud_even_beside_an_expected_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(start: Start) -> None:
        raise BaseExceptionGroup("both", [ConfigurationError("expected"), ZeroDivisionError("a bug")])

    run_instead(run, monkeypatch)

    with pytest.raises(BaseExceptionGroup) as caught:
        main(["--data-dir", str(path)])
    assert caught.group_contains(ZeroDivisionError)


def test_after_the_node_nothing_of_its_logging_is_left(path: Path, started: list[Start]) -> None:
    before = list(logging.getLogger().handlers)
    main(["--data-dir", str(path)])

    assert logging.getLogger().handlers == before


def test_a_starter_that_reads_no_more_does_not_end_the_node(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lived = []

    async def run(start: Start) -> None:
        start.announce(RUNNING)
        lived.append(start)

    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return False

        def flush(self) -> None:
            pass

    run_instead(run, monkeypatch)
    monkeypatch.setattr(sys, "stdout", Closed())

    assert main(["--data-dir", str(path)]) == 0
    assert lived
