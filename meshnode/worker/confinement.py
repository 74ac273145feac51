"""What a process of ours gives up before it touches what strangers made (security rules 16 and 17). Linux gives up the most."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import meshnode

_ALLOWED = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})
_ALLOWED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "OMP_")
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def environment(of: Mapping[str, str]) -> dict[str, str]:
    """What a child may know of our environment: what it needs to compute, never a MESHNODE_ setting, which may be a secret.

    GGML_NO_BACKTRACE keeps ggml from starting a debugger when it aborts, which takes seconds.
    """
    kept = {key: value for key, value in of.items() if key in _ALLOWED or key.startswith(_ALLOWED_PREFIXES)}
    kept["GGML_NO_BACKTRACE"] = "1"
    root = Path(meshnode.__file__).parent.parent
    if root.name not in (
        "site-packages",
        "dist-packages",
    ):  # there it is found anyway, and must not come before the standard library
        kept["PYTHONPATH"] = str(root)
    return kept


def command(module: str, *args: str) -> list[str]:
    """A fresh interpreter for `module`. -P: a file in the working directory must not pass for a module."""
    return [sys.executable, "-P", "-m", module, *args]


def confine(*, parent: int, address_space: int | None = None) -> None:
    """No core dumps, no new privileges, no signal from the terminal, and no life after the process `parent`.

    The kernel ends us with the *thread* that started us, so that must be one that lives on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    if address_space:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("our parent is gone")  # before it could be told to take us along
