"""What a handler is given: the request, and the node as the API needs it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from meshnode import inference
from meshnode.api.http import Headers, Request, Response
from meshnode.api.metrics import Metrics
from meshnode.backend import Events
from meshnode.gossip.member import Member
from meshnode.keys import KeyRing
from meshnode.remote import Remote
from meshnode.routing.scope import Scope
from meshnode.routing.table import Listing
from meshnode.wire.messages import ModelState


class Answer(Protocol):
    """An answer under way. `node`, `model` and `reason` are final once `events` has yielded its first Chunk."""

    @property
    def node(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def resumed(self) -> int:
        """How often another node went on with it after its first text."""
        ...

    @property
    def events(self) -> Events: ...


class Node(Protocol):
    """What the API needs of the node that it fronts."""

    @property
    def name(self) -> str: ...

    def submit(self, request: inference.Request, scope: Scope = Scope.ANY) -> AbstractAsyncContextManager[Answer]:
        """Answer it somewhere within `scope`; `request.model` is what the client typed, `caller` the id of its key if it has one.
        Raises MeshnodeError.

        Leaving the block cancels the work.
        """
        ...

    def models(self, scope: Scope = Scope.ANY) -> tuple[Listing, ...]: ...

    def members(self) -> tuple[Member, ...]: ...

    def load(self) -> tuple[ModelState, ...]:
        """Of this node's own models."""
        ...

    def report(self) -> msgspec.Struct:
        """The status, to be shown as JSON."""
        ...

    async def join(self, peer: str | None) -> msgspec.Struct:
        """Take the token that lies in the data directory, and dial `peer` (HOST[:PORT]). Raises MeshnodeError.

        Returns which mesh and which node that is now, to be shown as JSON.
        """
        ...

    async def add_remote(self, remote: Remote) -> msgspec.Struct:
        """Try a remote service and, if it can be used, keep and offer it. Raises MeshnodeError.

        Returns what there is to say about it, to be shown as JSON.
        """
        ...

    async def remove_remote(self, name: str) -> msgspec.Struct:
        """Offer it no longer, and forget its secrets. Raises MeshnodeError."""
        ...

    def drain(self, on: bool, *, hand_over: bool = False) -> msgspec.Struct:
        """Take nothing new, or take requests again. `hand_over`: what runs for peers goes on elsewhere at once.

        Returns what still runs, to be shown as JSON.
        """
        ...

    def explain(self, request: inference.Request, *, prompt_tokens: int | None) -> msgspec.Struct:
        """Every node that could serve the request now, with its estimate, to be shown as JSON. Raises as `submit`."""
        ...

    def ready(self) -> str:
        """Empty when the node can serve or route a request, else why not."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request at the node. `id` is unique in the mesh; `shown_id` is the client's own where it sent one."""

    node: Node
    request: Request
    id: str
    shown_id: str
    started: int
    """Unix time of the node's start."""
    keys: KeyRing
    """For the admin endpoints."""
    metrics: Metrics
    rest: str = ""
    """What the route's `{id}` stands for."""


def json_response(body: bytes, *, status: int = 200, headers: Headers = ()) -> Response:
    return Response(status=status, headers=(("content-type", "application/json"), *headers), body=body)


def plain(respond: Callable[[Exchange], Response]) -> Callable[[Exchange], AbstractAsyncContextManager[Response]]:
    """A handler that has its response at once, and nothing to end."""

    @asynccontextmanager
    async def handler(exchange: Exchange) -> AsyncIterator[Response]:
        yield respond(exchange)

    return handler
