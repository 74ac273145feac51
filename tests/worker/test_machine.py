import mmap
import os
from pathlib import Path

import pytest

from meshnode.worker import machine


def test_there_is_at_least_one_core_and_no_more_than_there_are() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)])
def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int | None) -> None:
    monkeypatch.setattr(machine, "_allowed", lambda: set(range(8)))
    monkeypatch.setattr(machine, "_siblings", str)
    monkeypatch.setattr(machine, "_CPU_MAX", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(limit)

    assert machine.cores() == (cores or 8)


def test_two_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_allowed", lambda: set(range(8)))
    monkeypatch.setattr(machine, "_siblings", lambda cpu: str(cpu // 2))
    monkeypatch.setattr(machine, "_CPU_MAX", tmp_path / "none")

    assert machine.cores() == 4


def test_free_memory_is_read_where_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", meminfo)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "none")
    assert machine.memory_available() == 1_024_000
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    files = {"memory.max": "900000", "memory.current": "500000", "memory.stat": "anon 1\ninactive_file 7\nactive_file 2\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.memory_available() == 400_009
    (tmp_path / "memory.max").write_text("max")
    assert machine.memory_available() == 1_024_000
    meminfo.unlink()
    assert machine.memory_available() is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_what_a_process_has_in_memory_is_read_while_it_lives() -> None:
    with mmap.mmap(-1, 64_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
        before = machine.resident(os.getpid())
        ballast.write(b"x" * len(ballast))
        after = machine.resident(os.getpid())

    assert before is not None
    assert after is not None
    assert after - before > 50_000_000
    assert machine.resident(2**22 + 1) is None


def test_sizes_are_told_as_people_say_them() -> None:
    assert [machine.human(size) for size in (7, 1200, 34_000_000, 5_600_000_000, 7 * 10**13)] == [
        "7 B", "1.2 kB", "34 MB", "5.6 GB", "70.0 TB",
    ]  # fmt: skip
