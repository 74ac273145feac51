"""Sets up this checkout's private environment, .venv, then hands over to meshnode. Runs on a bare Python: standard library only.

    bootstrap.py meshnode [ARGUMENT...]    set up what a node needs, then become `meshnode ARGUMENT...`
    bootstrap.py --tests                   set up what a node and the tests need

The environment is made in layers, in this order: the virtual environment, the pinned libraries, llama-cpp-python, this package,
the test tools. Each has a key, made from all that the layer depends on. The stamp inside .venv records under which key each layer
was installed, and a layer whose key stands there is skipped: a warm start reads a few small files. A lock on this folder lets
several commands start at once: the first sets up, the others wait and then find it done.

MESHNODE_NO_LLAMA=1 leaves out llama-cpp-python, and with it the need for a compiler: such a node serves no model and only asks.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, NoReturn

import llama_wheel
from setup_steps import ROOT, give_up, run_step, say

VENV = ROOT / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / "meshnode-setup.json"
REQUIREMENTS = ROOT / "scripts/requirements"
OWN_VARIABLES = ("MESHNODE_NO_LLAMA", "MESHNODE_CUDA", "MESHNODE_PYTHON")
"""Ours alone: the node, which looks at every MESHNODE_* variable, never sees them."""


class Layer(NamedTuple):
    name: str
    key: Any
    install: Callable[[], None]


class Need(NamedTuple):
    """Something that only the user can install."""

    what: str
    apt: str
    dnf: str
    macos: str


COMPILER = Need("a C++ compiler", "g++", "gcc-c++", "xcode-select --install")
VENV_MODULE = Need("Python's venv module", f"python3.{sys.version_info.minor}-venv", "python3", "brew install python")


def main() -> None:
    command, *arguments = sys.argv[1:]
    # As an exception, so that no build outlives us; the exec puts the default back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        set_up(dict(os.environ), with_tests=command == "--tests")
    except KeyboardInterrupt:
        give_up("set-up interrupted; the next call goes on with it")
    if command == "meshnode":
        become_meshnode(arguments)


def set_up(environment: Mapping[str, str], *, with_tests: bool) -> None:
    if pending(environment, with_tests):
        with llama_wheel.locked(ROOT / "scripts", "another process is setting up this checkout: waiting for it"):
            require_tools(environment, pending(environment, with_tests))
            # Asked anew for each layer: a new virtual environment takes the stamps of all later layers with it.
            while left := pending(environment, with_tests):
                left[0].install()
                STAMP.write_text(json.dumps({**stamps(), left[0].name: left[0].key}, indent=1))


def pending(environment: Mapping[str, str], with_tests: bool) -> list[Layer]:
    done = stamps()
    return [layer for layer in layers(environment, done, with_tests) if done.get(layer.name) != layer.key]


def stamps() -> dict[str, Any]:
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, ValueError):
        return {}


def layers(environment: Mapping[str, str], done: Mapping[str, Any], with_tests: bool) -> list[Layer]:
    venv = Layer("venv", [sys.implementation.cache_tag, str(ROOT)], lambda: make_venv(afresh="venv" in done))
    run = ("run.txt", "build.txt")
    libraries = Layer("libraries", _digest(*run), lambda: install_pins("Install the libraries", *run))
    package = Layer("package", _digest("../../pyproject.toml"), install_package)
    tools = Layer("tests", _digest("test.txt"), lambda: install_pins("Install the test tools", "test.txt"))
    llama = [] if environment.get("MESHNODE_NO_LLAMA") == "1" else [llama_layer(environment, done)]
    return [venv, libraries, *llama, package, *([tools] if with_tests else [])]


def llama_layer(environment: Mapping[str, str], done: Mapping[str, Any]) -> Layer:
    installed = llama_wheel.Build(**done["llama"]) if "llama" in done else None
    build = llama_wheel.wanted(environment, installed)
    return Layer("llama", asdict(build), lambda: install_llama(build, environment))


def require_tools(environment: Mapping[str, str], left: list[Layer]) -> None:
    """Says at once all that is missing, before the first minute of work."""
    names = {layer.name: layer for layer in left}
    needs = []
    if "venv" in names and not (importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")):
        needs.append(VENV_MODULE)
    if "llama" in names and not llama_wheel.has_compiler(environment):
        build = llama_wheel.Build(**names["llama"].key)
        needs += [] if llama_wheel.cached(build, environment) else [COMPILER]
    if needs:
        give_up("\n".join(_how_to_install(needs)))


def make_venv(*, afresh: bool) -> None:
    """One that was made for another Python or another place is made afresh; one made by hand is kept and completed."""
    if not afresh and not shutil.which(PYTHON):
        say(f"setting up {VENV}; the first time takes some minutes")
    base = getattr(sys, "_base_executable", sys.executable)  # we may run on the very environment that is to be cleared
    run_step("Make the virtual environment", [base, "-m", "venv", *(["--clear"] if afresh else []), VENV])


def install_pins(title: str, *names: str) -> None:
    files = [argument for name in names for argument in ("-r", REQUIREMENTS / name)]
    run_step(title, [PYTHON, "-m", "pip", "install", "--no-deps", "--require-hashes", *files])


def install_llama(build: llama_wheel.Build, environment: Mapping[str, str]) -> None:
    wheel = llama_wheel.make(build, PYTHON, environment)
    # By force, since a build with other options has the same version.
    run_step("Install llama-cpp-python", [PYTHON, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", wheel])


def install_package() -> None:
    run_step("Install meshnode", [PYTHON, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", ROOT])


def become_meshnode(arguments: list[str]) -> NoReturn:
    """Not a child process, so that signals and the terminal are meshnode's own."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    os.execve(VENV / "bin/meshnode", ["meshnode", *arguments], environment)


def _digest(*names: str) -> str:
    return hashlib.sha256(b"".join((REQUIREMENTS / name).read_bytes() for name in names)).hexdigest()


def _how_to_install(needs: list[Need]) -> list[str]:
    lines = [f"missing: {' and '.join(need.what for need in needs)}. Install, then run this again:"]
    if sys.platform == "darwin":
        lines += [f"    {need.macos}" for need in needs]
    elif shutil.which("dnf"):
        lines.append(f"    sudo dnf install {' '.join(need.dnf for need in needs)}")
    elif shutil.which("apt-get"):
        lines.append(f"    sudo apt install {' '.join(need.apt for need in needs)}")
    else:
        lines.append(f"    what Debian calls {' '.join(need.apt for need in needs)}, with this system's package manager")
    if COMPILER in needs:
        lines.append(
            "Or set MESHNODE_NO_LLAMA=1: a node without llama.cpp serves no model itself and asks others (`up --no-worker`)."
        )
    return lines


if __name__ == "__main__":
    main()
