"""llama-server, built from the source that llama-cpp-python is distributed with: the same llama.cpp that our worker runs.

It is kept in the user's cache, beside the wheel. Needs a C++ compiler; takes some ten minutes on two cores.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
PINS = SCRIPTS / "requirements/llama.txt"
TOOLS = SCRIPTS / "requirements/llama-build.txt"
SERVER_NEEDS = ("uvicorn", "fastapi", "pydantic-settings", "sse-starlette", "starlette-context", "PyYAML", "jinja2", "diskcache")
"""Of llama-cpp-python's server, as its extra `server` names them."""
OFF = ("TESTS", "EXAMPLES", "APP", "UI")


def cache() -> Path:
    """Where benchmarks keep what takes long to make."""
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "meshnode/bench"


def llama_server() -> Path:
    """The program; built if it is not there. Raises CalledProcessError where a step fails, after its output was shown."""
    folder = cache() / f"llama-server-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:16]}"
    program = folder / "build/bin/llama-server"
    if program.exists():
        return program
    print(f"llama-server is built in {folder}, once; it takes some ten minutes", file=sys.stderr)
    tools = _tools(folder / "tools")
    _fetch(folder, tools)
    (source,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    options = [f"-DLLAMA_BUILD_{part}=OFF" for part in OFF] + ["-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF"]
    build = folder / "build"
    _run(tools, "cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *options)
    _run(tools, "cmake", "--build", build, "--target", "llama-server", "--parallel", str(os.cpu_count() or 1))
    return program


def python_with_server() -> Path:
    """A Python that can run `-m llama_cpp.server`: ours, with what that server needs beside it."""
    folder = cache() / "llama-cpp-server"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True)
        _run(folder / "bin", "pip", "install", "-q", *SERVER_NEEDS)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
        (folder / "done").touch()
    return folder / "bin/python"


def _tools(folder: Path) -> Path:
    """A virtual environment with cmake and ninja; its bin folder."""
    if not (folder / "bin/cmake").exists():
        venv.create(folder, with_pip=True)
        _run(folder / "bin", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", TOOLS)
    return folder / "bin"


def _fetch(folder: Path, tools: Path) -> None:
    source_only = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--require-hashes"]
    _run(tools, "pip", "download", "-q", *source_only, "-r", PINS, "-d", folder)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def _run(tools: Path, program: str, *arguments: str | Path) -> None:
    path = os.pathsep.join([str(tools), os.environ.get("PATH", os.defpath)])
    subprocess.run([tools / program, *arguments], check=True, env={**os.environ, "PATH": path}, stdout=sys.stderr)
