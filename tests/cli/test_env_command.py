import json
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from meshnode.address import Address
from meshnode.cli.env import DIALECTS, variables_of
from meshnode.cli.main import main
from meshnode.datadir import DataDir

API = Address("127.0.0.1", 4860)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def running_at(path: Path, api: str) -> DataDir:
    """A data directory in which a node seems to run."""
    data_dir = DataDir.open(path)
    data_dir.lock()
    data_dir.write_run({"pid": 7, "api": api, "secret": "hush"})
    return data_dir


def test_the_variables_are_those_that_the_official_clients_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {name: value for dialect in DIALECTS for name, value in variables_of(dialect, API).items()}.items():
        monkeypatch.setenv(name, value)
    for name in ("ANTHROPIC_API_KEY", "OLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    assert str(openai.OpenAI().base_url) == "http://127.0.0.1:4860/v1/"
    assert str(anthropic.Anthropic().base_url) == "http://127.0.0.1:4860"
    assert anthropic.Anthropic().auth_token == "unused"
    assert str(ollama.Client()._client.base_url) == "http://127.0.0.1:4860"


def test_it_prints_what_a_shell_reads_or_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = running_at(path, "127.0.0.1:7777")

    assert main(["env", "openai", "--data-dir", str(path)]) == 0
    assert capsys.readouterr().out == "export OPENAI_BASE_URL=http://127.0.0.1:7777/v1\nexport OPENAI_API_KEY=unused\n"
    assert main(["env", "--json", "--data-dir", str(path)]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [
        "OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "OLLAMA_HOST",
    ]  # fmt: skip
    del data_dir


@pytest.mark.parametrize(("bound", "told"), [("0.0.0.0:7777", "127.0.0.1:7777"), ("[::]:7777", "[::1]:7777")])
def test_of_a_node_on_every_address_loopback_is_told(
    path: Path, capsys: pytest.CaptureFixture[str], bound: str, told: str
) -> None:
    data_dir = running_at(path, bound)
    main(["env", "ollama", "--data-dir", str(path)])

    assert told in capsys.readouterr().out
    del data_dir


def test_without_a_node_it_tells_where_one_will_be(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["env", "ollama", "--data-dir", str(path)]) == 0
    assert capsys.readouterr().out == "export OLLAMA_HOST=http://127.0.0.1:4860\n"
    monkeypatch.setenv("MESHNODE_API", "127.0.0.1:0")
    assert main(["env", "ollama", "--data-dir", str(path)]) == 2
    assert "port 0" in capsys.readouterr().err
