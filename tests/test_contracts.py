"""The import contracts of pyproject.toml hold, and they bite: each is tried on a copy of the package with one bad line."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
FORBIDDEN = next(contract["forbidden_modules"] for contract in CONTRACTS if contract["type"] == "forbidden")
KNOWS_FOREIGN_ERRORS = {"meshnode.mesh.reasons"}
"""Pure, but tells the errors of sockets, TLS and trio apart by their types."""


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


def test_a_module_that_calls_itself_pure_is_pure() -> None:
    """Beyond the packages that the contract names: a docstring's first paragraph with `(pure)` is a promise."""
    graph = grimp.build_graph("meshnode", include_external_packages=True, cache_dir=None)
    pure = [name for name in modules() if "(pure" in introduction(name)]

    assert "meshnode.wire.codec" in pure
    chains = [graph.find_shortest_chain(name, other) for name in pure for other in FORBIDDEN if other in graph.modules]
    assert [chain for chain in chains if chain and chain[0] not in KNOWS_FOREIGN_ERRORS] == []


def modules() -> list[str]:
    paths = (ROOT / "meshnode").rglob("*.py")
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__init__.py"]


def introduction(module: str) -> str:
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
