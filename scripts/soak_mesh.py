"""Real nodes in network namespaces that lose packets, for a long time: nobody may be called down, and nothing may grow.

Run as root: sudo scripts/soak [--hours H] [--nodes N] [--loss P]. The exit code is 1 if a healthy node was down anywhere, ended,
had a bug, or was not routable everywhere when the losses were over.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent / "tests")]

import netlan  # noqa: E402 - beside this script, not installed
from lan.hosts import LanNode  # noqa: E402

JOIN_LIMIT_S = 120.0
HEAL_LIMIT_S = 60.0
LOOK_EVERY_S = 5.0
"""How often each node is asked. A suspicion that is over sooner is seen in the refutation that ended it, if it came that far."""
REPORT_EVERY_S = 60.0
SHARE_OF_RUN, WINDOW_S = 0.25, 60.0
"""CPU is measured over the first and the last minute, or quarter if that is shorter."""
COUNTED = {
    "silences (one node stops sending to another)": " node: unroutable: ",
    "links lost": " mesh.mesh: link to ",
    "refutations": " node: refuted: ",
    "false downs": " node: down: ",
    "bugs": "this is a bug",
}
MUST_BE_ZERO = ("false downs", "bugs")


@dataclass
class Seen:
    """What the nodes said when asked."""

    suspicions: set[tuple[str, str, float]] = field(default_factory=set)
    """(by whom, of whom, since the look at which it began)."""
    _open: dict[tuple[str, str], float] = field(default_factory=dict)

    def look(self, node: LanNode) -> None:
        suspects = {name for name, member in node.members().items() if member["state"] == "suspect"}
        for pair in [pair for pair in self._open if pair[0] == node.name and pair[1] not in suspects]:
            del self._open[pair]
        for suspect in suspects:
            since = self._open.setdefault((node.name, suspect), time.monotonic())
            self.suspicions.add((node.name, suspect, since))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=1 / 6, help="how long (default: ten minutes)")
    parser.add_argument("--nodes", type=int, default=20, help="(default: 20)")
    parser.add_argument("--loss", type=float, default=0.1, help="share of packets that every host loses (default: 0.1)")
    asked = parser.parse_args()
    if why := netlan.available():
        sys.exit(f"No LAN can be made: {why}. {netlan.INSTALL}")
    with meshed(asked.nodes) as nodes:
        return soak(nodes, seconds=asked.hours * 3600, loss=asked.loss)


@contextmanager
def meshed(size: int) -> Iterator[list[LanNode]]:
    """Nodes that have all joined by the address of the first; no losses yet."""
    with tempfile.TemporaryDirectory(prefix="meshnode-soak-") as directory, netlan.lan() as lan:
        first = LanNode(lan.host("n00"), Path(directory), "--no-mdns")
        peer = ("--no-mdns", "--peer", first.host.address)
        nodes = [first, *(LanNode(lan.host(f"n{number:02}"), Path(directory), *peer) for number in range(1, size))]
        if missing := unmet(nodes, JOIN_LIMIT_S):
            sys.exit(f"the mesh is not complete after {JOIN_LIMIT_S:.0f} s: {missing}")
        yield nodes


def unmet(nodes: list[LanNode], seconds: float) -> str:
    """Who cannot send to whom after so long, or nothing as soon as all can send to all."""
    end = time.monotonic() + seconds
    while True:
        lacking = {node.name: sum(not member["routable"] for member in node.members().values()) for node in nodes}
        lacking |= {node.name: len(nodes) for node in nodes if len(node.members()) < len(nodes)}
        if not any(lacking.values()):
            return ""
        if time.monotonic() > end:
            return ", ".join(f"{name} lacks {count}" for name, count in lacking.items() if count)
        time.sleep(0.5)


def soak(nodes: list[LanNode], *, seconds: float, loss: float) -> int:
    begun, seen = time.monotonic(), Seen()
    window = min(WINDOW_S, seconds * SHARE_OF_RUN)
    for node in nodes:
        node.host.drop_loss(loss)
    first = watch(nodes, seen, until=begun + window)
    watch(nodes, seen, until=begun + seconds - window)
    last = watch(nodes, seen, until=begun + seconds)
    for node in nodes:
        node.host.unblock()
    missing = unmet(nodes, HEAL_LIMIT_S)
    counts = counted(nodes)
    print(f"{len(nodes)} nodes, {loss:.0%} loss, {seconds / 60:.1f} minutes")
    show({"suspicions seen": len(seen.suspicions), **counts}, first, last)
    print(f"not complete after the losses: {missing}" if missing else "after the losses all send to all")
    for line in lines(nodes, [COUNTED[what] for what in MUST_BE_ZERO])[:20]:
        print(line)
    return int(bool(missing) or any(counts[what] for what in MUST_BE_ZERO))


def watch(nodes: list[LanNode], seen: Seen, *, until: float) -> list[tuple[float, float]]:
    """Ask one node after the other until then. For each node: the share of a core that it took, and its MiB at the end."""
    begun, spent = time.monotonic(), [cpu_s(node) for node in nodes]
    report_at = begun + REPORT_EVERY_S
    while (now := time.monotonic()) < until:
        for node in nodes:
            seen.look(node)
            time.sleep(LOOK_EVERY_S / len(nodes))
        if now >= report_at:
            report_at += REPORT_EVERY_S
            print(f"{until - now:.0f} s to go: {counted(nodes)}", file=sys.stderr, flush=True)
    lasted = max(time.monotonic() - begun, 0.001)
    return [((cpu_s(node) - before) / lasted, memory_mib(node)) for node, before in zip(nodes, spent, strict=True)]


def cpu_s(node: LanNode) -> float:
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(node: LanNode) -> float:
    return int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def counted(nodes: list[LanNode]) -> dict[str, int]:
    return {what: len(lines(nodes, [part])) for what, part in COUNTED.items()}


def lines(nodes: list[LanNode], parts: Iterable[str]) -> list[str]:
    """What the logs have with any of `parts`, each with the name of its node."""
    return [
        f"{node.name}: {line}" for node in nodes for line in node.printed().splitlines() if any(part in line for part in parts)
    ]


def show(counts: dict[str, int], first: list[tuple[float, float]], last: list[tuple[float, float]]) -> None:
    for what, count in counts.items():
        print(f"{what:<48}{count:>8}")
    print(f"\n{'per node':<32}{'mean':>8}{'worst':>8}")
    for when, figures in (("at the start", first), ("at the end", last)):
        for what, column in (
            ("CPU, % of a core", [100 * cpu for cpu, _ in figures]),
            ("memory, MiB", [mib for _, mib in figures]),
        ):
            print(f"{f'{what}, {when}':<32}{statistics.mean(column):>8.2f}{max(column):>8.2f}")


if __name__ == "__main__":
    sys.exit(main())
