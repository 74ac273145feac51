"""The node as one caller sees it: what it asks carries its id and is counted, whichever endpoint asks.

Tokens are counted from the events that pass, so that who leaves in the middle of an answer pays for what was done by then.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from meshnode import inference
from meshnode.api.auth import Caller
from meshnode.api.exchange import Answer, Node
from meshnode.api.metrics import Metrics
from meshnode.backend import Events
from meshnode.errors import MeshnodeError, Unauthorized
from meshnode.gossip.member import Member
from meshnode.inference import Chunk, End, Event, Phase, Progress, Usage
from meshnode.remote import Remote
from meshnode.routing.scope import Scope
from meshnode.routing.table import Listing
from meshnode.wire.messages import ModelState


class Account:
    """A Node for the requests of one caller. `on_usage` hears what each one cost when it is over, however it ended."""

    def __init__(self, node: Node, caller: Caller, *, on_usage: Callable[[Usage], None], metrics: Metrics) -> None:
        self._node = node
        self._caller = caller
        self._on_usage = on_usage
        self._metrics = metrics

    @property
    def name(self) -> str:
        return self._node.name

    @asynccontextmanager
    async def submit(self, request: inference.Request, scope: Scope = Scope.ANY) -> AsyncIterator[Answer]:
        """As the node's. Raises Unauthorized for a grammar of somebody without a key: security rule 15."""
        if request.response_format.kind == "grammar" and not self._caller.id:
            raise Unauthorized("`grammar` needs an API key.", hint="Make one with: meshnode key new", param="grammar")
        began = trio.current_time()
        async with self._node.submit(msgspec.structs.replace(request, caller=self._caller.id), scope) as answer:
            counted = _Counted(answer)
            try:
                yield counted
                if counted.failure:  # told in a stream, whose status was sent before
                    self._metrics.failed(counted.failure)
            finally:
                self._on_usage(counted.usage)
                self._measure(counted, began)

    def _measure(self, counted: "_Counted", began: float) -> None:
        took = trio.current_time() - began
        usage = counted.usage
        self._metrics.answered(counted.model, counted.reason, resumed=counted.resumed, usage=usage, duration_s=took)
        if counted.first_at is not None and counted.last_at is not None:
            more = usage.completion_tokens - counted.first_tokens
            per_token = (counted.last_at - counted.first_at) / more if more > 0 else None
            self._metrics.timed(counted.model, first_s=counted.first_at - began, per_token_s=per_token)

    def models(self, scope: Scope = Scope.ANY) -> tuple[Listing, ...]:
        return self._node.models(scope)

    def members(self) -> tuple[Member, ...]:
        return self._node.members()

    def load(self) -> tuple[ModelState, ...]:
        return self._node.load()

    def report(self) -> msgspec.Struct:
        return self._node.report()

    async def join(self, peer: str | None) -> msgspec.Struct:
        return await self._node.join(peer)

    def drain(self, on: bool, *, hand_over: bool = False) -> msgspec.Struct:
        return self._node.drain(on, hand_over=hand_over)

    def explain(self, request: inference.Request, *, prompt_tokens: int | None) -> msgspec.Struct:
        return self._node.explain(request, prompt_tokens=prompt_tokens)

    async def add_remote(self, remote: Remote) -> msgspec.Struct:
        return await self._node.add_remote(remote)

    async def remove_remote(self, name: str) -> msgspec.Struct:
        return await self._node.remove_remote(name)

    def ready(self) -> str:
        return self._node.ready()


class _Counted:
    """An answer, and its usage up to now: an estimate until the end tells. Times are of the first and the last token."""

    def __init__(self, answer: Answer) -> None:
        self.usage = Usage(prompt_tokens=0, completion_tokens=0)
        self.failure = ""
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.first_tokens = 0
        """How many came at once with the first."""
        self._answer = answer

    @property
    def node(self) -> str:
        return self._answer.node

    @property
    def model(self) -> str:
        return self._answer.model

    @property
    def reason(self) -> str:
        return self._answer.reason

    @property
    def resumed(self) -> int:
        return self._answer.resumed

    @property
    def events(self) -> Events:
        return self

    def __aiter__(self) -> "_Counted":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        try:
            batch = await anext(self._answer.events)
        except MeshnodeError as error:
            self.failure = error.code
            raise
        before = self.usage.completion_tokens
        for event in batch:
            self._count(event)
        if self.usage.completion_tokens > before:
            self.last_at = trio.current_time()
            if self.first_at is None:
                self.first_at, self.first_tokens = self.last_at, self.usage.completion_tokens
        return batch

    def _count(self, event: Event) -> None:
        match event:
            case End():
                self.usage = event.usage
            case Chunk():
                written = self.usage.completion_tokens + len(event.token_ids)
                self.usage = msgspec.structs.replace(self.usage, completion_tokens=written)
            case Progress():
                if event.phase is Phase.PREFILL:
                    self.usage = msgspec.structs.replace(self.usage, prompt_tokens=event.total)
