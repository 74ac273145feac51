"""What `GET /v1/models` says, and which of it this node offers (pure)."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import msgspec

from meshnode.gossip.member import Model
from meshnode.names import ModelDigest, is_name, printable
from meshnode.remote import Remote

MAX_MODELS = 64
"""Offered by one remote: a node's record has room for its models in 32 KiB. `--models` chooses which."""
MAX_LISTED = 20_000
"""Read of one list."""
MAX_NAME = 128
_MAX_CONTEXT = 2**31
_CONTEXT_FIELDS = ("max_model_len", "context_length", "max_context_length", "loaded_context_length", "context_window")
"""Of vLLM, OpenRouter and meshnode, LM Studio, Groq; llama-server's is `meta.n_ctx`."""


class Found(msgspec.Struct, frozen=True):
    """A model as its remote calls it."""

    id: str
    context_length: int = 0


class _List(msgspec.Struct, frozen=True):
    data: list[dict[str, object]]


def read(answer: bytes) -> tuple[Found, ...]:
    """The models of a list. Raises ValueError when it is none."""
    try:
        listed = msgspec.json.decode(answer, type=_List).data
    except RecursionError:
        raise ValueError("nested too deeply") from None
    found = {name: _found(name, each) for each in listed[:MAX_LISTED] if isinstance(name := each.get("id"), str) and name}
    return tuple(found.values())


def _found(name: str, said: dict[str, object]) -> Found:
    meta = said.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    lengths = [*(said.get(field) for field in _CONTEXT_FIELDS), meta.get("n_ctx"), meta.get("context_length")]
    length = next((length for length in lengths if isinstance(length, int) and 0 < length < _MAX_CONTEXT), 0)
    return Found(name, length)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What is offered, and for people what is not."""

    models: tuple[Model, ...] = ()
    ids: tuple[str, ...] = ()
    """What the remote calls each of `models`."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(model, reason)"""


def offer(remote: Remote, found: Sequence[Found], *, prefixes: Collection[str] = ()) -> Offer:
    """The models to offer: each by its own name, `<prefix>/<name>` for each prefix, and the aliases that were registered."""
    offered: list[Model] = []
    ids: list[str] = []
    left_out: list[tuple[str, str]] = []
    for model in found:
        aliases = tuple(alias for alias, theirs in remote.alias.items() if theirs == model.id)
        reason = _why_not(remote, model, aliases, len(offered))
        if reason:
            left_out.append((printable(model.id, MAX_NAME), reason))
            continue
        names = dict.fromkeys([model.id, *aliases, *(f"{prefix}/{model.id}" for prefix in prefixes)])
        name, *others = filter(is_name, names)
        ids.append(model.id)
        offered.append(
            Model(
                name=name,
                aliases=tuple(others),
                digest=ModelDigest(b""),
                context_length=model.context_length,
                origin=remote.name,
                cost=remote.cost_class.value,
            )
        )
    return Offer(models=tuple(offered), ids=tuple(ids), left_out=tuple(left_out))


def _why_not(remote: Remote, model: Found, aliases: Sequence[str], offered: int) -> str:
    if remote.models and not any(fnmatchcase(model.id, pattern) for pattern in remote.models):
        return "not among the models that were chosen"
    if not is_name(model.id) and not aliases:
        return "its name cannot be used; give it one: --alias NAME=MODEL"
    if offered >= MAX_MODELS:
        return f"only {MAX_MODELS} are offered; choose which: --models"
    return ""
