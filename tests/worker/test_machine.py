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
    assert machine.memory_available() == 1_024_000
    meminfo.unlink()
    assert machine.memory_available() is None


def test_sizes_are_told_as_people_say_them() -> None:
    assert [machine.human(size) for size in (7, 1200, 34_000_000, 5_600_000_000, 7 * 10**13)] == [
        "7 B", "1.2 kB", "34 MB", "5.6 GB", "70.0 TB",
    ]  # fmt: skip
