import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode import __version__
from meshnode.cli import report
from meshnode.cli.main import main

COMMANDS = "'up', 'join', 'status', 'members', 'models', 'remotes', 'add', 'remove', 'explain', 'drain', 'token', 'key', 'env'"


def run(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """With standard output buffered, as it is for a user, whatever the environment of the tests says."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "meshnode", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=environment)


def test_a_configuration_error_is_one_line_and_exit_2(tmp_path: Path) -> None:
    ended = run("--api", "0.0.0.0:1", "--data-dir", str(tmp_path / "d"))

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("meshnode: --api 0.0.0.0:1 can be reached by other machines")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["up", "--slots", "many"], "argument --slots: invalid int value: 'many'. See: meshnode up --help"),
        (["--tokne-file", "x"], "unrecognized arguments: --tokne-file x. See: meshnode --help"),
        (["--pee", "x"], "unrecognized arguments: --pee x. See: meshnode --help"),
        (
            ["stauts"],
            f"invalid choice: 'stauts' (choose from {COMMANDS}). See: meshnode --help",
        ),
        (["token", "old"], "invalid choice: 'old' (choose from 'show', 'new'). See: meshnode token --help"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert error.startswith("meshnode: ")
    assert error.endswith(f"{complaint}\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["status", "--help"], ["token", "--help"]])
def test_help_has_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 0
    assert "Example" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"meshnode {__version__}\n"


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "get", interrupted)

    assert main(["status"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`meshnode token | true`: the pipe breaks when the text is flushed, at the latest when Python ends."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = run("token", "--data-dir", str(tmp_path / "d"), stdout=writer)

    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_command_line_loads_nothing_slow() -> None:
    """What a person waits for at each `meshnode status`; http.client brings ssl and email with it."""
    slow = {"trio", "cryptography", "zeroconf", "rich", "msgpack", "http.client", "logging", "tomllib"}
    script = f"import sys, meshnode.cli.main; print({slow} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
