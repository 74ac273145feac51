"""The vectors of `protocol/vectors`, as the tests here read them."""

import json
from pathlib import Path
from typing import Any

PROTOCOL = Path(__file__).parents[2] / "protocol"
Vector = dict[str, Any]


def load(name: str) -> dict[str, list[Vector]]:
    """A file of vectors, by section."""
    content: dict[str, list[Vector]] = json.loads((PROTOCOL / "vectors" / f"{name}.json").read_text())
    return content


def frame_files() -> dict[str, dict[str, Any]]:
    """The files that are about one kind of frame, by the name of its type."""
    files = [json.loads(path.read_text()) for path in sorted((PROTOCOL / "vectors").glob("*.json"))]
    return {file["type"]: file for file in files if "type" in file}


def readable(value: object) -> object:
    """`value` as a vector writes it: byte strings in hex, tuples as arrays."""
    match value:
        case bytes():
            return value.hex()
        case list() | tuple():
            return [readable(item) for item in value]
        case dict():
            return {key: readable(item) for key, item in value.items()}
        case _:
            return value
