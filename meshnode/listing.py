"""Parts of the report as tables of their own: members with all that is known of them, and models with where they are (pure)."""

from collections.abc import Iterable, Sequence

import msgspec

from meshnode.names import printable
from meshnode.status import MemberLine, ModelLine, RemoteLine, Report, age, columns


class ModelPlace(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the mesh: equal weights are one, whatever their holders call them."""

    name: str
    aliases: tuple[str, ...]
    digest: str
    size: int
    """Of the file, in bytes; 0: not known."""
    context_length: int
    nodes: tuple[str, ...]
    """`node`, `node via remote`; `(state)` behind it where it cannot be asked for there now."""


class RemotePlace(msgspec.Struct, frozen=True, kw_only=True):
    """A remote service at the node that bridges it."""

    node: str
    remote: RemoteLine


def members(report: Report) -> str:
    """For people."""
    heading = ("NODE", "ID", "STATE", "ROUTABLE", "ADDRESSES", "VERSION", "EPOCH", "SEEN", "WHY NOT")
    return columns([heading, *(_member(member, report.node.id) for member in report.members)])


def models(report: Report) -> str:
    """For people."""
    rows = [("MODEL", "DIGEST", "SIZE", "CONTEXT", "NODES", "ALSO CALLED")]
    for place in places(report.members):
        size = _size(place.size) if place.size else "-"
        context = str(place.context_length) if place.context_length else "-"
        aliases = ", ".join(place.aliases) or "-"
        rows.append((place.name, place.digest[:8] or "-", size, context, ", ".join(place.nodes), aliases))
    return columns(rows) if len(rows) > 1 else "No node of this mesh has a model. To serve one: meshnode up --model FILE.gguf"


def remotes(report: Report) -> str:
    """For people: each remote of each node, then a line for whatever is not as it might be."""
    rows = [("REMOTE", "KIND", "NODE", "STATE", "MODELS", "COST", "REQUESTS", "TOKENS", "ERRORS")]
    notes = []
    for place in remote_places(report.members):
        remote = place.remote
        flags = "".join(f", {word}" for word, on in (("spill-over", remote.spill_over), ("insecure", remote.insecure)) if on)
        requests, tokens, errors = map(str, (remote.requests, remote.tokens, remote.errors))
        state = f"{remote.state}{flags}"
        rows.append((remote.name, remote.kind, place.node, state, str(remote.models), remote.cost, requests, tokens, errors))
        notes += [f"{remote.name} at {place.node}: {printable(remote.reason)}"] * bool(remote.reason)
        notes += [f"{remote.name} at {place.node} does not offer {what}: {printable(why)}" for what, why in remote.left_out]
    if len(rows) == 1:
        return "No node of this mesh has a remote. To add one: meshnode add router NAME URL, or meshnode add cluster NAME URL"
    return "\n".join([columns(rows), *([""] if notes else []), *(printable(note) for note in notes)])


def remote_places(lines: Iterable[MemberLine]) -> list[RemotePlace]:
    """By name, then by node."""
    found = [RemotePlace(node=member.name, remote=remote) for member in lines for remote in member.remotes]
    return sorted(found, key=lambda place: (place.remote.name, place.node))


def places(lines: Iterable[MemberLine]) -> list[ModelPlace]:
    """By name."""
    held: dict[str, list[tuple[MemberLine, int]]] = {}
    for member in lines:
        for index, model in enumerate(member.models):
            held.setdefault(model.digest or model.name, []).append((member, index))
    return sorted(map(_place, held.values()), key=lambda place: place.name)


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _place(holdings: Sequence[tuple[MemberLine, int]]) -> ModelPlace:
    held = [(member, member.models[index]) for member, index in holdings]
    names = list(dict.fromkeys(name for _, model in held for name in (model.name, *model.aliases)))
    return ModelPlace(
        name=names[0],
        aliases=tuple(names[1:]),
        digest=held[0][1].digest,
        size=max(model.size for _, model in held),
        context_length=max(model.context_length for _, model in held),
        nodes=tuple(_holder(member, model) for member, model in held),
    )


def _holder(member: MemberLine, model: ModelLine) -> str:
    trouble = model.state if model.state != "ready" else "" if member.routable else "not routable"
    place = f"{member.name} via {model.origin}" if model.origin else member.name
    return f"{place} ({trouble})" if trouble else place


def _member(member: MemberLine, own_id: str) -> tuple[str, ...]:
    own = member.id == own_id
    seen = "now" if own else "never" if member.last_seen_s is None else age(member.last_seen_s)
    return (
        f"{member.name}*" if own else member.name,
        member.id,
        member.state,
        "yes" if member.routable else "no",
        ",".join(member.addrs) or "-",
        member.version or "-",
        str(member.epoch),
        seen,
        printable(member.reason) or "-",
    )
