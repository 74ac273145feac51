"""What a node knows of itself and its mesh, as one report: a table for people, JSON for programs (pure).

The JSON form is an interface: fields are added, never renamed, and `schema` is raised when that is not enough.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from meshnode.gossip.member import Bridged, Member, Model, State
from meshnode.names import NodeId, printable, short
from meshnode.search import Search, neighbours, solitude
from meshnode.wire.messages import ModelState

SCHEMA = 1
ALONE_S = 5.0
"""mDNS takes three seconds at most: who is alone after five wants to know why."""
DOWN_RED_S = 3600.0
_GONE = {State.DOWN: 1, State.LEFT: 2}
REFUSAL_SHOWN_S = 600.0
"""A refusal older than ten minutes is history, not health: a guess."""


class Mesh(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """The fingerprint: equal on all nodes of one mesh."""
    nodes: int
    """Members that are neither down nor left, this node included."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    version: str
    api: str
    mesh: tuple[str, ...]
    pid: int
    uptime_s: float
    rekeyed: str = ""
    """Why this node took a new identity, if that was not long ago."""


class ModelLine(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    digest: str
    state: str
    aliases: tuple[str, ...] = ()
    size: int = 0
    """Of the file, in bytes; 0: not known, as the next one."""
    context_length: int = 0
    origin: str = ""
    """The remote that it comes from; empty: the member's own."""
    cost: str = ""


class RemoteLine(msgspec.Struct, frozen=True, kw_only=True):
    """A remote service that the member bridges."""

    name: str
    kind: str
    service: str
    """Equal at members that bridge the same."""
    state: str
    reason: str
    models: int
    left_out: tuple[tuple[str, str], ...]
    """What it has and the member does not offer: (model or service, why)."""
    cost: str
    spill_over: bool
    insecure: bool
    requests: int
    tokens: int
    errors: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    active: int
    slots: int
    queued: int
    tokens_per_s: float


class MemberLine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    state: str
    since_s: float | None
    """For how long it has been down, or has left; else None."""
    routable: bool
    draining: bool
    reason: str
    last_seen_s: float | None
    addr: str
    addrs: tuple[str, ...]
    """All that it tells; `addr` is the one in use, or the first."""
    rtt_ms: float | None
    version: str
    epoch: int
    """Of its process's life: higher at each start."""
    memory_total: int
    """Bytes of the machine's; 0: it does not say."""
    memory_available: int
    models: tuple[ModelLine, ...]
    load: Load
    remotes: tuple[RemoteLine, ...] = ()


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """An own worker, which may have failed before any record could tell of its model; or a file that is no model to work with."""

    name: str
    state: str
    """`failed`; `unusable` for a file or a folder."""
    reason: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A link that was refused, by us or by the other side, `age_s` ago."""

    addr: str
    reason: str
    age_s: float
    count: int


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is, after it took the token that was there."""

    mesh: str
    node: str


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """Whether this node takes nothing new, and how many requests it has under way."""

    draining: bool
    running: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    mesh: Mesh
    node: Node
    members: tuple[MemberLine, ...]
    """This node first, then by name; those that are down and those that left last."""
    search: Search
    """How this node looks for others."""
    health: tuple[str, ...]
    """What is not as it should be and what to do; empty when all is well."""


def build(
    *,
    node: Node,
    mesh_id: str,
    me: NodeId,
    members: Sequence[Member],
    search: Search,
    workers: Iterable[Worker],
    refusals: Iterable[Refusal],
    now: float,
) -> Report:
    """The report at `now` (the engine's clock, in seconds)."""
    members = sorted(members, key=lambda member: (member.id != me, _GONE.get(member.state, 0), member.name, member.id))
    lines = tuple(_member_line(member, me, now) for member in members)
    present = [member for member in members if member.state not in {State.LEFT, State.DOWN}]
    missing = [member for member in members if member.state is State.DOWN]
    return Report(
        mesh=Mesh(id=mesh_id, nodes=len(present)),
        node=node,
        members=lines,
        search=search,
        health=(
            *([_rekeyed_health(node.rekeyed)] if node.rekeyed else []),
            *_worker_health(workers),
            *(line for member in present if member.id != me for line in _member_health(member, node.version)),
            *(line for member in missing for line in _down_health(member, now)),
            *_refusal_health(refusals, known={member.addr for member in present}),
        ),
    )


def is_degraded(report: Report) -> bool:
    """Something needs a person (design D25): every line of `health` does; being alone does not."""
    return bool(report.health)


def render(report: Report) -> str:
    """The table for people, one line a member; why nobody else is there; then a line of health for each thing that is wrong.

    `report` may come from another process: whatever it says, it cannot write to the terminal.
    """
    node = report.node
    heading = f"{node.name} ({node.id[:8]})  mesh {report.mesh.id}  API http://{node.api}  up {age(node.uptime_s)}"
    table = columns([_COLUMNS, *(_row(member, node.id) for member in report.members)])
    health = [printable(f"Health: {line}", _LINE_LIMIT) for line in report.health] or ["Health: good"]
    return "\n".join([printable(heading, _LINE_LIMIT), "", table, "", *_remotes(report), *_surroundings(report.search), *health])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as a table. Whatever is in them, it cannot write to the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(printable(line, _LINE_LIMIT) for line in lines)


_LINE_LIMIT = 4000
_COLUMNS = ("NODE", "STATE", "ADDR", "RTT", "VERSION", "MODELS", "ACTIVE/SLOTS", "QUEUE", "TOK/S", "MEM", "SEEN")


def _remotes(report: Report) -> list[str]:
    """One line for all: `meshnode remotes` has a table of them."""
    shown = [
        f"{remote.name} at {member.name} {remote.state}" + " (insecure)" * remote.insecure
        for member in report.members
        if member.state not in {State.LEFT, State.DOWN}
        for remote in member.remotes
    ]
    return [printable(f"Remotes: {', '.join(shown)}", _LINE_LIMIT), ""] if shown else []


def _surroundings(search: Search) -> list[str]:
    """Who is alone wants to know why; a moment after the start nobody is alone yet."""
    lines = solitude(search) if search.alone_s is not None and search.alone_s >= ALONE_S else list(neighbours(search))
    return [*lines, ""] if lines else []


def _member_line(member: Member, me: NodeId, now: float) -> MemberLine:
    return MemberLine(
        id=member.id.hex(),
        name=printable(member.name, 128),
        state=member.state.value,
        since_s=None if member.since is None else round(max(0.0, now - member.since), 1),
        routable=member.routable,
        draining=member.draining,
        reason=printable(member.reason),
        last_seen_s=0.0 if member.id == me else None if member.last_seen is None else round(max(0.0, now - member.last_seen), 1),
        addr=printable(member.addr, 128),
        addrs=tuple(printable(addr, 128) for addr in member.addrs),
        rtt_ms=None if member.rtt_ms is None else round(member.rtt_ms, 2),
        version=printable(member.version, 64),
        epoch=member.epoch,
        memory_total=member.memory[0],
        memory_available=member.memory[1],
        models=_models(member),
        load=_load(member.load),
        remotes=tuple(map(_remote_line, member.remotes)),
    )


def _remote_line(remote: Bridged) -> RemoteLine:
    return RemoteLine(
        name=printable(remote.name, 128),
        kind=printable(remote.kind, 32),
        service=printable(remote.service, 32),
        state=printable(remote.state, 32),
        reason=printable(remote.reason),
        models=remote.models,
        left_out=tuple((printable(what, 128), printable(why)) for what, why in remote.left_out),
        cost=printable(remote.cost, 32),
        spill_over=remote.spill_over,
        insecure=remote.insecure,
        requests=remote.requests,
        tokens=remote.tokens,
        errors=remote.errors,
    )


def _models(member: Member) -> tuple[ModelLine, ...]:
    """Those of the record, and those that only the heartbeat knows yet because they are still being loaded."""
    states = {(load.name, load.digest): load.state for load in member.load}
    names = {model.name for model in member.models}
    recorded = [_model_line(model, states.get((model.name, model.digest), "ready")) for model in member.models]
    others = [
        ModelLine(name=printable(load.name, 128), digest=load.digest.hex(), state=printable(load.state, 128))
        for load in member.load
        if load.name not in names
    ]
    return (*recorded, *others)


def _model_line(model: Model, state: str) -> ModelLine:
    return ModelLine(
        name=printable(model.name, 128),
        digest=model.digest.hex(),
        state=printable(state, 128),
        aliases=tuple(printable(alias, 128) for alias in model.aliases),
        size=model.size,
        context_length=model.context_length,
        origin=printable(model.origin, 128),
        cost=printable(model.cost, 32),
    )


def _load(states: Iterable[ModelState]) -> Load:
    states = tuple(states)
    return Load(
        active=sum(state.active for state in states),
        slots=sum(state.slots for state in states),
        queued=sum(state.queued for state in states),
        tokens_per_s=round(sum(state.tokens_per_s for state in states), 1),
    )


def _worker_health(workers: Iterable[Worker]) -> list[str]:
    failed = [
        f"the worker for {worker.name} failed: {printable(worker.reason).rstrip('.')}. "
        "It starts again by itself, or when its file changes; the log says more."
        for worker in workers
        if worker.state == "failed"
    ]
    return failed + [
        f"{printable(worker.reason).rstrip('.')}. It is looked at again when it changes."
        for worker in workers
        if worker.state == "unusable"
    ]


def _rekeyed_health(reason: str) -> str:
    return f"this node took a new identity: {printable(reason)}. Whoever pinned requests to its old id must use the new one."


def _member_health(member: Member, own_version: str) -> list[str]:
    """Of another member that did not leave. A mixed mesh works, but nobody should run one without knowing (design D25)."""
    name, version = printable(member.name, 128) or short(member.id), printable(member.version, 64)
    lines = []
    if not member.routable and not member.draining:
        reach = f" and that {printable(member.addr, 128)} can be reached from here" if member.addr else ""
        what = "suspect" if member.state is State.SUSPECT else "not routable"
        lines.append(f"{name} is {what}: {printable(member.reason)}. Check that it runs{reach}.")
    if version and version != own_version and "/" not in version:  # `name/number`: another program, which has its own numbers
        lines.append(f"{name} runs meshnode {version}, this node {own_version}. Update the older one.")
    return lines


def _down_health(member: Member, now: float) -> list[str]:
    """A laptop that has been asleep for a day is not red (design D25)."""
    if member.since is None or now - member.since >= DOWN_RED_S:
        return []
    name = printable(member.name, 128) or short(member.id)
    return [f"{name} is down since {age(now - member.since)}: {printable(member.reason)}. Start it again, if it should be here."]


def _refusal_health(refusals: Iterable[Refusal], *, known: Collection[str]) -> list[str]:
    """Not for addresses of members: their own lines say why they are not routable."""
    return [
        f"{printable(refusal.addr, 128)}: {printable(refusal.reason)} ({_times(refusal.count)}, last {age(refusal.age_s)} ago). "
        "Check that address, and that both ends have one token (meshnode token)."
        for refusal in refusals
        if refusal.age_s < REFUSAL_SHOWN_S and refusal.addr not in known
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _row(member: MemberLine, own_id: str) -> tuple[str, ...]:
    own = member.id == own_id
    plain = member.routable or own or member.state != State.ALIVE
    state = member.state if plain else f"{member.state}, {'draining' if member.draining else 'not routable'}"
    models = ",".join(model.name if model.state == "ready" else f"{model.name}({model.state})" for model in member.models)
    return (
        f"{member.name}*" if own else member.name,
        state,
        member.addr or "-",
        "-" if member.rtt_ms is None else f"{member.rtt_ms:.1f} ms",
        member.version or "-",
        models or "-",
        f"{member.load.active}/{member.load.slots}",
        str(member.load.queued),
        f"{member.load.tokens_per_s:.0f}",
        _memory(member),
        "now" if own else "never" if member.last_seen_s is None else age(member.last_seen_s),
    )


def _memory(member: MemberLine) -> str:
    """Free of all, as `9.8/31 GB`."""
    if not member.memory_total:
        return "-"
    free, total = member.memory_available / 1e9, member.memory_total / 1e9
    return f"{free:.0f}/{total:.0f} GB" if total >= 10 else f"{free:.1f}/{total:.1f} GB"


def age(seconds: float) -> str:
    """As exact as people want it: 3.4 s, 2 m, 5 h, 3 d, each full unit counted."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    size, unit = next(((size, unit) for size, unit in ((86400, "d"), (3600, "h")) if seconds >= size), (60, "m"))
    return f"{max(seconds, 60.0) // size:.0f} {unit}"
