"""From what the members say of their models to the candidates for one request (pure).

Names (design D23): one digest under several names is one model with aliases. One name over several digests means the digest that
most nodes hold (tie: the larger file); the others are reached as `name#8hex`. `model@node` pins a request to one node, given by
its name or by the beginning of its id.
"""

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches

import msgspec

from meshnode.errors import ModelNotFound, ModelUnavailable
from meshnode.gossip.member import Member, Model, State
from meshnode.names import ModelDigest, NodeId, printable, short
from meshnode.routing.scope import Scope
from meshnode.wire.messages import ModelState, Sketch

MAX_COMPARED = 1000
"""Names that a wrong one is compared with: 10 us each on the event loop, and members can tell of a million."""
RETRY_AFTER_S = 5.0
"""A node that restarts is back within seconds: a guess, in the range 1 to 120 that the official clients honour."""


NOBODY = NodeId(bytes(16))
STATUS_HINT = "`meshnode status` there says more."


Holder = tuple[NodeId, str]
"""A model on a node, by the name that the node has for it."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node that could serve the request now. `model` is what that node calls the weights."""

    node: NodeId
    node_name: str
    model: str
    digest: ModelDigest
    load: ModelState | None
    load_at: float = 0.0
    """When `load` was told, on the clock of the gossip engine."""
    rtt_ms: float | None
    local: bool
    context_length: int = 0
    """Tokens of prompt and answer; 0: it does not say."""
    origin: str = ""
    """The bridge that it is behind; empty for the node's own worker."""

    sketch: tuple[Sketch, float] | None = None
    """What it has cached of this model, and since when we know."""

    @property
    def holder(self) -> Holder:
        return (self.node, self.model)

    @property
    def loaded(self) -> bool:
        """Whether it can begin at once."""
        return self.load is None or self.load.state == "ready"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved model: the name it is served under, and who can serve it now (at least one)."""

    model: str
    digest: ModelDigest
    candidates: tuple[Candidate, ...]


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the mesh, once, however many nodes hold it."""

    id: str
    aliases: tuple[str, ...]
    digest: ModelDigest
    size: int
    context_length: int
    nodes: tuple[str, ...]
    """Names of the nodes that can serve it, sorted."""
    loaded_on: tuple[str, ...]
    """Those of them that need not load it first."""
    origins: tuple[str, ...] = ()
    """Names of the remotes that have it; none: the nodes themselves."""


Holding = tuple[Member, Model]


def route(wanted: str, members: Iterable[Member], *, me: NodeId, only_local: bool = False, scope: Scope = Scope.ANY) -> Route:
    """Who can serve `wanted` now. Raises ModelNotFound (nobody knows it) or ModelUnavailable (known, and nowhere up)."""
    members = tuple(members)
    everywhere = [(member, model) for member in members for model in member.models]
    holdings = [holding for holding in everywhere if _is_within(holding, scope, me)]
    name, pin = _split_pin(wanted, everywhere, members)
    digest = _digest_of(name, holdings)
    if digest is None:
        _check_scope(wanted, name, everywhere, scope)
        raise _unknown(wanted, name, holdings, members)
    held = [
        (member, model)
        for member, model in holdings
        if model.digest == digest and _answers_to(model, name, pin) and (pin is None or _is_called(member, pin))
    ]
    if not held:
        nodes = ", ".join(sorted({member.name for member, model in holdings if model.digest == digest}))
        raise ModelNotFound(f"Node `{pin}` does not have the model `{name}`.", hint=f"It is on: {nodes}.", param="model")
    up = [holding for holding in held if holding[0].routable and (not only_local or holding[0].id == me)]
    usable = [holding for holding in up if _is_usable(holding)]
    spilled = [] if only_local or pin or any(map(_has_room, usable)) else _spill_over(name, digest, holdings, me)
    if not usable and not spilled:
        raise ModelUnavailable(_why_not(wanted, held, up), hint=STATUS_HINT, retry_after=RETRY_AFTER_S)
    own = (_candidate(member, model, me, name) for member, model in usable)
    return Route(model=name, digest=digest, candidates=(*own, *spilled))


