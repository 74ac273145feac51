"""Membership beside Serf: the same events on a mesh of Serf agents (LAN profile) and on one of our nodes, in one run.

Run as root: sudo .venv/bin/python scripts/bench/membership.py [--nodes N] [--rounds N] [--only serf|meshnode] [--json]
Debian has what it needs: apt install serf iproute2 iptables.

Each round has a LAN of network namespaces of its own, Serf and we in turns. Nobody is polled: a line of an agent's log is stamped
when it arrives here, for both alike. What is compared, where the two differ:
- Serf has one verdict, *failed*. We have two: *not routable* (each node's own, at once) and *down* (agreed). The first, too, is
  compared with Serf's failed, since that is when a user of Serf stops sending to a node.
- Joining is over for Serf when all list all, for us when each can also send to each over a link that is proven and encrypted.
- A change of a record is a new tag for Serf, a new address for us; both count from the line in the changing node's own log.
- Serf encrypts here (-encrypt) as we always do. Both are told whom to join over an API connection that is already open.
"""

import argparse
import base64
import json
import math
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent / "tests")]

import netlan  # noqa: E402 - beside this script, not installed
from lan.hosts import token_of  # noqa: E402
from netlan import Host, Lan  # noqa: E402

PAUSES_S = (4.0, 6.0, 8.0, 12.0)
CHANGES = 5
LIMIT_S = 60.0
"""What takes longer is reported as never."""
QUIET_S = 3.0
"""Between two events."""
AFTERMATH_S = 4.0
"""How long a verdict about a node that was paused may come after it runs again."""
IDLE_S = 20.0
STAMP_S = 0.05
"""A line may be stamped so much later than one that another agent wrote after it."""
Figures = dict[str, list[float]]
"""By row of the table: one figure a round, or several."""


class Program(Protocol):
    """How to drive one of the two. `patterns` finds the name of the node that a line of the log is about."""

    name: str
    patterns: Mapping[str, str]
    leave_by: signal.Signals

    def command(self, host: Host, directory: Path) -> list[str]: ...
    def request(self, agent: "Agent", seed: str) -> tuple[int, bytes]:
        """Port of its API, and what to send there to join through `seed`; OSError as long as it is not ready."""

    def change(self, agent: "Agent", number: int) -> None:
        """Begin a change of the agent's record."""

    def event(self, agent: "Agent", number: int) -> bool:
        """Send an event to all, if there is such a thing."""


