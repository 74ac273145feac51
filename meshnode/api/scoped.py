"""A node as one request may see it: nothing beyond the scope that the request names (security rule 19)."""

from contextlib import AbstractAsyncContextManager

import msgspec

from meshnode import inference
from meshnode.api.exchange import Answer, Node
from meshnode.api.http import Request
from meshnode.errors import InvalidRequest
from meshnode.gossip.member import Member
from meshnode.names import printable
from meshnode.remote import Remote
from meshnode.routing.scope import Scope, narrower
from meshnode.routing.table import Listing
from meshnode.wire.messages import ModelState

HEADER = "x-meshnode-scope"


def scope_of(request: Request) -> Scope:
    """Raises InvalidRequest."""
    asked = request.headers.get(HEADER, Scope.ANY).strip().lower()
    if asked not in set(Scope):
        raise InvalidRequest(f"`{HEADER}` is {', '.join(Scope)}, not `{printable(asked, 32)}`.", param=HEADER)
    return Scope(asked)


class Scoped:
    """`node`, for every endpoint alike: none can forget the scope."""

    def __init__(self, node: Node, scope: Scope) -> None:
        self._node = node
        self._scope = scope

    @property
    def name(self) -> str:
        return self._node.name

    def submit(self, request: inference.Request, scope: Scope = Scope.ANY) -> AbstractAsyncContextManager[Answer]:
        return self._node.submit(request, narrower(scope, self._scope))

    def models(self, scope: Scope = Scope.ANY) -> tuple[Listing, ...]:
        return self._node.models(narrower(scope, self._scope))

    def members(self) -> tuple[Member, ...]:
        return self._node.members()

    def load(self) -> tuple[ModelState, ...]:
        return self._node.load()

    def report(self) -> msgspec.Struct:
        return self._node.report()

    async def join(self, peer: str | None) -> msgspec.Struct:
        return await self._node.join(peer)

    async def add_remote(self, remote: Remote) -> msgspec.Struct:
        return await self._node.add_remote(remote)

    async def remove_remote(self, name: str) -> msgspec.Struct:
        return await self._node.remove_remote(name)

    def drain(self, on: bool, *, hand_over: bool = False) -> msgspec.Struct:
        return self._node.drain(on, hand_over=hand_over)

    def explain(self, request: inference.Request, *, prompt_tokens: int | None) -> msgspec.Struct:
        return self._node.explain(request, prompt_tokens=prompt_tokens)

    def ready(self) -> str:
        return self._node.ready()
