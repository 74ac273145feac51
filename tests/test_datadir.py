import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode import datadir
from meshnode.datadir import DataDir, RunFile
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
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))

    with pytest.raises(ConfigurationError, match=f"{path / 'token'}: no space left. Is the disk full"):
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


def lock_in_another_process(path: Path) -> str:
    """What it says; empty when it got the lock."""
    script = (
        "from pathlib import Path\nfrom meshnode.datadir import DataDir\nfrom meshnode.errors import ConfigurationError\n"
        f"try: DataDir.open(Path({str(path)!r})).lock()\n"
        "except ConfigurationError as error: print(error)"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_a_second_node_is_refused_by_the_pid_of_the_first_until_that_ends(path: Path) -> None:
    first = DataDir.open(path)
    first.lock()

    assert DataDir.open(path).is_locked()
    assert f"pid {os.getpid()}" in lock_in_another_process(path)
    assert "--data-dir" in lock_in_another_process(path)

    os.close(first._lock_file or -1)  # as the end of the process does
    assert not DataDir.open(path).is_locked()
    assert lock_in_another_process(path) == ""


def look_at(path: Path) -> int:
    """A look at the lock that lasts until its descriptor is closed."""
    descriptor = os.open(path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def test_who_looks_at_the_lock_is_not_taken_for_a_node(path: Path) -> None:
    data_dir = DataDir.open(path)
    (path / "lock").touch(0o600)
    look = look_at(path)

    assert not data_dir.is_locked()
    os.close(look)


def test_who_looks_at_the_lock_does_not_stop_a_node_from_starting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = DataDir.open(path)
    (path / "lock").touch(0o600)
    look = look_at(path)
    monkeypatch.setattr(datadir, "sleep", lambda _: os.close(look))

    data_dir.lock()
    assert (path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_opened_is_named(path: Path) -> None:
    data_dir = DataDir.open(path)
    (path / "lock").mkdir()

    with pytest.raises(ConfigurationError, match=str(path / "lock")):
        data_dir.lock()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_nobody_waits_for_it(path: Path, make: Callable[[Path], None]) -> None:
    data_dir = DataDir.open(path)
    make(path / "token")

    with pytest.raises(ConfigurationError, match="not a plain file"):
        data_dir.read("token")


def test_a_subdirectory_is_private_and_a_file_in_its_place_is_named(path: Path) -> None:
    data_dir = DataDir.open(path)
    (path / "logs").touch()

    assert stat.S_IMODE(data_dir.subdirectory("cache").stat().st_mode) == 0o700
    assert data_dir.subdirectory("cache") == path / "cache"
    with pytest.raises(ConfigurationError, match=str(path / "logs")):
        data_dir.subdirectory("logs")


FACTS = {"pid": 1, "api": "127.0.0.1:4860", "secret": "hush", "name": "alpha", "mesh": ["127.0.0.1:4850"]}


def test_the_run_file_counts_while_its_node_runs(path: Path) -> None:
    data_dir = DataDir.open(path)
    data_dir.lock()
    assert data_dir.read_run() is None

    data_dir.write_run(FACTS)
    run = data_dir.read_run()

    assert run == RunFile(pid=1, api="127.0.0.1:4860", secret="hush")
    assert "hush" not in repr(run)
    assert stat.S_IMODE((path / "run.json").stat().st_mode) == 0o600


def test_the_run_file_of_a_killed_node_never_counts(path: Path) -> None:
    data_dir = DataDir.open(path)
    data_dir.write_run(FACTS)
    assert data_dir.read_run() is None

    data_dir.lock()
    assert data_dir.read_run() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_damaged_run_file_says_so(path: Path, content: bytes) -> None:
    data_dir = DataDir.open(path)
    data_dir.lock()
    data_dir.write("run.json", content)

    with pytest.raises(ConfigurationError, match="Restart the node"):
        data_dir.read_run()
