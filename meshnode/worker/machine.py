"""What this machine has for a worker: processor cores and free memory, or too little of it."""

import os
from pathlib import Path

from meshnode.errors import ConfigurationError

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MEMINFO = Path("/proc/meminfo")


class MemoryShort(ConfigurationError):
    """A model does not fit. Not its file's fault: worth another try when memory is free."""


def _allowed() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    """Whole cores that a container's limit leaves us: more threads than that spin against each other."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def cores() -> int:
    """Physical cores that we may use: two threads of one core only slow each other down."""
    physical = len({_siblings(cpu) for cpu in _allowed()})
    return max(1, min(physical, _quota() or physical))


def memory_available() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def human(size: int) -> str:
    """`size` bytes for people: 1.2 MB, 34 GB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
