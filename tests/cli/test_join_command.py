"""`meshnode join`: where the token comes from, what is kept, and what it refuses. With running nodes: tests/test_joining.py."""

import io
import json
from pathlib import Path

import pytest

from meshnode import contacts, credentials
from meshnode.cli.main import main
from meshnode.contacts import Contacts
from meshnode.datadir import DataDir
from meshnode.identity import Token, mesh_id_of
from meshnode.names import NodeId


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def token() -> Token:
    return Token.new()


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def join(path: Path, *arguments: str) -> int:
    return main(["join", *arguments, "--data-dir", str(path)])


def test_the_token_comes_by_standard_input_and_is_kept(
    path: Path, token: Token, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, f"{token.text()}\n")

    assert join(path) == 0
    assert credentials.kept_token(DataDir.open(path)) == token
    assert f"meshnode up --data-dir {path}" in capsys.readouterr().out


def test_an_address_is_kept_for_the_start(path: Path, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, token.text())

    assert join(path, "attic.local") == 0
    assert contacts.load(DataDir.open(path), mesh_id_of(token)).seeds == ("attic.local:4850",)


@pytest.mark.parametrize("source", ["--token", "--token-file", "variable"])
def test_the_token_can_be_given_in_other_ways(path: Path, token: Token, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = path.parent / "mesh-token"
    file.write_text(token.text())
    flags = {"--token": ["--token", token.text()], "--token-file": ["--token-file", str(file)], "variable": []}
    if source == "variable":
        monkeypatch.setenv("MESHNODE_TOKEN", token.text())
    typed(monkeypatch, "not read")

    assert join(path, *flags[source]) == 0
    assert credentials.kept_token(DataDir.open(path)) == token


def test_a_token_with_a_typing_error_is_refused_and_not_repeated(
    path: Path, token: Token, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = token.text()[:-1] + ("a" if token.text()[-1] != "a" else "b")
    typed(monkeypatch, wrong)

    assert join(path) == 2
    said = capsys.readouterr().err
    assert "checksum" in said
    assert wrong not in said
    assert credentials.kept_token(DataDir.open(path)) is None


def test_without_any_token_it_says_what_a_token_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "")

    assert join(path) == 2
    assert "standard input: This is not a mesh token" in capsys.readouterr().err


def test_an_address_alone_keeps_the_token_that_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = credentials.keep_new_token(DataDir.open(path))
    typed(monkeypatch, "")

    assert join(path, "10.0.0.7") == 0
    assert credentials.kept_token(DataDir.open(path)) == kept
    assert contacts.load(DataDir.open(path), mesh_id_of(kept)).seeds == ("10.0.0.7:4850",)


def test_a_wrong_address_changes_nothing(
    path: Path, token: Token, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, token.text())

    assert join(path, "attic:port") == 2
    assert "the port must be a number" in capsys.readouterr().err
    assert not path.exists()


def test_a_node_alone_in_its_mesh_leaves_it_without_a_question_and_one_with_others_only_by_force(
    path: Path, token: Token, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = DataDir.open(path)
    first = credentials.keep_new_token(data_dir)
    typed(monkeypatch, token.text())
    assert join(path) == 0

    contacts.save(data_dir, Contacts(mesh=mesh_id_of(token)).met({NodeId(b"n" * 16): ("10.0.0.1:1",)}))
    typed(monkeypatch, first.text())
    assert join(path) == 2
    assert f"This node is in mesh {mesh_id_of(token).hex()} with 1 other node. --force" in capsys.readouterr().err
    assert credentials.kept_token(data_dir) == token

    typed(monkeypatch, first.text())
    assert join(path, "--force") == 0
    assert credentials.kept_token(data_dir) == first


def test_json_says_which_mesh_it_is_and_that_nothing_runs(
    path: Path, token: Token, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, token.text())

    assert join(path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"mesh": mesh_id_of(token).hex(), "running": False, "linked": []}


def test_a_node_that_is_just_starting_is_waited_for(path: Path, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read the token that was there, so to be told to start it would be wrong."""
    data_dir = DataDir.open(path)
    credentials.keep_new_token(data_dir)
    data_dir.lock()
    looks: list[Path] = []
    asked: list[object] = []

    def running(directory: Path) -> object:
        looks.append(directory)
        return "a run file" if len(looks) > 2 else None

    def join_now(*given: object, **_: object) -> int:
        asked.append(given)
        return 0

    monkeypatch.setattr("meshnode.cli.api.running", running)
    monkeypatch.setattr("meshnode.cli.join._join_now", join_now)
    typed(monkeypatch, token.text())

    assert join(path, "10.0.0.7") == 0
    assert asked == [(path, "10.0.0.7:4850")]
