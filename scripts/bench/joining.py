"""What finding each other costs on a LAN of network namespaces: joining by mDNS, by address and by memory, and the idle mesh.

Run as root: sudo .venv/bin/python scripts/bench/joining.py [--rounds N] [--seconds S] [--json]
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent / "tests")]

import netlan  # noqa: E402 - beside this script, not installed
from lan.hosts import LanNode, token_of  # noqa: E402
from netlan import Lan  # noqa: E402

ADDRESSED = ("--no-mdns",)
_STAMP = re.compile(r"^\d+-\d+-\d+ (\d+):(\d+):(\d+)\.(\d+) ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="joins of each kind (default: 10)")
    parser.add_argument("--nodes", type=int, default=5, help="of the idle mesh (default: 5)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of idling (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if why := netlan.available():
        sys.exit(f"No LAN can be made: {why}")
    figures = {
        "join by mDNS": times(by_mdns, arguments.rounds),
        "join by address": times(by_address, arguments.rounds),
        "join by memory, without multicast": times(by_memory, arguments.rounds),
    }
    idle = idle_mesh(arguments.nodes, arguments.seconds)
    if arguments.json:
        print(json.dumps({"seconds": figures, "idle": idle}))
    else:
        show(figures, idle)
    return 0


def times(join: Callable[[Lan, Path], float], rounds: int) -> list[float]:
    """In seconds, sorted; each round on a LAN of its own."""
    found = []
    for _ in range(rounds):
        with netlan.lan() as lan, tempfile.TemporaryDirectory(prefix="meshnode-bench-") as directory:
            found.append(join(lan, Path(directory)))
    return sorted(found)


def by_mdns(lan: Lan, directory: Path) -> float:
    old = started(lan, "old", directory)
    wait(lambda: old.status()["search"]["mdns"]["state"] == "on")
    return joining(old, started(lan, "new", directory))


def by_address(lan: Lan, directory: Path) -> float:
    old = started(lan, "old", directory, *ADDRESSED)
    return joining(old, started(lan, "new", directory, *ADDRESSED, "--peer", old.host.address))


def by_memory(lan: Lan, directory: Path) -> float:
    old = started(lan, "old", directory, *ADDRESSED)
    new = started(lan, "new", directory, *ADDRESSED, "--peer", old.host.address)
    joining(old, new)
    wait((new.data_dir / "peers.json").exists)
    new.stop()
    Path(new.output.name).write_text("")
    Path(old.output.name).write_text("")
    return joining(old, started(lan, "new", directory, *ADDRESSED))


def started(lan: Lan, name: str, directory: Path, *flags: str) -> LanNode:
    token_of(directory)
    node = LanNode(lan.host(name), directory, *flags)
    assert node.run
    return node


def joining(old: LanNode, new: LanNode) -> float:
    """From when the new node's API is there until both nodes can send to each other, by the clocks of run file and logs."""
    up = float(new.run["started"])
    return max(0.0, max(routable_at(old, new.name), routable_at(new, old.name)) - up)


def routable_at(node: LanNode, other: str) -> float:
    """When `node` logged that it can send to `other`."""
    line = wait(
        lambda: next((line for line in log(node) if line.endswith(f"routable: {other}") and "unroutable" not in line), "")
    )
    found = _STAMP.match(line)
    assert found
    hours, minutes, seconds, milliseconds = map(int, found.groups())
    midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
    return midnight + hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def log(node: LanNode) -> list[str]:
    return Path(node.output.name).read_text().splitlines()


def wait(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    sys.exit("Waited too long; is the machine very busy?")


def idle_mesh(size: int, seconds: float) -> dict[str, float]:
    """Per node, the mean of all: share of a core in %, memory in MiB, bytes and packets sent a second (headers included)."""
    with netlan.lan() as lan, tempfile.TemporaryDirectory(prefix="meshnode-bench-") as directory:
        nodes = [started(lan, f"n{number}", Path(directory)) for number in range(size)]
        for node in nodes:
            wait(lambda node=node: sum(member["routable"] for member in node.members().values()) == size)  # type: ignore[misc]
        time.sleep(3.0)
        before = [sample(node) for node in nodes]
        time.sleep(seconds)
        after = [sample(node) for node in nodes]
    spent = [[late - early for early, late in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
    cpu, sent, packets = (statistics.mean(column) / seconds for column in list(zip(*spent, strict=True))[:3])
    memory = statistics.mean(row[3] for row in after)
    return {"nodes": size, "cpu_percent": 100 * cpu, "mib": memory, "bytes_per_s": sent, "packets_per_s": packets}


def sample(node: LanNode) -> tuple[float, float, float, float]:
    """CPU seconds, bytes and packets sent so far, and MiB in memory."""
    pid = node.process.pid
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    memory = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index] # always there
    line = next(line for line in node.host.run("cat", "/proc/net/dev").stdout.splitlines() if "eth0:" in line)
    counters = line.partition(":")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100, float(counters[8]), float(counters[9]), memory / 1024


def show(figures: dict[str, list[float]], idle: dict[str, float]) -> None:
    print(f"{'seconds':<36}{'median':>8}{'max':>8}{'rounds':>8}")
    for what, found in figures.items():
        print(f"{what:<36}{statistics.median(found):>8.3f}{found[-1]:>8.3f}{len(found):>8}")
    print(
        f"\nIdle mesh of {idle['nodes']:.0f}, per node: {idle['cpu_percent']:.2f} % of a core, {idle['mib']:.0f} MiB, "
        f"{idle['bytes_per_s']:.0f} bytes and {idle['packets_per_s']:.1f} packets sent a second"
    )


if __name__ == "__main__":
    sys.exit(main())
