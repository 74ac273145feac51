"""One request from resolved model to last event: choose, reserve, submit, and try elsewhere while that is still honest.

An answer may move to another node until its first chunk has been passed on. After that only a node with the same weights may go
on, which is told what was said already (`routing.continuation`). Where there is none, a loss is an error, because the caller has
read text that other weights would write differently. Each attempt holds one reservation, from the choice until the backend's
block is left, and `_attempt` is the only place that makes one.
"""

import math
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager

import msgspec
import trio

from meshnode.backend import Backend, Events
from meshnode.errors import (
    Busy,
    DeadlineExceeded,
    Draining,
    InternalError,
    LinkLost,
    MeshnodeError,
    ModelUnavailable,
    Overloaded,
    ServingError,
    WorkerCrashed,
    WorkerFailed,
)
from meshnode.gossip.member import Member
from meshnode.inference import Chunk, End, Event, Request, Resume
from meshnode.names import ModelDigest, NodeId, short
from meshnode.patience import Patience, Silence
from meshnode.routing.ask import Ask
from meshnode.routing.bounce import MAX_BOUNCES, bounces
from meshnode.routing.breaker import Outcome
from meshnode.routing.continuation import Spoken
from meshnode.routing.estimate import is_measured
from meshnode.routing.explain import Explanation, barred
from meshnode.routing.patience import silence_s
from meshnode.routing.policy import Choice, Policy, estimated
from meshnode.routing.router import Router
from meshnode.routing.scope import Scope
from meshnode.routing.table import RETRY_AFTER_S, Candidate, Route, route, unambiguous

MAX_ATTEMPTS = 3
"""One try and at most two more: beyond that a request that harms nodes only spreads."""
MAX_MOVES = 8
"""Of one answer, from nodes that drain: a mesh may be restarted node by node while it is written."""
MAX_WORKER_DEATHS = 2
"""A request under which two workers died is taken to be the cause (security rule 15)."""