def _has_room(holding: Holding) -> bool:
    """Whether a slot is free, as far as its node tells."""
    load = _live(*holding)
    return load is None or load.active + load.queued < max(1, load.slots)


def _spill_over(name: str, digest: ModelDigest, holdings: list[Holding], me: NodeId) -> list[Candidate]:
    """Remotes that have a model of this name and were registered to help out where the mesh's own nodes are busy or away.

    They are asked by the name that can mean nothing else: theirs may be other weights, and the bare name means the mesh's.
    """
    if not digest:
        return []
    return [
        _candidate(member, model, me, f"{model.origin}/{model.name}")
        for member, model in holdings
        if model.origin
        and member.routable
        and _helps_out(member, model)
        and name in _names(model)
        and _is_usable((member, model))
    ]


def _helps_out(member: Member, model: Model) -> bool:
    pinned = bool(model.origin) and f"{model.origin}/{model.name}" in model.aliases
    return pinned and any(remote.name == model.origin and remote.spill_over for remote in member.remotes)


def unambiguous(candidate: Candidate) -> str:
    """The name to send to the candidate: with the digest, for it may know other weights under the bare name."""
    return f"{candidate.model}#{short(candidate.digest)}" if candidate.digest else candidate.model


def listings(members: Iterable[Member], *, me: NodeId = NOBODY, scope: Scope = Scope.ANY) -> tuple[Listing, ...]:
    """Every model that some routable node can serve, if need be once it has loaded it, to a request of this scope, by id."""
    every = [(member, model) for member in members if member.routable for model in member.models if _is_usable((member, model))]
    holdings = [holding for holding in every if _is_within(holding, scope, me)]
    listed = {}
    for _, model in holdings:
        identity = _public_name(model, holdings)
        same = [(member, other) for member, other in holdings if other.digest == model.digest and model.digest] or [
            (member, other) for member, other in holdings if other.name == model.name and not other.digest
        ]
        names = {name for _, other in same for name in (other.name, *other.aliases)}
        listed[model.digest or model.name] = Listing(
            id=identity,
            aliases=tuple(sorted(names - {identity})),
            digest=model.digest,
            size=model.size,
            context_length=max(other.context_length for _, other in same),
            nodes=tuple(sorted({member.name for member, _ in same})),
            loaded_on=tuple(sorted({member.name for member, other in same if state_of(member, other) in {"ready", ""}})),
            origins=tuple(sorted({other.origin for _, other in same if other.origin})),
        )
    return tuple(sorted(listed.values(), key=lambda listing: listing.id))


def _is_within(holding: Holding, scope: Scope, me: NodeId) -> bool:
    member, model = holding
    return scope is Scope.ANY or (not model.origin and (scope is Scope.LAN or member.id == me))


def _check_scope(wanted: str, name: str, everywhere: list[Holding], scope: Scope) -> None:
    """Raise ModelNotFound when the model is only where the request may not go."""
    places = sorted({_place(member, model) for member, model in everywhere if name in _names(model)})
    if places:
        raise ModelNotFound(
            f"The model `{printable(wanted, 128)}` is beyond the scope `{scope}` of this request: it is on {', '.join(places)}.",
            hint="A wider scope is asked for with `x-meshnode-scope: any`, where the node allows it.",
            param="model",
        )


def _place(member: Member, model: Model) -> str:
    return f"{member.name} via {model.origin}" if model.origin else member.name


def _names(model: Model) -> tuple[str, ...]:
    return (model.name, *model.aliases, f"{model.name}#{short(model.digest)}") if model.digest else (model.name, *model.aliases)


def _answers_to(model: Model, name: str, pin: str | None) -> bool:
    """With no digest (behind a bridge) only an equal name is the same model; and a pinned name must be that node's own."""
    return bool(model.digest and pin is None) or name in _names(model)


def _is_called(member: Member, pin: str) -> bool:
    return member.name == pin or (len(pin) >= 8 and member.id.hex().startswith(pin))


