"""What one node believes of another: the view that status and routing read (pure).

Two verdicts, kept apart (design D9): `state` is the mesh's (agreed); `routable` is ours alone, instant and never gossiped.
"""

from enum import StrEnum

import msgspec

from meshnode.names import ModelDigest, NodeId
from meshnode.wire.messages import ModelState, Sketch


class State(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    """We do not hear it, and nobody whom we asked does."""
    DOWN = "down"
    """Suspected for long enough, by enough of us."""
    LEFT = "left"
    """It said so itself, or an operator did in its place."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its holder's record describes it: the slow facts. Gossiped as the key `model/<digest hex>`."""

    name: str
    aliases: tuple[str, ...] = ()
    digest: ModelDigest
    size: int = 0
    """Of the file, in bytes."""
    context_length: int = 0
    slots: int = 0
    origin: str = ""
    """Empty for the node's own worker, else the bridge's name."""
    cost: str = ""
    """Of a bridge's: what an answer costs its owner, one of `remote.Cost`."""


class Bridged(msgspec.Struct, frozen=True, kw_only=True):
    """A remote service that a node bridges, as its record tells. Gossiped as the key `remote/<name>`; never with its secrets."""

    name: str
    kind: str
    """router or cluster"""
    service: str = ""
    """Equal at nodes that bridge the same: a hash of its address."""
    state: str = ""
    reason: str = ""
    """Why it is not ready, or what is not as it should be although it is."""
    models: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    """What it has and the node does not offer: (model or service, why); the first few."""
    cost: str = ""
    spill_over: bool = False
    insecure: bool = False
    requests: int = 0
    tokens: int = 0
    errors: int = 0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One node as seen from here, ourselves included. Times are seconds on the engine's clock."""

    id: NodeId
    name: str
    state: State
    routable: bool
    reason: str
    """Why it is not routable, in words with the evidence; empty when it is."""
    since: float | None = None
    """Since when it is down or has left; None otherwise."""
    draining: bool = False
    """It finishes what it has and takes nothing new."""
    last_seen: float | None
    """When the last frame came over its own link; None: never."""
    addr: str = ""
    """The one in use, or else the first of `addrs`, which are all that it tells."""
    addrs: tuple[str, ...] = ()
    rtt_ms: float | None = None
    version: str = ""
    epoch: int = 0
    memory: tuple[int, int] = (0, 0)
    """Total and available bytes of its machine; zeros: it does not say."""
    models: tuple[Model, ...] = ()
    remotes: tuple[Bridged, ...] = ()
    load: tuple[ModelState, ...] = ()
    load_at: float = 0.0
    sketches: tuple[tuple[Sketch, float], ...] = ()
    """What it has cached of its models, and since when we know."""
