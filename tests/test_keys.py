"""API keys on disk, and what of a client's text is one."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode import credentials
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError
from meshnode.keys import MAX_KEYS, KeyRing, Scope, Wanted


def open_dir(tmp_path: Path) -> DataDir:
    return DataDir.open(tmp_path / "data")


def test_a_key_is_found_by_its_text_also_after_a_restart_until_it_is_revoked(tmp_path: Path) -> None:
    key, text = credentials.api_keys(open_dir(tmp_path)).new(Wanted(scope=Scope.ADMIN, tokens_per_minute=9), now=0)
    again = credentials.api_keys(open_dir(tmp_path))

    assert text.startswith(f"mk_{key.id}_")
    assert again.find(text) == key
    assert again.revoke(key.id) == key
    assert again.find(text) is None
    assert again.revoke(key.id) is None
    assert not credentials.api_keys(open_dir(tmp_path))


def test_the_disk_holds_no_secret_and_is_private(tmp_path: Path) -> None:
    _, text = credentials.api_keys(open_dir(tmp_path)).new(Wanted(), now=0)
    file = tmp_path / "data" / "keys.json"

    assert text.split("_")[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        credentials.api_keys(open_dir(tmp_path))


@pytest.mark.parametrize("content", [b"{", b"\xff", b'[{"id":"../../etc","sha256":"0"}]', b'[{"id":"aaaaaaaa","sha256":"0"}]'])
def test_a_damaged_file_is_named_and_admits_nobody(tmp_path: Path, content: bytes) -> None:
    open_dir(tmp_path).write("keys.json", content)

    with pytest.raises(ConfigurationError, match=r"keys.json is damaged"):
        credentials.api_keys(open_dir(tmp_path))


RING = KeyRing()
KEY, TEXT = RING.new(Wanted(), now=0)


@given(st.integers(0, len(TEXT) - 1), st.characters())
def test_a_key_with_one_character_changed_is_none(place: int, character: str) -> None:
    changed = TEXT[:place] + character + TEXT[place + 1 :]

    assert (RING.find(changed) == KEY) == (changed == TEXT)


@given(st.text() | st.builds(lambda text: f"mk_{KEY.id}_{text}", st.text()))
def test_whatever_a_client_sends_is_no_key(text: str) -> None:
    assert RING.find(text) is None


def test_what_cannot_be_written_is_not_so() -> None:
    def full(_: bytes) -> None:
        raise ConfigurationError("The disk is full.")

    ring = KeyRing(keep=full)
    with pytest.raises(ConfigurationError):
        ring.new(Wanted(), now=0)

    assert not list(ring)


def test_there_are_only_so_many_keys() -> None:
    ring = KeyRing()
    for _ in range(MAX_KEYS):
        ring.new(Wanted(), now=0)

    with pytest.raises(ConfigurationError, match="Revoke"):
        ring.new(Wanted(), now=0)


def test_the_file_is_what_an_operator_can_read(tmp_path: Path) -> None:
    key, _ = credentials.api_keys(open_dir(tmp_path)).new(Wanted(requests_per_minute=5), now=0)
    [shown] = json.loads((tmp_path / "data" / "keys.json").read_bytes())

    assert (shown["id"], shown["scope"], shown["requests_per_minute"]) == (key.id, "use", 5)
