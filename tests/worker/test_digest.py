import hashlib
import os
import threading
from pathlib import Path

import pytest

from meshnode.errors import ConfigurationError
from meshnode.worker import digest
from meshnode.worker.digest import PIECE, Stopped, digest_of


def expected(data: bytes) -> bytes:
    """The definition, in other words than the code's."""
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    parts = [b"meshnode-model-v1", len(data).to_bytes(8, "little"), *(hashlib.sha256(piece).digest() for piece in pieces)]
    return hashlib.sha256(b"".join(parts)).digest()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
def test_the_digest_is_that_of_size_and_pieces(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m"
    path.write_bytes(os.urandom(size))

    assert digest_of(path, cache_dir=tmp_path / "cache") == expected(path.read_bytes())


def test_a_known_vector(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"abc")

    assert digest_of(path, cache_dir=tmp_path).hex() == "48bad4842ceafc87469d18001c5be0bf465c6efcfe8dae5e5343c70e4d1d0f65"


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"weights")
    first = digest_of(path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(digest, "_compute", lambda *_args: pytest.fail("read again"))

    assert digest_of(path, cache_dir=tmp_path / "cache") == first


def test_a_changed_file_of_the_same_size_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"weights")
    first = digest_of(path, cache_dir=tmp_path / "cache")
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(1, 1))

    assert digest_of(path, cache_dir=tmp_path / "cache") == expected(b"WEIGHTS") != first


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100])
def test_a_damaged_cache_only_costs_time(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"weights")
    digest_of(path, cache_dir=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(damage)

    assert digest_of(path, cache_dir=tmp_path / "cache") == expected(b"weights")


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"weights")

    assert digest_of(path, cache_dir=path / "no folder") == expected(b"weights")


def test_progress_ends_with_the_whole_and_a_stop_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"x" * (2 * PIECE + 5))
    told: list[tuple[int, int]] = []
    digest_of(path, cache_dir=tmp_path / "cache", progress=lambda done, size: told.append((done, size)))
    stop = threading.Event()
    stop.set()

    assert told == [(PIECE, 2 * PIECE + 5), (2 * PIECE, 2 * PIECE + 5), (2 * PIECE + 5, 2 * PIECE + 5)]
    with pytest.raises(Stopped):
        digest_of(path, cache_dir=tmp_path / "other", stop=stop)


def test_a_file_that_changes_meanwhile_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"x" * 10)

    with pytest.raises(ConfigurationError, match="changed while it was read"):
        digest_of(path, cache_dir=tmp_path / "cache", progress=lambda _done, _size: os.utime(path, ns=(1, 1)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        digest_of(tmp_path / "nowhere", cache_dir=tmp_path)


def test_a_split_model_is_digested_as_one_file(tmp_path: Path) -> None:
    data = os.urandom(PIECE + 100)
    parts = [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    for part, piece in zip(parts, (data[:10], data[10 : PIECE + 50], data[PIECE + 50 :]), strict=True):
        part.write_bytes(piece)

    assert digest_of(*parts, cache_dir=tmp_path / "cache") == expected(data)
    os.utime(parts[2], ns=(1, 1))
    parts[2].write_bytes(b"")
    assert digest_of(*parts, cache_dir=tmp_path / "cache") == expected(data[: PIECE + 50])


def test_the_cache_forgets_what_was_written_the_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "MAX_REMEMBERED", 2)
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(path.name.encode())
        digest_of(path, cache_dir=tmp_path / "cache")
        for entry in (tmp_path / "cache").iterdir():
            os.utime(entry, ns=(0, entry.stat().st_mtime_ns - 10**9))  # the clock of a file system may not tell them apart
    monkeypatch.setattr(digest, "_compute", lambda *_args: pytest.fail("read again"))

    assert len(list((tmp_path / "cache").iterdir())) == 2
    digest_of(paths[2], cache_dir=tmp_path / "cache")
    digest_of(paths[3], cache_dir=tmp_path / "cache")
