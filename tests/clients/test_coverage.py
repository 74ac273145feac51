"""The table of what the clients rely on names tests that exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_every_test_that_the_table_names_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", (HERE / "COVERAGE.md").read_text())

    assert len(named) > 70
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^(?:async )?def {name}\b" if name else "", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_test_here_is_in_the_table() -> None:
    table = (HERE / "COVERAGE.md").read_text()
    tests = [
        f"tests/clients/{path.name}::{name}"
        for path in HERE.glob("test_*.py")
        if path != Path(__file__)
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    ]

    assert [test for test in tests if f"{test} |" not in table] == []
