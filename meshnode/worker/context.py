"""How many tokens a slot and a request have (pure)."""

from meshnode.worker.gguf import Facts

DEFAULT_CONTEXT = 4096
"""Tokens of a slot, where the model was trained for as many. More costs memory whether it is used or not."""


def of_slot(facts: Facts, wanted: int | None) -> int:
    """What each slot brings to the KV cache."""
    return min(wanted or DEFAULT_CONTEXT, facts.context_length)


def of_request(facts: Facts, wanted: int | None, *, slots: int, unified: bool) -> int:
    """A request's own limit: with a `unified` cache up to that of all slots, as far as the model was trained for."""
    slot = of_slot(facts, wanted)
    return min(slots * slot, max(slot, facts.context_length)) if unified else slot


def warning(facts: Facts, wanted: int | None) -> str:
    """Empty when it gets what was wanted."""
    if (wanted or 0) <= facts.context_length:
        return ""
    return f"It was trained for a context of {facts.context_length} tokens and gets that, not {wanted}."
