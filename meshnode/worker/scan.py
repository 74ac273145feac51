"""Model files in the folders that the operator named, found by their names alone (blocking: use a thread).

What is hidden is left out. Links are followed, to files and to folders, but no folder is entered and no file is taken twice, so
that a circle ends; of a file and a link to it the file counts. Depth and number are bounded: who names `/` by mistake gets an
answer all the same. The parts of a split model are one find.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from meshnode.worker import split

MAX_DEPTH = 8
"""Folders below the one that was named. Published layouts have at most five."""
MAX_ENTRIES = 100_000
"""Directory entries looked at in one scan: some tenths of a second."""

Stamp = tuple[int, int, int]


class Found(NamedTuple):
    """A model: its first file, where that is below the folder that was named, and how all its files look."""

    path: Path
    label: str
    """Path below the folder, without what says which part it is, and without `.gguf`."""
    stamps: tuple[Stamp, ...]
    """Size, time of the last change and inode of each file: changes when the model does."""


class Scan(NamedTuple):
    """All finds, in an order that depends on their labels alone, and what went wrong, for people."""

    found: tuple[Found, ...]
    troubles: tuple[str, ...]


class _File(NamedTuple):
    path: Path
    is_link: bool
    stamp: Stamp
    key: tuple[int, int]
    """Device and inode: the same for a file and a link to it."""


def scan(folders: Iterable[Path]) -> Scan:
    """Every GGUF file in `folders` and below. Never raises for what is on the disk."""
    walk = _Walk()
    files = [(folder, file) for folder in folders for file in walk.files(folder)]
    seen: dict[tuple[int, int], Path] = {}
    for _, file in sorted(files, key=lambda each: each[1].is_link):
        seen.setdefault(file.key, file.path)
    once = [(folder, file) for folder, file in files if seen[file.key] == file.path]
    found = [each for folder in folders for each in _models(folder, (file for at, file in once if at == folder))]
    return Scan(tuple(sorted(found, key=lambda each: (each.label.count("/"), each.label, each.path))), tuple(walk.troubles))


class _Walk:
    """What was seen already, over all folders."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        self._entered: set[tuple[int, int]] = set()
        self._left = MAX_ENTRIES

    def files(self, folder: Path) -> Iterator[_File]:
        pending = [(folder, 0)]
        while pending:
            here, depth = pending.pop()
            try:
                entries = self._enter(here)
            except OSError as error:
                if depth == 0:
                    self.troubles.append(f"{folder}: cannot be read: {error.strerror}")
                continue
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    self.troubles.append(f"{folder} holds more than {MAX_ENTRIES} files: not all were looked at")
                    return
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if depth < MAX_DEPTH:
                        pending.append((Path(entry.path), depth + 1))
                elif entry.name.endswith(".gguf") and (file := _file(entry)):
                    yield file

    def _enter(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in `folder`; nothing the second time."""
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in self._entered:
            return []
        self._entered.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as entries:
            return sorted(itertools.islice(entries, self._left + 1), key=lambda entry: entry.name)


def _file(entry: os.DirEntry[str]) -> _File | None:
    """None for pipes and the like, and for a link to nowhere."""
    try:
        stat = entry.stat()
    except OSError:
        return None
    if not entry.is_file():
        return None
    stamp = stat.st_size, stat.st_mtime_ns, stat.st_ino
    return _File(Path(entry.path), entry.is_symlink(), stamp, (stat.st_dev, stat.st_ino))


def _models(folder: Path, files: Iterable[_File]) -> Iterator[Found]:
    """Parts of one model together; of one whose first part is missing, the first that is there, which says so when it is read."""
    groups: dict[tuple[Path, str, int], list[_File]] = {}
    for file in files:
        part = split.part_of(file.path)
        key = (file.path.parent, part.stem if part else file.path.stem, part.count if part else 0)
        groups.setdefault(key, []).append(file)
    for (parent, stem, _), members in groups.items():
        members.sort()
        yield Found(members[0].path, (parent / stem).relative_to(folder).as_posix(), tuple(file.stamp for file in members))
