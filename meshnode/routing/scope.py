"""How far a request may go (pure; security rule 19)."""

from enum import StrEnum


class Scope(StrEnum):
    """Each is within the next."""

    NODE = "node"
    """The node that was asked, and its own models."""
    LAN = "lan"
    """The mesh's own models."""
    ANY = "any"
    """Remote services too, for what is asked for by their names or is nowhere else."""


def narrower(one: Scope, other: Scope) -> Scope:
    return min(one, other, key=list(Scope).index)
