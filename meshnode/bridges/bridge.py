"""What every kind of bridge is to the rest of the node."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from meshnode.backend import Backend
from meshnode.bridges.tally import Tally
from meshnode.gossip.member import Model
from meshnode.remote import Remote
from meshnode.wire.messages import ModelState


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """How a remote is, for people."""

    state: str
    """unknown, ready, warming or down"""
    reason: str
    left_out: tuple[tuple[str, str], ...] = ()
    """What it has and this node does not offer: (model or service, why)."""


class Bridge(Protocol):
    """A remote service whose models this node offers as its own, labelled with `name` (design D17)."""

    name: str
    remote: Remote
    tally: Tally

    async def verify(self) -> str:
        """Try it as it was registered. Returns a line for people; raises `verdict.Unusable`."""
        ...

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Keep the list of models fresh until cancelled; never raises for a fault of the service."""
        ...

    def models(self) -> tuple[Model, ...]: ...

    def load(self) -> tuple[ModelState, ...]: ...

    def facts(self) -> Facts: ...

    def backend(self, model: str) -> Backend:
        """`model` is a name or an alias of `models`. Raises ModelUnavailable when it is offered no longer."""
        ...
