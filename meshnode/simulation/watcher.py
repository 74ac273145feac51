"""Sees every node at once: measures, and holds what they believe against what is (pure).

The invariants are those of the research note (gossip.md, section 9) that make sense without signatures: no node comes back that
is gone, nobody is routable without a link, having left is final, no verdict of down on a node that is well and in reach, at most
two changes of a routable verdict for each fault; and once all is quiet everybody has the same view, which is the true one.

Verdicts are timed when an engine makes them known (Notify); all members of a node are looked at once a second while it makes
anything known, and at the end.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from meshnode.gossip.effects import Notify
from meshnode.gossip.limits import MAX_RECORDS
from meshnode.names import NodeId
from meshnode.simulation import insight
from meshnode.simulation.faults import Advertise, Fault, Pause, Start, touches
from meshnode.simulation.process import Process
from meshnode.simulation.reach import Reach
from meshnode.simulation.timeline import SECOND
from meshnode.simulation.world import Life, World

GONE = ("down", "left")
MAX_FAILURES = 20


@dataclass
class Ending:
    """The end of a life, or the beginning of a pause, and who noticed when."""

    at: int
    life: Life
    host: int
    how: str
    unroutable: dict[int, int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)
    routed: dict[int, int] = field(default_factory=dict)
    """Which hosts could send to it, and the epochs of their processes."""
    witnesses: frozenset[int] = frozenset()
    """Those of them that still live at the end of the run."""
    replaced: frozenset[int] = frozenset()
    """And those of them that have met a later life."""


@dataclass
class Change:
    at: int
    node: NodeId
    seen: dict[int, int] = field(default_factory=dict)


class Watcher:
    """Attach it to a world before anything starts; tell it of each fault."""

    def __init__(self, world: World, *, transitions: int | None) -> None:
        self.world = world
        self.reach = Reach(world)
        self.failures: list[str] = []
        self.false_down: list[str] = []
        self.unwell_down = 0
        self.detours = 0
        """How often a node that was well and in reach became unroutable for another."""
        self.refuted = 0
        """How often a node heard that it was suspected, and was not gone."""
        self.endings: list[Ending] = []
        self.changes: list[Change] = []
        self.converged_at: int | None = None
        """When for the first time, with no start to come, all could send to all."""
        self.complete_at: int | None = None
        """Since when they can."""
        self.flips: Counter[tuple[int, NodeId]] = Counter()
        self.touched: Counter[int] = Counter()
        self.everywhere = 0
        """Faults that touch all."""
        self._transitions = transitions
        self._routable: dict[int, set[NodeId]] = defaultdict(set)
        self._buried: dict[int, dict[Life, int]] = defaultdict(dict)
        """What each observer knows to be gone, of the lives that are, and in which incarnation."""
        self._left: dict[int, set[Life]] = defaultdict(set)
        self._over: set[Life] = set()
        self._active: set[int] = set()
        self._dirty = True
        self._changed_at = 0
        world.on_notice, world.on_end, world.on_start = self.noticed, self.ended, self.started
        world.timeline.after(SECOND // 10, self._look_for_completeness)
        world.timeline.after(SECOND, self._look)

    def fail(self, what: str) -> None:
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(f"{self.world.timeline.seconds:.3f} s: {what}")

    # What happens

    def started(self, process: Process) -> None:
        """A new process knows nothing."""
        for memory in (self._routable, self._buried, self._left):
            memory.pop(process.host, None)
        self._touch()

    def ended(self, process: Process, how: str) -> None:
        self._end(process, how)
        self._over.add(Life(process.node, process.epoch))

    def fault(self, fault: Fault) -> None:
        """It has just been applied."""
        hosts = touches(fault)
        if hosts is None:
            self.everywhere += 1
        else:
            self.touched.update(hosts)
        process = self.world.hosts[fault.host].process if isinstance(fault, Pause | Advertise) else None
        if isinstance(fault, Pause) and process is not None and process.is_alive:
            self._end(process, "paused")
        if isinstance(fault, Advertise) and process is not None and process.is_healthy:
            self.changes.append(Change(self.world.timeline.now, process.node))
        self.reach.changed()
        self._touch()

    def noticed(self, process: Process, notice: Notify) -> None:
        """An engine has made something known."""
        now, host, node = self.world.timeline.now, process.host, notice.node
        self._active.add(host)
        if notice.what == "routable":
            self._routable[host].add(node)
            self._flip(process, node)
        elif notice.what == "unroutable":
            self._routable[host].discard(node)
            self._flip(process, node)
            self.detours += self._is_well(process, node)
        elif notice.what in GONE:
            self._judge(process, node, notice)
        elif notice.what == "refuted":
            self.refuted += 1
        for change in reversed(self.changes):
            if change.node == node and notice.what == "changed":
                change.seen.setdefault(host, now)
                break
        for ending in reversed(self.endings):
            if ending.life.node != node:
                continue
            if notice.what == "unroutable" and self.reach.well(host):
                ending.unroutable.setdefault(host, now)
            elif notice.what in GONE:
                ending.gone.setdefault(host, now)
            break

    def _end(self, process: Process, how: str) -> None:
        if any(other is not process and other.node == process.node for other in self.world.living()):
            return  # a copy of another's identity: for the others that one lives on
        routed = {
            other.host: other.epoch
            for other in self.world.living()
            if self.reach.well(other.host) and process.node in self._routable[other.host]
        }
        life = Life(process.node, process.epoch)
        self.endings.append(Ending(self.world.timeline.now, life, process.host, how, routed=routed))

    def _flip(self, process: Process, node: NodeId) -> None:
        self.flips[process.host, node] += 1
        self._touch()

    def _touch(self) -> None:
        self._dirty, self._changed_at = True, self.world.timeline.now

    def _is_well(self, process: Process, node: NodeId) -> bool:
        """Whether `node` lives, has been well for a while, and could be linked with `process`."""
        other = next((found for found in self.world.living() if found.node == node), None)
        if other is None or other.is_leaving:
            return False
        return self.reach.well(other.host) and self.reach.well(process.host) and self.reach.linkable(process.host, other.host)

    def _judge(self, process: Process, node: NodeId, notice: Notify) -> None:
        record = insight.record(process, node)
        other = next((found for found in self.world.living() if found.node == node), None)
        if record is None or other is None or other.epoch != record.epoch or other.is_leaving:
            return
        if not self.reach.well(other.host):
            self.unwell_down += 1
        elif self.reach.together(process.host, other.host):
            self.false_down.append(f"{self.world.timeline.seconds:.3f} s: {process.name} says {notice.what}: {notice.text}")

    # What is looked at

    def _look_for_completeness(self) -> None:
        self.world.timeline.after(SECOND // 10, self._look_for_completeness)
        if not self._dirty:
            return
        self._dirty = False
        if not self.is_complete():
            self.complete_at = None
        elif self.complete_at is None or self.complete_at < self._changed_at:
            self.complete_at = self._changed_at
            if self.converged_at is None:
                self.converged_at = self._changed_at

    def is_complete(self) -> bool:
        """Whether everybody who is well can send to everybody whom he can be linked with, and to nobody who is gone."""
        well = [process for process in self.world.living() if process.is_healthy]
        here = {process.node for process in well}
        return all(
            self._routable[one.host] & here == {other.node for other in well if self._should_link(one, other)}
            and not any(node not in here for node in self._routable[one.host])
            for one in well
        )

    def _should_link(self, one: Process, other: Process) -> bool:
        return one is not other and one.node != other.node and self.reach.linkable(one.host, other.host)

    def _look(self) -> None:
        self.world.timeline.after(SECOND, self._look)
        active, self._active = self._active, set()
        for process in self.world.living():
            if process.host in active and not process.processor.is_stopped:
                self._inspect(process)

    def _inspect(self, process: Process) -> None:
        """All that one node believes."""
        buried, left = self._buried[process.host], self._left[process.host]
        for member in process.engine.members(now=process.now):
            if member.id == process.node:
                continue
            life, state = Life(member.id, member.epoch), member.state.value
            if member.routable and process.engine.link_of(member.id) is None:
                self.fail(f"{process.name} would send to {member.name} without a link to it")
            record = insight.record(process, member.id)
            incarnation = record.incarnation if record else 0
            if state not in GONE and incarnation <= buried.get(life, -1):
                self.fail(f"{process.name} has {member.name} as {state} again, a life that it knew to be over")
            if life in left and state != "left":
                self.fail(f"{process.name} has {member.name} as {state}, which had left")
            if state in GONE and life in self._over:
                buried[life] = incarnation
            if state == "left":
                left.add(life)

    def finish(self, *, quiet: bool, equal: bool) -> None:
        """The last look, when nothing is expected to change any more; `equal`: all records are to be the same."""
        living = [process for process in self.world.living() if process.is_healthy]
        for process in living:
            self._inspect(process)
            self._check_size(process)
        if quiet:
            for process in living:
                self._check_view(process, living)
            self._check_claims(living)
        if quiet and equal:
            self._compare(living)
        self._check_flips()
        for ending in self.endings:
            self._find_witnesses(ending, living)

    def _find_witnesses(self, ending: Ending, living: list[Process]) -> None:
        same = [process for process in living if ending.routed.get(process.host) == process.epoch]
        records = {process.host: insight.record(process, ending.life.node) for process in same}
        ending.witnesses = frozenset(records)
        ending.replaced = frozenset(host for host, record in records.items() if record and record.epoch != ending.life.epoch)

    def _compare(self, living: list[Process]) -> None:
        hashes: dict[int, dict[bytes, str]] = defaultdict(dict)
        for process in living:
            island = min(other.host for other in living if self.reach.together(process.host, other.host, lately=False))
            hashes[island].setdefault(insight.state_hash(process), process.name)
        for names in hashes.values():
            if len(names) > 1:
                self.fail(f"different records at the end, for example at {' and '.join(list(names.values())[:3])}")

    def _check_view(self, process: Process, living: list[Process]) -> None:
        members = {member.id: member for member in process.engine.members(now=process.now)}
        for other in living:
            member = members.get(other.node)
            if other is process or not self.reach.together(process.host, other.host, lately=False):
                continue
            if member is None:
                self.fail(f"{process.name} does not know {other.name}")
            elif member.state.value not in (("alive",) if self._should_link(process, other) else ("alive", "suspect")):
                self.fail(f"{process.name} has {other.name} as {member.state.value}, which is well: {member.reason}")
            elif self._should_link(process, other) and not member.routable:
                self.fail(f"{process.name} would not send to {other.name}, which is well: {member.reason}")
        here = {other.node for other in self.world.living()}
        for member in members.values():
            if member.id not in here and (member.routable or member.state.value not in GONE):
                self.fail(f"{process.name} has {member.name} as {member.state.value}, which is gone: {member.reason}")

    def _check_size(self, process: Process) -> None:
        count = sum(1 for _ in insight.records(process))
        lives = sum(host.lives for host in self.world.hosts)
        if count > min(lives, MAX_RECORDS):
            self.fail(f"{process.name} keeps {count} records of {lives} lives")

    def _check_claims(self, living: list[Process]) -> None:
        by_node = {process.node: process for process in living}
        for process in living:
            for end in process.links.values():
                peer = by_node.get(end.proven) if end.proven else None
                if peer is None or not end.socket.is_idle:
                    continue
                if excess := insight.claims_too_much(process, peer):
                    self.fail(excess)

    def _check_flips(self) -> None:
        if self._transitions is None:
            return
        hosts: dict[NodeId, set[int]] = defaultdict(set)
        for host in self.world.hosts:
            hosts[host.node].add(host.number)
        for (observer, node), count in self.flips.items():
            faults = self.everywhere + sum(self.touched[host] for host in hosts[node] | {observer})
            if count > self._transitions * max(1, faults):
                name = min(hosts[node], default=-1)
                self.fail(f"n{observer:02} changed its verdict on host {name} {count} times, for {faults} faults")


def is_first_start(fault: Fault) -> bool:
    return isinstance(fault, Start) and fault.seeds is not None
