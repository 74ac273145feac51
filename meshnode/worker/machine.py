"""What this machine has for a worker: processor cores and free memory, or too little of it."""

import os
from pathlib import Path

from meshnode.errors import ConfigurationError

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MEMINFO = Path("/proc/meminfo")
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
TOLD_EVERY_S = 10.0
"""Design D10: slow facts change at most once in ten seconds."""


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
    """Bytes that can be had without swapping, in our container if we are in one; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            allowed = _left_of_container()
            return available if allowed is None else min(available, allowed)
    return None


def _left_of_container() -> int | None:
    """What a container's limit leaves; None where there is none. Cached files are given up before anybody is killed."""
    try:
        limit, current = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - current + int(stat["inactive_file"]) + int(stat["active_file"]))
    except (OSError, ValueError, KeyError):
        return None


def resident(pid: int) -> int | None:
    """Bytes of a process's own in memory, mapped files left out; None where the system does not say, or it is gone."""
    try:
        _, pages, shared, *_ = map(int, (_PROC / str(pid) / "statm").read_text().split())
    except (OSError, ValueError):
        return None
    return (pages - shared) * os.sysconf("SC_PAGE_SIZE")


def memory_total() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


class Memory:
    """This machine's memory as others are told of it: rounded, and rarely, since each change travels to every node."""

    def __init__(self) -> None:
        self._figures: tuple[int, int] | None = None
        self._at = float("-inf")

    def figures(self, now: float) -> tuple[int, int] | None:
        """Total and available bytes, the latter in sixteenths of the former; None where they are not known."""
        if now - self._at >= TOLD_EVERY_S:
            self._at = now
            total, available = memory_total(), memory_available()
            step = max(1, (total or 0) // 16)
            self._figures = None if total is None or available is None else (total, available // step * step)
        return self._figures


def human(size: int) -> str:
    """`size` bytes for people: 1.2 MB, 34 GB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
