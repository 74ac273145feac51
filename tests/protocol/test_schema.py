"""The generated schema and the specification keep up with the types."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from meshnode.wire.messages import Frame
from protocol.vectors import PROTOCOL, frame_files

ROOT = PROTOCOL.parent
SCRIPT = ROOT / "scripts" / "gen-protocol"
NAMES = {"StreamProgress": "PROGRESS", "StreamChunk": "CHUNK", "StreamEnd": "END", "StreamError": "ERROR"}
"""In the specification; the other frames are called as their types."""


def gen_protocol(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, text=True, timeout=60)


def test_the_schema_and_the_vectors_are_current() -> None:
    done = gen_protocol(SCRIPT, "--check")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def copied_script(tmp_path: Path) -> Path:
    """The script in a tree of its own, where it may write."""
    for name in ("scripts/gen-protocol", "scripts/protocol_schema.py", "protocol/schema.json", "protocol/vectors/cancel.json"):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / name).read_text())
    (tmp_path / "meshnode").symlink_to(ROOT / "meshnode")
    return tmp_path / "scripts" / "gen-protocol"


def test_a_stale_schema_is_told_by_name_and_written_anew(copied_script: Path) -> None:
    schema = copied_script.parents[1] / "protocol" / "schema.json"
    schema.write_text("{}\n")

    before = gen_protocol(copied_script, "--check")
    gen_protocol(copied_script)

    assert before.returncode == 1
    assert before.stderr == "protocol/schema.json is not what the types in meshnode/wire say: run scripts/gen-protocol\n"
    assert schema.read_text() == (PROTOCOL / "schema.json").read_text()


def test_a_vector_without_bytes_gets_them_and_the_others_keep_theirs(copied_script: Path) -> None:
    path = copied_script.parents[1] / "protocol" / "vectors" / "cancel.json"
    original = json.loads(path.read_text())
    original["valid"].append({"name": "another stream", "value": [22, 300]})
    path.write_text(json.dumps(original))

    gen_protocol(copied_script)

    *others, last = json.loads(path.read_text())["valid"]
    assert others == original["valid"][:-1]
    assert last == {"name": "another stream", "hex": "9216cd012c", "value": [22, 300]}


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads((PROTOCOL / "schema.json").read_text()))


def test_the_schema_refuses_what_is_out_of_bounds() -> None:
    schema = Draft202012Validator(json.loads((PROTOCOL / "schema.json").read_text()))

    wrong: list[Any] = [
        [22],
        [22, -1],
        [22, "3"],
        [63, 1],
        [5, "00" * 511],
        [6, "00" * 8, [["00" * 15, 1, 0, 1]]],
        [17, 1, "xy"],
        {},
    ]
    right: list[Any] = [[22, 3], [22, 3, {"later": 1}], [64], [127, {}], [5, "00" * 512]]

    assert [frame for frame in wrong if schema.is_valid(frame)] == []
    assert [frame for frame in right if not schema.is_valid(frame)] == []


@pytest.mark.parametrize("frame", get_args(Frame), ids=lambda frame: frame.__name__)
def test_the_specification_has_a_section_for_each_frame_that_names_its_fields_and_a_vector_file(frame: type[Frame]) -> None:
    name = NAMES.get(frame.__name__, frame.__name__.upper())
    text = (PROTOCOL / "SPEC.md").read_text()
    section = re.search(rf"^### 7\.\d+ {name} \({frame.__struct_config__.tag}\)$(.*?)^##", text, re.MULTILINE | re.DOTALL)

    assert section
    assert [field for field in frame.__struct_fields__ if field not in section[1]] == []
    assert frame.__name__ in frame_files()