def _split_pin(wanted: str, holdings: list[Holding], members: tuple[Member, ...]) -> tuple[str, str | None]:
    """A model's name may hold an @ itself, so the whole is tried as a name first."""
    name, at, pin = wanted.rpartition("@")
    if not at or any(wanted in _names(model) for _, model in holdings):
        return wanted, None
    if not any(_is_called(member, pin) for member in members):
        nodes = ", ".join(sorted(member.name for member in members))
        raise ModelNotFound(f"No node is called `{printable(pin, 128)}`.", hint=f"The mesh has: {nodes}.", param="model")
    return name, pin


def _digest_of(name: str, holdings: list[Holding]) -> ModelDigest | None:
    """The weights that `name` means; the empty digest for a model that is only behind bridges; None when nobody has the name."""
    holders = Counter(model.digest for _, model in holdings if name in _names(model))
    if not holders:
        return None
    sizes = {model.digest: model.size for _, model in holdings}
    return max(holders, key=lambda digest: (bool(digest), holders[digest], sizes[digest], digest))


def _public_name(model: Model, holdings: list[Holding]) -> str:
    """The most used name of these weights, with the digest where the bare name means other weights."""
    names = Counter(other.name for _, other in holdings if other.digest == model.digest and model.digest)
    name = max(names, key=lambda each: (names[each], each)) if names else model.name
    if _digest_of(name, holdings) == model.digest:
        return name
    if model.digest:
        return f"{name}#{short(model.digest)}"
    return next((alias for alias in model.aliases if _digest_of(alias, holdings) == model.digest), name)


def _live(member: Member, model: Model) -> ModelState | None:
    return next((load for load in member.load if load.digest == model.digest and load.name == model.name), None)


def state_of(member: Member, model: Model) -> str:
    """As it last told; empty before its first heartbeat."""
    load = _live(member, model)
    return load.state if load else ""


def _is_usable(holding: Holding) -> bool:
    """Ready, or would be for whoever asks. Empty: the record came before the first heartbeat."""
    return state_of(*holding) in {"ready", "available", "loading", ""}


def _candidate(member: Member, model: Model, me: NodeId, name: str) -> Candidate:
    """Behind a bridge the name says which service is meant, so it goes on as it was asked for."""
    return Candidate(
        node=member.id,
        node_name=member.name,
        model=model.name if model.digest else name,
        digest=model.digest,
        load=_live(member, model),
        load_at=member.load_at,
        rtt_ms=member.rtt_ms,
        local=member.id == me,
        context_length=model.context_length,
        origin=model.origin,
        sketch=next((told for told in member.sketches if told[0].digest == model.digest and told[0].name == model.name), None),
    )


def _why_not(wanted: str, held: list[Holding], up: list[Holding]) -> str:
    states = [f"{member.name}: {state_of(member, model)}" for member, model in up] or [
        f"{member.name}: {'left the mesh' if member.state is State.LEFT else member.reason or 'not this node'}"
        for member, _ in held
    ]
    return f"The model `{printable(wanted, 128)}` is known, but no node can serve it now ({', '.join(states)})."


def _unknown(wanted: str, name: str, holdings: list[Holding], members: tuple[Member, ...]) -> ModelNotFound | ModelUnavailable:
    """A model that is still being loaded has no record yet, only a state in its node's heartbeat: that is no 404."""
    waiting = [(member, load) for member in members if member.routable for load in member.load if load.name == name]
    if waiting:
        states = ", ".join(f"{member.name}: {load.state}" for member, load in waiting)
        return ModelUnavailable(
            f"The model `{printable(wanted, 128)}` is not ready ({states}).", hint=STATUS_HINT, retry_after=RETRY_AFTER_S
        )
    known = sorted({each for _, model in holdings for each in (model.name, *model.aliases)})
    near = get_close_matches(name, known[:MAX_COMPARED], n=3, cutoff=0.4) or known[:5]
    hint = f"Nearest: {', '.join(near)}." if near else "No node of the mesh has a model yet; see `meshnode status`."
    return ModelNotFound(
        f"The model `{printable(wanted, 128)}` does not exist on any node of this mesh.", hint=hint, param="model"
    )
