import json
import stat
from pathlib import Path

import pytest

from meshnode.cli.main import main
from meshnode.datadir import DataDir


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_a_token_is_made_once_and_then_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--data-dir", str(path)]) == 0
    assert main(["token", "--json", "--data-dir", str(path)]) == 0

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mn1-")
    assert json.loads(second) == {"token": first}
    assert stat.S_IMODE((path / "token").stat().st_mode) == 0o600


def test_a_token_that_is_there_is_replaced_only_by_force(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["token", "new", "--data-dir", str(path)]

    assert main(arguments) == 0
    assert main(arguments) == 2
    assert main([*arguments, "--force"]) == 0

    output = capsys.readouterr()
    assert "--force" in output.err
    assert len(set(output.out.splitlines())) == 2


def test_a_token_in_use_is_not_replaced_even_by_force(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["token", "--data-dir", str(path)])
    DataDir.open(path).lock()

    assert main(["token", "new", "--force", "--data-dir", str(path)]) == 2
    assert "Stop it first" in capsys.readouterr().err


def test_the_token_is_that_of_the_node_that_the_config_file_means(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = path.parent / "node.toml"
    config.write_text(f'data_dir = "{path}"')

    assert main(["token", "--config", str(config)]) == 0
    assert capsys.readouterr().out == (path / "token").read_text()


def test_a_damaged_token_names_its_file_and_is_not_repeated(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DataDir.open(path).write("token", b"hunter2\xff\n")

    assert main(["token", "--data-dir", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path / "token") in error
    assert "hunter2" not in error

    assert main(["token", "new", "--force", "--data-dir", str(path)]) == 0
