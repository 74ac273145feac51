import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.cli.main import main


def test_status_without_a_node_is_one_line_that_says_how_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--data-dir", str(tmp_path / "none")]) == 1

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "meshnode up --data-dir" in output.err


def test_a_token_is_made_once_and_then_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--data-dir", str(tmp_path / "d")]) == 0
    assert main(["token", "--json", "--data-dir", str(tmp_path / "d")]) == 0

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mn1-")
    assert json.loads(second) == {"token": first}


def test_a_token_that_is_there_is_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["token", "new", "--data-dir", str(tmp_path / "d")]

    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_a_configuration_error_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--api", "0.0.0.0:1", "--data-dir", str(tmp_path / "d")]) == 2

    error = capsys.readouterr().err
    assert error.startswith("meshnode: --api 0.0.0.0:1")
    assert error.count("\n") == 1


def test_a_token_of_the_wrong_form_stops_the_start_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2")

    assert main(["up", "--token-file", str(token), "--data-dir", str(tmp_path / "d")]) == 2
    error = capsys.readouterr().err
    assert "mn1-" in error
    assert "hunter2" not in error


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["status", "--help"], ["token", "--help"]])
def test_help_has_an_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 0
    assert "Example" in capsys.readouterr().out


def test_the_command_line_loads_nothing_slow() -> None:
    script = "import sys, meshnode.cli.main; print({'trio', 'cryptography', 'zeroconf', 'rich', 'msgpack'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