class Dispatcher:
    """Runs requests on whichever backend shall answer them.

    `backend_of` may raise a ServingError for a peer just lost; `on_change` hears when a request is over, for the load changed.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        members: Callable[[], tuple[Member, ...]],
        backend_of: Callable[[Candidate], Backend],
        on_change: Callable[[], None],
        rng: random.Random,
        policy: Policy = estimated,
    ) -> None:
        self.me = me
        self.router = Router(policy=policy, rng=rng)
        self._rng = rng
        self._members = members
        self._backend_of = backend_of
        self._on_change = on_change

    @asynccontextmanager
    async def submit(self, request: Request, scope: Scope = Scope.ANY) -> AsyncIterator["Answer"]:
        """Answer `request` somewhere within `scope`. Raises as `routing.table.route`; leaving the block cancels the work."""
        async with AsyncExitStack() as attempts:
            answer = Answer(self, request, attempts, scope)
            await answer.start()
            yield answer

    def serve(self, request: Request, peer: NodeId) -> AbstractAsyncContextManager[Events]:
        """Answer a peer's request on our own backends: nothing is forwarded twice, and nobody takes turns in another's name."""
        caller = request.caller if request.caller.startswith(short(peer)) else short(peer)
        return self._serve(msgspec.structs.replace(request, hops=1, caller=caller))

    @asynccontextmanager
    async def _serve(self, request: Request) -> AsyncIterator[Events]:
        self._refuse_if_busy(request)
        async with self.submit(request) as answer:
            yield answer.events

    def _refuse_if_busy(self, request: Request) -> None:
        """Going by what we know of ourselves, raises Busy for a request that its asker had better send elsewhere, and Overloaded
        for one whose first token would be later than its caller waits."""
        if request.expected_ms is None and request.deadline_ms is None:
            return
        found = self.route(request)
        choice = self.router.choose(found.candidates, self.router.ask(request, found.digest), now=trio.current_time())
        if choice is None or choice.estimate is None or not is_measured(choice.candidate):
            return
        true_s = choice.estimate.first
        if request.deadline_ms is not None and (late_s := true_s - request.deadline_ms / 1000) > 0:
            message = f"The first token would come {late_s:.1f} s after the deadline that the caller set."
            raise Overloaded(message, retry_after=min(120.0, max(1.0, late_s)))
        if request.expected_ms is not None and bounces(
            expected_s=request.expected_ms / 1000, true_s=true_s, before=request.bounces
        ):
            raise Busy(f"The first token would take {true_s:.1f} s here.", retry_after=min(120.0, max(1.0, true_s)))

    def route(self, request: Request, scope: Scope = Scope.ANY) -> Route:
        """Who could serve it now. Raises when nobody can."""
        return route(request.model, self._members(), me=self.me, only_local=request.hops > 0, scope=scope)

    def explain(self, request: Request, *, prompt_tokens: int | None = None) -> Explanation:
        """Every node that could serve it now, with its estimate, and which would be chosen. Raises as `route`.

        `prompt_tokens` stands for a prompt of that length, of which nothing is cached.
        """
        found = self.route(request)
        ask = self.router.ask(request, found.digest)
        if prompt_tokens is not None:
            ask = msgspec.structs.replace(ask, prompt_tokens=float(prompt_tokens))
        explanation = self.router.explain(found.candidates, ask, now=trio.current_time())
        assert explanation is not None, "a route has a candidate"
        return msgspec.structs.replace(explanation, barred=barred(found, self._members()))

    @property
    def running(self) -> int:
        """Attempts under way, for ourselves and for peers."""
        return len(self.router.known.bookings)

    def draw_seed(self) -> int:
        return self._rng.getrandbits(63)

    @contextmanager
    def reserve(self, choice: Choice, ask: Ask) -> Iterator["Reservation"]:
        """Book the request at its node at once, before any gossip can tell, and until the attempt is over."""
        attempt = self.router.begin(choice, ask, now=trio.current_time())
        reservation = Reservation()
        try:
            yield reservation
        finally:
            self.router.end(attempt, reservation.outcome, now=trio.current_time())
            self._on_change()

    def backend_of(self, candidate: Candidate) -> Backend:
        return self._backend_of(candidate)


class Reservation:
    """Of one attempt: what became of it, which the router learns when it is over."""

    def __init__(self) -> None:
        self.outcome = Outcome.GIVEN_UP


class Answer:
    """An answer under way: iterate `events`.

    `model` is the name that was asked for, without a pin. `node` and `reason` are final once a Chunk has come, and until then
    name the attempt that is running.
    """

    def __init__(self, dispatcher: Dispatcher, request: Request, attempts: AsyncExitStack, scope: Scope) -> None:
        self.node = ""
        self.model = request.model
        self.reason = ""
        self.resumed = 0
        """How often it went on elsewhere after its first text."""
        self._dispatcher = dispatcher
        self._request = request
        self._attempts = attempts
        self._scope = scope
        self._tried: frozenset[NodeId] = frozenset()
        self._asked: NodeId | None = None
        """The one that was asked last."""
        self._ends_at = math.inf if request.deadline_ms is None else trio.current_time() + request.deadline_ms / 1000
        self._left_by: NodeId | None = None
        """The one that handed it over last."""
        self._moves = 0
        self._source: Patience | None = None
        self._local = False
        self._reservation = Reservation()
        """Of the attempt that is running, or ran last."""
        self._spoken = Spoken(request.n)
        self._digest = ModelDigest(b"")
        """The weights that speak; none where only a name is known."""
        self._failure: ServingError | None = None
        """The last one."""
        self._final: ServingError | None = None
        """The one that ends the answer."""

    @property
    def events(self) -> Events:
        return self

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if self._ends_at == math.inf:
            return await self._next()
        with trio.move_on_at(self._ends_at):
            return await self._next()
        self._final = DeadlineExceeded("The answer was not complete by the deadline that its caller set.")
        self._source = None
        raise self._final

    async def _next(self) -> tuple[Event, ...]:
        while True:
            if self._source is None:
                await self.start()
            assert self._source is not None
            try:
                batch = await self._source.next()
            except ServingError as error:
                self._give_up(error)
                continue
            except Silence:
                self._give_up_the_silent(self._source.silence_s)
                continue
            if news := tuple(filter(self._note, batch)):
                return news

    def _note(self, event: Event) -> bool:
        """Whether it is to be passed on."""
        match event:
            case Chunk():
                self._reservation.outcome = Outcome.SERVED
                return self._spoken.hear(event)
            case End(usage=usage) if self._request.inputs is None:
                tokens = usage.completion_tokens // max(1, self._request.n)
                self._dispatcher.router.learn_length(self._digest or self.model, tokens)
            case _:
                pass
        return True

    async def start(self) -> None:
        """Begin attempts until one is accepted; raises the last failure when nobody is left to ask.

        May be cancelled and called again: what was decided is kept in `_final` and `_tried` before anything is waited for.
        """
        while self._source is None:
            if self._final:
                raise self._final
            await self._attempts.aclose()  # the one that failed, or was cut while it began
            choice, ask = self._next_choice()
            candidate = choice.candidate
            self._tried |= {candidate.node}
            self._asked = candidate.node
            self.node = candidate.node_name
            self.reason = f"failover;retry={len(self._tried) - 1}" if len(self._tried) > 1 else choice.reason
            try:
                await self._attempt(choice, ask)
            except ServingError as error:
                self._give_up(error)
            except trio.Cancelled:
                self._tried -= {candidate.node}  # it was not given the time to answer
                raise

    async def _attempt(self, choice: Choice, ask: Ask) -> None:
        candidate = choice.candidate
        self._reservation = self._attempts.enter_context(self._dispatcher.reserve(choice, ask))
        backend = self._dispatcher.backend_of(candidate)
        self._digest = candidate.digest
        if candidate.digest and self._request.sampling.seed is None:  # whoever goes on must draw as this node does
            sampling = msgspec.structs.replace(self._request.sampling, seed=self._dispatcher.draw_seed())
            self._request = msgspec.structs.replace(self._request, sampling=sampling)
        if candidate.local:
            request = msgspec.structs.replace(self._request, model=candidate.model)
        else:
            expected = round(1000 * choice.estimate.first) if choice.estimate else None
            left = None if self._ends_at == math.inf else max(0, round(1000 * (self._ends_at - trio.current_time())))
            request = msgspec.structs.replace(
                self._request, model=unambiguous(candidate), hops=1, expected_ms=expected, deadline_ms=left
            )
        events = await self._attempts.enter_async_context(backend.submit(request))
        self._source = Patience(events, silence_s(candidate, ask))
        self._local = candidate.local

    def _next_choice(self) -> tuple[Choice, Ask]:
        try:
            found = self._dispatcher.route(self._request, self._scope)
        except ModelUnavailable as nobody:
            # The failed attempt says more than "nowhere up", except that only the latter tells when to come back.
            if self._failure and not self._spoken.begun and self._failure.retry_after is None:
                raise nobody from self._failure
            raise self._failure or nobody from None
        self.model = found.model
        left = self._left(found)
        router, now = self._dispatcher.router, trio.current_time()
        ask = router.ask(self._request, found.digest)
        choice = router.choose(left, ask, now=now)
        if choice is None or len(self._tried) >= MAX_ATTEMPTS:
            raise self._exhausted()
        if not self._tried:
            router.budget.request(now)
        elif not router.budget.take(now):
            raise self._exhausted()
        return choice, ask

    def _left(self, found: Route) -> list[Candidate]:
        """Those that were not asked, and could say the rest of what was begun."""
        left = [each for each in found.candidates if each.node not in self._tried and each.node != self._left_by]
        return [candidate for candidate in left if candidate.digest == self._digest] if self._spoken.begun else left

    def _exhausted(self) -> ServingError:
        """Every holder was asked and failed: to the caller that is 503, come back later, with the last failure's words."""
        failure = self._failure or InternalError("No node was asked.")
        if not failure.retryable or failure.retry_after is not None or self._spoken.begun:
            return failure
        message = f"No node could answer (tried {len(self._tried)}): {failure.message}"
        return ModelUnavailable(message, hint=failure.hint, retry_after=RETRY_AFTER_S)

    def _give_up(self, error: ServingError) -> None:
        """Decide, at once, whether the answer may still move to another node.

        A peer's request may not, and the peer hears the very error: it counts the workers that died under its request.
        """
        self._source = None
        self._failure = error
        self._reservation.outcome = Outcome.BUSY if isinstance(error, Overloaded | ModelUnavailable) else Outcome.FAILED
        if not error.retryable or self._request.hops or (self._spoken.begun and not self._can_go_on()):
            self._final = error
        elif isinstance(error, Busy) and self._request.bounces < MAX_BOUNCES:
            # It told its load besides, so it may be the best choice still, and then takes it. No second try: nothing failed.
            self._tried = self._tried - {self._asked}
            self._request = msgspec.structs.replace(self._request, bounces=self._request.bounces + 1)
        elif isinstance(error, Draining) and self._moves < MAX_MOVES:
            # No second try either. Once it has restarted and another node drains, it may be asked again.
            self._tried = self._tried - {self._asked}
            self._left_by = self._asked
            self._moves += 1
        elif isinstance(error, WorkerFailed):
            deaths = self._request.worker_deaths + 1
            self._request = msgspec.structs.replace(self._request, worker_deaths=deaths)
            if deaths >= MAX_WORKER_DEATHS:
                self._final = WorkerCrashed(f"{deaths} workers failed under this request: {error.message}")

    def _give_up_the_silent(self, silence_s: float) -> None:
        """Leave an attempt that says nothing, if there is anybody who might do better; else it is waited for all the same.

        A peer's request is always given up: the peer knows of others.
        """
        if not self._request.hops and not self._others_can():
            return
        words = f"{self.node} has said nothing about the request for {silence_s:.0f} s."
        self._give_up(WorkerFailed(words) if self._local else LinkLost(words))
        self._reservation.outcome = Outcome.SILENT

    def _others_can(self) -> bool:
        if len(self._tried) >= MAX_ATTEMPTS or (self._spoken.begun and self._resume() is None):
            return False
        try:
            return bool(self._left(self._dispatcher.route(self._request)))
        except MeshnodeError:
            return False

    def _resume(self) -> tuple[Resume, ...] | None:
        """Where another node can take over in the middle, which it can for text."""
        return self._spoken.resume() if self._digest and self._request.inputs is None else None

    def _can_go_on(self) -> bool:
        """Whether another node can take over; then the request says where."""
        resume = self._resume()
        if resume is None:
            return False
        self._request = msgspec.structs.replace(self._request, resume=resume)
        self.resumed += 1
        return True
