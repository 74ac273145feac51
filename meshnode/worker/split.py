"""A model that is split over several files, as llama.cpp's gguf-split writes them: `NAME-00001-of-00003.gguf` (pure).

llama.cpp is given the first file and finds the others by their names, in the same folder; so do we. Each file says how many there
are (`split.count`) and which it is (`split.no`, from 0), and only then is a name of that form more than a name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_FORM = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)


@dataclass(frozen=True)
class Part:
    """What a file's name says: part `number`, from 1, of `count` parts of the model `stem`."""

    stem: str
    number: int
    count: int


def part_of(path: Path) -> Part | None:
    """None for a name of another form."""
    found = _FORM.fullmatch(path.name)
    return Part(found["stem"], int(found["number"]), int(found["count"])) if found else None


def parts(path: Path, count: int) -> tuple[Path, ...]:
    """All files of the model whose first one is `path`; `path` alone where `count` is 1."""
    if count == 1:
        return (path,)
    part = part_of(path)
    assert part is not None, "its facts were read, and then its name was looked at"
    return tuple(path.with_name(f"{part.stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))


def stem(path: Path) -> str:
    """The file's name without what says which part it is."""
    part = part_of(path)
    return part.stem if part else path.stem