class Agent:
    """One process on a host. `sees` holds the nodes that it can send to, as its log told so far; `events` what else that told:
    (when, kind, about whom)."""

    def __init__(self, program: Program, host: Host, directory: Path) -> None:
        self.name = host.name
        self.host = host
        self.directory = directory / self.name
        self.sees: set[str] = set()
        self.events: list[tuple[float, str, str]] = []
        self.lines: list[str] = []
        self._patterns = {kind: re.compile(pattern) for kind, pattern in program.patterns.items()}
        command = program.command(host, directory)
        self.process = host.popen(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, bufsize=1
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def when(self, kind: str, node: str, *, since: float) -> float:
        """When it first told that of `node`; infinity if it did not."""
        return next((at for at, what, whom in list(self.events) if (what, whom) == (kind, node) and at >= since), math.inf)

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            at = time.monotonic()
            self.lines.append(line)
            for kind, pattern in self._patterns.items():
                if found := pattern.search(line):
                    self._note(at, kind, found[1])

    def _note(self, at: float, kind: str, node: str) -> None:
        if kind == "up":
            self.sees.add(node)
        elif kind in {"unroutable", "down", "left"}:
            self.sees.discard(node)
        self.events.append((at, kind, node))


class Serf:
    name = "Serf"
    leave_by = signal.SIGINT
    patterns: Mapping[str, str] = {
        "up": r"serf: EventMemberJoin: (\S+)",
        "suspect": r"memberlist: (?:Marking|Suspect) (\S+) (?:as|has) failed",
        "unroutable": r"serf: EventMemberFailed: (\S+)",
        "down": r"serf: EventMemberFailed: (\S+)",
        "left": r"serf: EventMemberLeave: (\S+)",
        "changed": r"serf: EventMemberUpdate: (\S+)",
        "changing": r"serf: EventMemberUpdate: (\S+)",
        "event": r"agent: Received event: user-event: (\S+)",
        "refuted": r"memberlist: Refuting a (?:suspect|dead) message \(from: (\S+)\)",
    }
    _PORT = 7373

    def __init__(self) -> None:
        self._key = base64.b64encode(secrets.token_bytes(16)).decode()

    def command(self, host: Host, directory: Path) -> list[str]:
        return ["serf", "agent", f"-node={host.name}", f"-bind={host.address}", f"-encrypt={self._key}", "-log-level=info"]

    def request(self, agent: Agent, seed: str) -> tuple[int, bytes]:
        return self._PORT, _rpc("join", {"Existing": [seed], "Replay": False})

    def change(self, agent: Agent, number: int) -> None:
        self._send(agent, _rpc("tags", {"Tags": {"number": str(number)}, "DeleteTags": []}))

    def event(self, agent: Agent, number: int) -> bool:
        self._send(agent, _rpc("event", {"Name": f"event-{number}", "Payload": b"", "Coalesce": False}))
        return True

    def _send(self, agent: Agent, request: bytes) -> None:
        with agent.host.connect(self._PORT) as connection:
            connection.sendall(request)
            connection.recv(4096)


class Meshnode:
    name = "meshnode"
    leave_by = signal.SIGTERM
    patterns: Mapping[str, str] = {
        "up": r" node: routable: (\S+)$",
        "unroutable": r" node: unroutable: (\S+): ",
        "down": r" node: down: (\S+): ",
        "left": r" node: left: (\S+) left the mesh",
        "changed": r" node: changed: record of (\S+), version",
        "changing": r"(other) nodes are told to reach this one at",
        "refuted": r" node: refuted: (this) node was suspected",
    }

    def command(self, host: Host, directory: Path) -> list[str]:
        data = directory / host.name
        (data / "run.json").unlink(missing_ok=True)  # of one that was killed
        return [
            sys.executable, "-m", "meshnode", "up", "--name", host.name, "--no-worker", "--no-mdns", "--log-level", "debug",
            "--data-dir", str(data), "--token-file", str(token_of(directory)),
        ]  # fmt: skip

    def request(self, agent: Agent, seed: str) -> tuple[int, bytes]:
        run = json.loads((agent.directory / "run.json").read_text())
        body = json.dumps({"peer": seed})
        head = f"Host: {run['api']}\r\nAuthorization: Bearer {run['secret']}\r\nContent-Length: {len(body)}"
        return int(run["api"].rpartition(":")[2]), f"POST /mesh/v1/join HTTP/1.1\r\n{head}\r\n\r\n{body}".encode()

    def change(self, agent: Agent, number: int) -> None:
        address = f"10.78.{number}.{agent.host.address.rpartition('.')[2]}/24"
        agent.host.run("ip", "address", "add", address, "dev", "eth0")

    def event(self, agent: Agent, number: int) -> bool:
        return False


class Round:
    """All events, once each, on one LAN."""

    def __init__(self, program: Program, lan: Lan, directory: Path, size: int) -> None:
        self.program = program
        self.figures: Figures = defaultdict(list)
        self._directory = directory
        self._hosts = [lan.host(f"n{number:02}") for number in range(size)]
        self._names = {host.name for host in self._hosts}
        self._agents: dict[str, Agent] = {}

    def run(self) -> Figures:
        """Nobody is a victim twice, and never the node through which all have joined."""
        victims = iter([host.name for host in self._hosts[1:]])
        self._join()
        self._idle()
        self._change(next(victims))
        self._die(next(victims), "kill -9", lambda agent: agent.process.kill())
        self._die(next(victims), "power loss", lambda agent: agent.host.cut())
        paused = next(victims)
        for seconds in PAUSES_S:
            self._pause(paused, seconds)
        self._leave(next(victims))
        return self.figures

    # Events

    def _join(self) -> None:
        for host in self._hosts:
            self._agents[host.name] = Agent(self.program, host, self._directory)
        seed, *others = [self._agents[host.name] for host in self._hosts]
        requests = [self._until_ready(agent, seed.host.address) for agent in (seed, *others)][1:]
        time.sleep(QUIET_S)
        connections = [(agent.host.connect(port), request) for agent, (port, request) in zip(others, requests, strict=True)]
        begun = time.monotonic()
        for connection, request in connections:
            connection.sendall(request)
        self._settle()
        last = max(at for agent in self._agents.values() for at, kind, _ in agent.events if kind == "up")
        self._add("join of all others by one address: all see all (s)", last - begun)
        for connection, _ in connections:
            connection.close()

    def _idle(self) -> None:
        time.sleep(5.0)
        before = [_sample(agent) for agent in self._agents.values()]
        time.sleep(IDLE_S)
        after = [_sample(agent) for agent in self._agents.values()]
        spent = [[late - early for early, late in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
        cpu, sent, packets, _ = (statistics.mean(column) / IDLE_S for column in zip(*spent, strict=True))
        self._add("idle: share of a core (%)", 100 * cpu)
        self._add("idle: memory, resident (MiB)", statistics.mean(row[3] for row in after))
        self._add("idle: bytes sent per node and second", sent)
        self._add("idle: packets sent per node and second", packets)

    def _change(self, victim: str) -> None:
        agent = self._agents[victim]
        itself = victim if self.program.name == "Serf" else "other"
        for number in range(CHANGES):
            begun = time.monotonic()
            self.program.change(agent, number)
            told = self._wait(lambda: [agent.when("changing", itself, since=begun)], LIMIT_S)[0]  # noqa: B023 - called at once
            self._spread("a change of a record at all others (s)", "changed", victim, since=told)
            time.sleep(1.0)
            begun = time.monotonic()
            if self.program.event(agent, number):
                name = f"event-{number}"
                told = self._wait(lambda: [agent.when("event", name, since=begun)], LIMIT_S)[0]  # noqa: B023
                self._spread("a user event at all others, Serf's only (s)", "event", name, since=told, but=victim)
                time.sleep(1.0)

    def _die(self, victim: str, how: str, kill: Callable[[Agent], None]) -> None:
        self._settle()
        agent, others = self._agents[victim], self._others(victim)
        begun = time.monotonic()
        kill(agent)
        down = self._wait(lambda: [other.when("down", victim, since=begun) for other in others], LIMIT_S)
        unroutable = [other.when("unroutable", victim, since=begun) for other in others]
        suspect = [other.when("suspect", victim, since=begun) for other in others]
        self._add(f"{how}: first notice (s)", min(suspect + unroutable) - begun)
        self._add(f"{how}: last stops sending to it (s)", max(unroutable) - begun)
        self._add(f"{how}: first calls it down (s)", min(down) - begun)
        self._add(f"{how}: down everywhere (s)", max(down) - begun)
        agent.process.kill()
        agent.process.wait()
        agent.host.mend()
        self._rejoin(agent.host, how)

    def _rejoin(self, host: Host, how: str) -> None:
        """The same node again, from the start of its process: that of an interpreter costs more than all the rest."""
        begun = time.monotonic()
        agent = self._agents[host.name] = Agent(self.program, host, self._directory)
        port, request = self._until_ready(agent, self._hosts[0].address)
        with host.connect(port) as connection:
            connection.sendall(request)
            self._settle()
        ups = [other.when("up", host.name, since=begun) for other in self._others(host.name)]
        self._add(f"{how}, then started again: all see it (s)", max(ups) - begun)

    def _pause(self, victim: str, seconds: float) -> None:
        self._settle()
        agent, others = self._agents[victim], self._others(victim)
        begun = time.monotonic()
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        again = time.monotonic()
        agent.process.send_signal(signal.SIGCONT)
        time.sleep(AFTERMATH_S)
        lost = [other for other in others if other.when("unroutable", victim, since=begun) < math.inf]
        what = f"pause of {seconds:.0f} s"
        self._settle()
        self._add(f"{what}: nodes that stop sending to it", len(lost))
        self._add(f"{what}: nodes that call it down", self._count("down", victim, others, since=begun))
        self._add(f"{what}: others that it calls down", sum(kind == "down" and at >= again for at, kind, _ in agent.events))
        self._add(f"{what}: refutations by it", sum(kind == "refuted" and at >= again for at, kind, _ in agent.events))
        backs = [other.when("up", victim, since=again) for other in lost]
        self._add(f"{what}: all send to it again (s)", max(backs, default=again) - again)

    def _leave(self, victim: str) -> None:
        self._settle()
        begun = time.monotonic()
        self._agents[victim].process.send_signal(self.program.leave_by)
        self._spread("leave: known to all (s)", "left", victim, since=begun)

    # How it is done

    def _others(self, victim: str) -> list[Agent]:
        return [agent for name, agent in self._agents.items() if name != victim]

    def _add(self, row: str, figure: float) -> None:
        self.figures[row].append(figure)

    def _count(self, kind: str, victim: str, agents: Iterable[Agent], *, since: float) -> int:
        return sum(agent.when(kind, victim, since=since) < math.inf for agent in agents)

    def _spread(self, row: str, kind: str, node: str, *, since: float, but: str = "") -> None:
        others = self._others(but or node)
        found = self._wait(lambda: [agent.when(kind, node, since=since - STAMP_S) for agent in others], 20.0)
        self._add(row, max(0.0, max(found) - since))

    def _wait(self, times: Callable[[], list[float]], seconds: float) -> list[float]:
        """Until none of `times` is infinite any more, or for so long."""
        end = time.monotonic() + seconds
        while max(found := times()) == math.inf and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _settle(self) -> None:
        """Until everybody sees everybody, by what their logs told, and then a little."""
        end = time.monotonic() + 2 * LIMIT_S
        while missing := [f"{name} {sorted(lacks)}" for name, agent in self._agents.items() if (lacks := self._lacks(agent))]:
            if time.monotonic() > end:
                sys.exit(f"{self.program.name}: after {2 * LIMIT_S:.0f} s not everybody sees everybody: {'; '.join(missing[:5])}")
            time.sleep(0.05)
        time.sleep(QUIET_S)

    def _lacks(self, agent: Agent) -> set[str]:
        return self._names - agent.sees - {agent.name}

    def _until_ready(self, agent: Agent, seed: str) -> tuple[int, bytes]:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            try:
                port, request = self.program.request(agent, seed)
                agent.host.connect(port).close()
            except (OSError, json.JSONDecodeError):
                time.sleep(0.05)
            else:
                return port, request
        sys.exit(f"{agent.name} does not start:\n{''.join(agent.lines[-20:])}")


def _rpc(command: str, body: dict[str, object]) -> bytes:
    """Serf's RPC: a header and a body in MessagePack each; the handshake comes first."""
    parts = ({"Command": "handshake", "Seq": 0}, {"Version": 1}, {"Command": command, "Seq": 1}, body)
    return b"".join(map(msgspec.msgpack.encode, parts))


def _sample(agent: Agent) -> tuple[float, float, float, float]:
    """CPU seconds, bytes and packets sent so far, and MiB in memory."""
    process = Path("/proc", str(agent.process.pid))
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    memory = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    line = next(line for line in (process / "net/dev").read_text().splitlines() if "eth0:" in line)
    counters = line.partition(":")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), float(counters[8]), float(counters[9]), memory


def measure(programs: list[Program], *, rounds: int, size: int) -> dict[str, Figures]:
    found: dict[str, Figures] = {program.name: defaultdict(list) for program in programs}
    for number in range(rounds):
        for program in programs:
            print(f"round {number + 1} of {rounds}: {program.name}", file=sys.stderr, flush=True)
            with netlan.lan() as lan, tempfile.TemporaryDirectory(prefix="meshnode-bench-") as directory:
                for row, figures in Round(program, lan, Path(directory), size).run().items():
                    found[program.name][row] += figures
    return found


def show(found: dict[str, Figures]) -> None:
    """Median and worst; the ratio is Serf's median by ours."""
    rows = list(dict.fromkeys(row for figures in found.values() for row in figures))
    print(f"{'':<58}" + "".join(f"{name:>10}{'worst':>9}" for name in found) + f"{'ratio':>9}")
    for row in rows:
        medians = [statistics.median(figures[row]) if row in figures else math.nan for figures in found.values()]
        worst = [max(figures[row]) if row in figures else math.nan for figures in found.values()]
        cells = "".join(f"{_cell(median):>10}{_cell(most):>9}" for median, most in zip(medians, worst, strict=True))
        print(f"{row:<58}{cells}{'' if ': nodes that ' in row else _ratio(medians):>9}")


def _cell(figure: float) -> str:
    return "-" if math.isnan(figure) else "never" if math.isinf(figure) else f"{figure:.3f}" if figure < 10 else f"{figure:.1f}"


def _ratio(medians: list[float]) -> str:
    known = len(medians) == 2 and all(map(math.isfinite, medians)) and medians[1]
    return f"{medians[0] / medians[1]:.2f}" if known else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=20, help="of each mesh, at least 6 (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="each of them has every event once (default: 3)")
    parser.add_argument("--only", choices=["serf", "meshnode"], help="measure one of the two")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON; infinity: not within a minute")
    arguments = parser.parse_args()
    if why := netlan.available():
        sys.exit(f"No LAN can be made: {why}. {netlan.INSTALL}")
    if arguments.only != "meshnode" and not shutil.which("serf"):
        sys.exit("There is no serf here. Debian, Ubuntu: sudo apt install serf. Without it: --only meshnode")
    both: list[Program] = [Serf(), Meshnode()]
    programs = [program for program in both if arguments.only in (None, program.name.lower())]
    found = measure(programs, rounds=arguments.rounds, size=arguments.nodes)
    if arguments.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
