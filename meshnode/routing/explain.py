"""Why a request goes where it goes, as data: every candidate with its estimate, term by term (pure)."""

from collections.abc import Iterable, Sequence

import msgspec

from meshnode.gossip.member import Member
from meshnode.routing.ask import Ask
from meshnode.routing.breaker import Mode
from meshnode.routing.estimate import Estimate, is_measured
from meshnode.routing.knowledge import Knowledge, fits
from meshnode.routing.policy import Choice, estimates, near_bound, score
from meshnode.routing.table import Candidate, Route, state_of


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate. Times in the estimate are seconds; `measured`: whether its speeds are its own, or stand in for them."""

    node: str
    """In hex."""
    node_name: str
    model: str
    local: bool
    origin: str
    state: str
    active: int
    queued: int
    slots: int
    under_way: int
    """Of our own requests there."""
    breaker: Mode
    measured: bool
    estimate: Estimate
    score: float
    chosen: bool
    verdict: str
    """Why it was chosen or not, in words."""


class Barred(msgspec.Struct, frozen=True, kw_only=True):
    """A node that has the model, and cannot be asked for it now."""

    node: str
    """In hex."""
    node_name: str
    reason: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`bound` is the greatest score that was as good as the best. Candidates by score."""

    prompt_tokens: int
    output_tokens: int
    reason: str
    bound: float
    candidates: tuple[Explained, ...]
    barred: tuple[Barred, ...] = ()


def explain(candidates: Sequence[Candidate], ask: Ask, known: Knowledge, choice: Choice, *, now: float) -> Explanation:
    """Of `choice`, which a policy has made among those of `candidates` that are usable, with what was known at `now`."""
    found = estimates(candidates, ask, known, now=now)
    usable = known.allowed([candidate for candidate in candidates if fits(candidate, ask)], now)
    good = [each for candidate, each in zip(candidates, found, strict=True) if candidate in usable] or found
    bound = near_bound(min(good, key=lambda each: score(each, ask)), ask, count=len(good))
    rows = [
        _explained(candidate, each, ask, known, choice=choice, bound=bound, now=now)
        for candidate, each in zip(candidates, found, strict=True)
    ]
    return Explanation(
        prompt_tokens=round(ask.prompt_tokens),
        output_tokens=round(ask.output_tokens),
        reason=choice.reason,
        bound=bound,
        candidates=tuple(sorted(rows, key=lambda row: (row.score, row.node))),
    )


def barred(found: Route, members: Iterable[Member]) -> tuple[Barred, ...]:
    """Those that have the model of `found` and are no candidates, by name."""
    usable = {candidate.node for candidate in found.candidates}
    names = {name for candidate in found.candidates for name in (candidate.model, found.model)}
    held = [
        (member, model)
        for member in members
        if member.id not in usable
        for model in member.models
        if model.digest == found.digest and (model.digest or model.name in names)
    ]
    rows = [
        Barred(node=member.id.hex(), node_name=member.name, reason=member.reason or f"its model is {state_of(member, model)}")
        for member, model in held
    ]
    return tuple(sorted(rows, key=lambda row: (row.node_name, row.node)))


def _explained(
    candidate: Candidate, found: Estimate, ask: Ask, known: Knowledge, *, choice: Choice, bound: float, now: float
) -> Explained:
    load, chosen = candidate.load, candidate.holder == choice.candidate.holder
    mode = known.mode(candidate.holder, now)
    return Explained(
        node=candidate.node.hex(),
        node_name=candidate.node_name,
        model=candidate.model,
        local=candidate.local,
        origin=candidate.origin,
        state=(load.state if load else "") or "ready",
        active=load.active if load else 0,
        queued=load.queued if load else 0,
        slots=load.slots if load else 0,
        under_way=known.open(candidate),
        breaker=mode,
        measured=is_measured(candidate),
        estimate=found,
        score=score(found, ask),
        chosen=chosen,
        verdict=f"chosen: {choice.reason}" if chosen else _why_not(candidate, found, ask, mode=mode, bound=bound),
    )


def _why_not(candidate: Candidate, found: Estimate, ask: Ask, *, mode: Mode, bound: float) -> str:
    if not fits(candidate, ask):
        return f"a prompt of about {ask.prompt_tokens:.0f} tokens does not fit its context of {candidate.context_length}"
    if mode is not Mode.CLOSED:
        return f"not asked after failures: its breaker is {mode}"
    if score(found, ask) <= bound:
        return "as good, and not drawn"
    terms = {
        "its queue": found.wait,
        "loading the model": found.load,
        "reading the prompt": found.prefill,
        "writing the answer": found.decode,
        "what speaks against it": found.penalty,
    }
    return f"dearer by {score(found, ask) - bound:.1f} s, most of its time by {max(terms, key=lambda term: terms[term])}"
