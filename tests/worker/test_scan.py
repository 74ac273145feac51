import os
from pathlib import Path

import pytest

from meshnode.worker import scan as scanning
from meshnode.worker.scan import scan


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def labels(*folders: Path) -> list[str]:
    return [each.label for each in scan(folders).found]


def test_model_files_are_found_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.gguf", "maker/model/a.gguf", "readme.md", "c.gguf.part", ".hidden.gguf", ".cache/d.gguf"):
        write(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "gone")

    assert labels(tmp_path) == ["b", "maker/model/a"]


def test_a_circle_of_links_ends_and_a_file_is_found_once(tmp_path: Path) -> None:
    file = write(tmp_path / "sub/m.gguf")
    (tmp_path / "sub/circle").symlink_to(tmp_path)
    (tmp_path / "a-link.gguf").symlink_to(file)

    assert labels(tmp_path) == ["sub/m"]
    assert labels(tmp_path, tmp_path / "sub") == ["sub/m"]


def test_a_link_to_a_file_elsewhere_is_found_under_its_own_name(tmp_path: Path) -> None:
    """As in the cache of a hub, where files are called by their digests."""
    blob = write(tmp_path / "blobs/3176eb41")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m.gguf").symlink_to(blob)

    (found,) = scan([tmp_path / "models"]).found
    assert (found.path, found.label) == (tmp_path / "models/m.gguf", "m")
    assert found.stamps == ((1, blob.stat().st_mtime_ns, blob.stat().st_ino),)


def test_the_parts_of_a_split_model_are_one_find(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        write(tmp_path / f"m-0000{number}-of-00003.gguf")
    write(tmp_path / "n-00002-of-00002.gguf")

    first, second = scan([tmp_path]).found
    assert (first.path.name, first.label, len(first.stamps)) == ("m-00001-of-00003.gguf", "m", 3)
    assert (second.path.name, second.label) == ("n-00002-of-00002.gguf", "n")


def test_a_change_of_any_part_shows(tmp_path: Path) -> None:
    write(tmp_path / "m-00001-of-00002.gguf")
    last = write(tmp_path / "m-00002-of-00002.gguf")
    before = scan([tmp_path])
    last.write_text("longer")

    assert scan([tmp_path]) != before


def test_depth_and_number_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "/".join("12345678") / "deep.gguf")
    write(tmp_path / "/".join("123456789") / "deeper.gguf")
    shallow = labels(tmp_path)
    monkeypatch.setattr(scanning, "MAX_ENTRIES", 3)
    result = scan([tmp_path])

    assert shallow == ["1/2/3/4/5/6/7/8/deep"]
    assert result.found == ()
    assert result.troubles == (f"{tmp_path} holds more than 3 files: not all were looked at",)


def test_a_folder_that_is_gone_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    write(tmp_path / "here/m.gguf")
    result = scan([tmp_path / "gone", tmp_path / "here"])

    assert [each.label for each in result.found] == ["m"]
    assert result.troubles == (f"{tmp_path / 'gone'}: cannot be read: No such file or directory",)
