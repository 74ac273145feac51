"""The import contracts of pyproject.toml hold, and they bite: each is tried on a copy of the package with one bad line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "meshnode", tmp_path / "meshnode", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_hold(copy: Path) -> None:
    result = lint(copy)

    assert result.returncode == 0, result.stdout


def test_a_pure_module_that_reaches_a_socket_is_refused(copy: Path) -> None:
    (copy / "meshnode/names.py").write_text("import socket\n")

    result = lint(copy)

    assert result.returncode == 1
    assert "meshnode.wire is not allowed to import socket" in result.stdout


def test_an_upward_import_is_refused(copy: Path) -> None:
    (copy / "meshnode/wire/upward.py").write_text("import meshnode.dispatch\n")

    result = lint(copy)

    assert result.returncode == 1
    assert "meshnode.wire is not allowed to import meshnode.dispatch" in result.stdout


def test_a_module_without_a_layer_is_refused(copy: Path) -> None:
    (copy / "meshnode/stray.py").write_text("")

    result = lint(copy)

    assert result.returncode == 1
    assert "stray" in result.stdout
