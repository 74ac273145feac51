"""The wheel of llama-cpp-python: built once for this machine and kept in the user's cache, where every checkout finds it.

Only its source is published, and its default build takes some five times as long as the part that we use. So the options here
leave out the multimodal library and the C++ `common` library. The code is compiled for the processor at hand, which is why the
cache key holds the processor's flags: a home folder may be shared by unlike machines.

What is built is a `Build`. Options come from the environment (CMAKE_ARGS, MESHNODE_CUDA) and are remembered with the installed
build: one that is not named keeps its value, so that a later call from a plainer shell does not build anew without it.
"""

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from setup_steps import ROOT, give_up, run_step, say

PINS = ROOT / "scripts/requirements/llama.txt"
TOOLS = ROOT / "scripts/requirements/llama-build.txt"
QUICK = ROOT / "scripts/llama-quick.cmake"
CUDA_DEVICES = ("dev/nvidia[0-9]*", "usr/lib/wsl/lib/libcuda.so.1")
COMPILER_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX")
"""Part of the cache key, but not of a `Build`: changing them is no reason to replace a wheel that works."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What makes one build differ from another."""

    base: str
    """Digest of the pinned version, our own options, the Python and the machine."""
    cmake_args: str
    cuda: bool

    def key(self, environment: Mapping[str, str]) -> str:
        compiler = [environment.get(name, "") for name in COMPILER_VARIABLES]
        return hashlib.sha256(json.dumps([asdict(self), compiler]).encode()).hexdigest()[:24]


def wanted(environment: Mapping[str, str], installed: Build | None) -> Build:
    """The build that this machine should have, given what it has."""
    before = installed or Build(base="", cmake_args="", cuda=False)
    switch = environment.get("MESHNODE_CUDA", "")
    if switch not in ("", "0", "1"):
        give_up(f"MESHNODE_CUDA is {switch!r}: 1 builds for CUDA, 0 for the processor alone, unset decides by what is found")
    found = before.cuda or (has_nvcc(environment) and has_cuda_device())
    return Build(
        base=_base(),
        cmake_args=environment.get("CMAKE_ARGS", before.cmake_args),
        cuda=sys.platform != "darwin" and (switch == "1" if switch else found),
    )


def has_nvcc(environment: Mapping[str, str]) -> bool:
    return shutil.which(environment.get("CUDACXX", "nvcc"), path=environment.get("PATH")) is not None


def has_cuda_device(filesystem: Path = Path("/")) -> bool:
    """nvcc alone proves nothing: build machines have it without a device, and building for CUDA takes very long."""
    return any(True for pattern in CUDA_DEVICES for _ in filesystem.glob(pattern))


def has_compiler(environment: Mapping[str, str]) -> bool:
    if sys.platform == "darwin":  # /usr/bin/c++ is always there, and without the developer tools only opens a dialogue
        return subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode == 0
    named = shlex.split(environment.get("CXX", ""))[:1]
    return any(shutil.which(name, path=environment.get("PATH")) for name in named or ("c++", "g++", "clang++"))


def cached(build: Build, environment: Mapping[str, str]) -> Path | None:
    """The wheel of `build`, if some checkout of this user has made it."""
    return next(_folder(build, environment).glob("*.whl"), None)


def make(build: Build, python: Path, environment: Mapping[str, str]) -> Path:
    """The wheel of `build`, built if need be; another process that is building the same is waited for."""
    folder = _folder(build, environment)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), "another process is building llama.cpp: waiting for it"):
        return cached(build, environment) or _compile(build, python, environment, folder)


@contextmanager
def locked(path: Path, notice: str) -> Iterator[None]:
    """Holds a lock that the kernel gives back should this process die; says `notice` when it has to wait."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(notice)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(build: Build, python: Path, environment: Mapping[str, str], folder: Path) -> Path:
    if build.cuda and not has_nvcc(environment):
        give_up("llama.cpp is to be built for CUDA, but nvcc is not on PATH: put CUDA's bin folder there, or set MESHNODE_CUDA=0")
    say(f"llama.cpp is built {_target(build, environment)}; once, then every checkout on this machine uses it")
    pip: list[str | Path] = [python, "-m", "pip"]
    run_step("Install the build tools", [*pip, "install", "--no-deps", "--require-hashes", "-r", TOOLS])
    options = [f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={shlex.quote(str(QUICK))}", *_options(build), build.cmake_args]
    path = os.pathsep.join([str(python.parent), environment.get("PATH", os.defpath)])
    variables = {**environment, "CMAKE_ARGS": " ".join(options), "CMAKE_GENERATOR": "Ninja", "PATH": path}
    with TemporaryDirectory(dir=folder.parent, prefix="building-") as temporary:
        wheels = Path(temporary) / "wheel"
        # pip's own cache knows nothing of our options, and would hand out a wheel that was built with others.
        command = [*pip, "wheel", "-v", "--no-cache-dir", "--no-deps", "--no-build-isolation", "--require-hashes", "-w", wheels]
        run_step("Build llama.cpp", [*command, "-r", PINS], variables)
        wheels.rename(folder)  # only a finished wheel appears under the key
    return next(folder.glob("*.whl"))


def _options(build: Build) -> list[str]:
    metal = ["-DGGML_METAL=ON"] if sys.platform == "darwin" else []
    return ["-DLLAVA_BUILD=OFF", *metal, *(["-DGGML_CUDA=ON"] if build.cuda else [])]


def _target(build: Build, environment: Mapping[str, str]) -> str:
    """For whom llama.cpp is built, and why not for the GPU where somebody may wonder."""
    if sys.platform == "darwin":
        return "with Metal"
    if build.cuda:
        return "for CUDA, since nvcc is here, which takes long (MESHNODE_CUDA=0 builds for the processor alone)"
    match has_nvcc(environment), has_cuda_device():
        case True, False:
            return "for the processor alone: nvcc is here, but no NVIDIA device (MESHNODE_CUDA=1 builds for CUDA)"
        case False, True:
            return "for the processor alone: an NVIDIA device is here, but nvcc, of CUDA's toolkit, is not on PATH"
    return "for the processor alone"


def _base() -> str:
    parts = [
        PINS.read_text(),
        QUICK.read_text(),
        *_options(Build(base="", cmake_args="", cuda=False)),
        f"{platform.python_implementation()} {platform.python_version_tuple()[:2]}",
        f"{sys.platform} {platform.machine()} {platform.libc_ver()}",
        _processor(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _processor() -> str:
    """The instruction sets of this processor, in whatever words the system has for them."""
    if sys.platform == "darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True).stdout
    with open("/proc/cpuinfo") as file:
        return next((line for line in file if line.lower().startswith(("flags", "features"))), platform.processor())


def _folder(build: Build, environment: Mapping[str, str]) -> Path:
    home = Path.home()
    default = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(environment.get("XDG_CACHE_HOME") or default) / "meshnode/wheels" / build.key(environment)
