"""The bridges that this node runs. The nursery starts whatever is listed here; no kind of bridge exists yet, so nothing is."""

from collections.abc import Callable
from typing import Protocol

from meshnode.backend import Backend
from meshnode.gossip.member import Model
from meshnode.wire.messages import ModelState


class Bridge(Protocol):
    """A remote service whose models this node offers as its own, labelled with `name` (design D17)."""

    name: str

    async def run(self, *, on_change: Callable[[], None]) -> None:
        """Keep the list of models fresh until cancelled; never raises for a fault of the service."""
        ...

    def models(self) -> tuple[Model, ...]: ...

    def load(self) -> tuple[ModelState, ...]: ...

    def backend(self, model: str) -> Backend: ...


def registered() -> tuple[Bridge, ...]:
    """The bridges that the user registered."""
    return ()
