import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_the_directory_and_its_files_are_private(path: Path) -> None:
    data_dir = DataDir.open(path)
    data_dir.write("token", b"secret")

    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "token").stat().st_mode) == 0o600
    assert data_dir.read("token") == b"secret"
    assert os.listdir(path) == ["token"]


def test_a_directory_that_others_may_enter_names_the_chmod(path: Path) -> None:
    path.mkdir(mode=0o755)
    path.chmod(0o755)

    with pytest.raises(ConfigurationError, match=f"chmod 700 {path}"):
        DataDir.open(path)


def test_a_secret_that_others_may_read_names_the_chmod(path: Path) -> None:
    data_dir = DataDir.open(path)
    data_dir.write("token", b"secret")
    (path / "token").chmod(0o640)

    with pytest.raises(ConfigurationError, match=f"chmod 600 {path / 'token'}"):
        data_dir.read("token")


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    data_dir = DataDir.open(path)
    (tmp_path / "elsewhere").write_text("x")
    (path / "token").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigurationError, match="plain file"):
        data_dir.read("token")


def test_a_file_that_is_not_there_is_none(path: Path) -> None:
    data_dir = DataDir.open(path)
    data_dir.remove("token")

    assert data_dir.read("token") is None


def test_a_place_where_no_directory_can_be_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="--data-dir"):
        DataDir.open(tmp_path / "file" / "data")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = DataDir.open(path)
    data_dir.write("token", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))

    with pytest.raises(OSError, match="disk full"):
        data_dir.write("token", b"new")

    assert (path / "token").read_bytes() == b"old"
    assert os.listdir(path) == ["token"]


def test_epochs_rise_with_the_clock_and_without_it(path: Path) -> None:
    data_dir = DataDir.open(path)

    assert data_dir.next_epoch(1000) == 1000
    assert data_dir.next_epoch(500) == 1001
    assert data_dir.next_epoch(5000) == 5000
    data_dir.write("epoch", b"rubbish")
    assert data_dir.next_epoch(7000) == 7000


def test_a_second_node_is_refused_by_the_pid_of_the_first(path: Path) -> None:
    """In another process, because a lock is the process's."""
    script = f"from meshnode.datadir import DataDir; from pathlib import Path; DataDir.open(Path({str(path)!r})).lock()"
    data_dir = DataDir.open(path)
    data_dir.lock()
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert f"pid {os.getpid()}" in second.stderr
    assert "--data-dir" in second.stderr
    assert data_dir.is_locked()


def test_the_run_file_of_a_killed_node_does_not_count(path: Path) -> None:
    data_dir = DataDir.open(path)
    data_dir.write_run({"pid": 1})

    assert data_dir.read_run() is None

    data_dir.lock()
    assert data_dir.read_run() == {"pid": 1}
