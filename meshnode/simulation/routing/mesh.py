"""Nodes that ask each other: what each has been told and when, attempts, bounces, failures (pure).

Every node is a router for its own clients and a server for all. Its router is the production one; all that this module adds is
time: news that travels, requests that take their way, failures that are noticed. What is not modelled: lost news (the links of a
mesh are ordered and reliable), the time of choosing, the loss of an answer on its way back.
"""

import heapq
from collections.abc import Callable
from typing import Any

import msgspec

from meshnode.names import NodeId
from meshnode.routing.ask import Ask
from meshnode.routing.bounce import bounces
from meshnode.routing.breaker import Outcome
from meshnode.routing.estimate import Own, estimate
from meshnode.routing.policy import Choice
from meshnode.routing.prefix import Sketch
from meshnode.routing.router import Attempt, Router
from meshnode.routing.table import Candidate
from meshnode.simulation.routing.rivals import EVERY, ORACLES, Truth
from meshnode.simulation.routing.server import DIGEST, Machine, Server, Work
from meshnode.simulation.routing.workload import BLOCK_TOKENS, Job, chance

RTT_S = 0.002
NEWS_S = 0.005
"""How long news takes to everybody."""
SKETCH_S = 5.0
"""At least, between two sketches of a node's cache."""
NOTICED_S = 0.05
"""Until a broken link is noticed."""
SILENT_S = 3.0
"""Until a silent node is not asked any more."""
RETRY_S = 1.0
"""Of a client that was told to come back."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How requests find their node. `affinity`: whether a cached prefix counts; `bouncing`: whether nodes give requests back."""

    policy: str = "estimate"
    gossip_s: float = 1.0
    affinity: bool = True
    bouncing: bool = True


class Request:
    """A client's request on its way to the last token. `entry` is the node that it asked."""

    def __init__(self, job: Job, entry: int) -> None:
        self.job = job
        self.entry = entry
        self.first: float | None = None
        self.chosen_at = 0.0
        self.expected_s = 0.0
        """From then to its first token, as estimated at the last choice; 0: not at all."""
        self.end: float | None = None
        self.hit = 0
        self.bounced = 0
        self.tries = 0
        self.tried: set[int] = set()
        self.ask = Ask(prompt_tokens=1, output_tokens=1)
        self.attempt: Attempt | None = None
        self.server = -1
        self.work: Work | None = None


class Mesh:
    def __init__(self, machines: tuple[Machine, ...], way: Way, *, seed: int, error: float = 0.0) -> None:
        self.way = way
        self.now = 0.0
        self.rng = chance(f"mesh:{seed}")
        self.servers = [Server(machine, error=self.rng.uniform(-error, error)) for machine in machines]
        self.finished: list[Request] = []
        self.sent = [0] * len(machines)
        self.bounced = self.failed_over = self.turned_away = 0
        self._oracle = ORACLES.get(way.policy)
        self._truth = Truth(lambda candidate, ask: self.servers[_index(candidate)].hit(ask.chain))
        policy = self._oracle or EVERY[way.policy]
        self._routers = [Router(policy=policy, rng=chance(f"router:{seed}:{number}")) for number in range(len(machines))]
        self._nodes = [NodeId(number.to_bytes(16, "big")) for number in range(len(machines))]
        self._news = [self._candidate(number, 0.0, exact=False) for number in range(len(machines))]
        self._fresher: list[dict[int, Candidate]] = [{} for _ in machines]
        """Of each router: what came with answers after the last news."""
        self._routable = [True] * len(machines)
        self._down = [False] * len(machines)
        self._open: list[set[Request]] = [set() for _ in machines]
        """Requests that are at each server, or on their way there."""
        self._sketched = [-SKETCH_S] * len(machines)
        self._salts = [self.rng.randbytes(16) for _ in machines]
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._version = [0] * len(machines)
        for number in range(len(machines)):
            self.at(self.rng.random() * way.gossip_s, self._gossip, number)

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action, arguments))

    def run(self, jobs: list[Job]) -> None:
        """Until all of them are answered."""
        for job in jobs:
            self.at(job.at, self._arrive, job)
        while len(self.finished) < len(jobs):
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)

    def slow(self, number: int, pace: float) -> None:
        """From now on it is at `pace` of its speed; 0: frozen, which others notice after a while."""
        server = self._at_work(number)
        server.pace = pace
        self._reschedule(number)
        if not pace:
            self.at(self.now + SILENT_S, self._fall_silent, number)
        elif not self._routable[number]:
            self._routable[number] = True

    def crash(self, number: int) -> None:
        self._at_work(number).crash()
        self._version[number] += 1
        self._down[number] = True
        self.at(self.now + NOTICED_S, self._lose, number)

    def come_back(self, number: int) -> None:
        self._at_work(number)
        self._down[number] = False
        self._routable[number] = True
        self._news[number] = self._candidate(number, self.now, exact=False)

    def _lose(self, number: int) -> None:
        """Everybody has noticed: nothing is sent there, and what was goes elsewhere."""
        self._routable[number] = not self._down[number]
        for request in sorted(self._open[number], key=lambda request: request.job.at):
            self._fail_over(request)

    def _fall_silent(self, number: int) -> None:
        if self.servers[number].pace:
            return
        self._routable[number] = False
        for request in sorted(self._open[number], key=lambda request: request.job.at):
            if request.work:
                server = self._at_work(number)
                server.drop(request.work)
            self._fail_over(request)
        self._reschedule(number)

    def _at_work(self, number: int) -> Server:
        server = self.servers[number]
        server.advance(self.now)
        return server

    def _candidate(self, number: int, told: float, *, exact: bool, local: bool = False) -> Candidate:
        node, load = self._nodes[number], self.servers[number].state(exact=exact)
        return Candidate(
            node=node, node_name=str(number), model="m", digest=DIGEST, load=load, load_at=told, rtt_ms=1000 * RTT_S, local=local
        )  # fmt: skip

    def _gossip(self, number: int) -> None:
        if not self._down[number] and self.servers[number].pace:
            self._at_work(number)
            sketch = None
            if self.way.affinity and self._oracle is None and self.now - self._sketched[number] >= SKETCH_S:
                self._sketched[number] = self.now
                sketch = Sketch.of([self.servers[number].cached()], self._salts[number])
            self.at(self.now + NEWS_S, self._hear, number, self._candidate(number, self.now + NEWS_S, exact=False), sketch)
        self.at(self.now + self.way.gossip_s * self.rng.uniform(0.9, 1.1), self._gossip, number)

    def _hear(self, number: int, news: Candidate, sketch: Sketch | None) -> None:
        self._news[number] = news
        for router, fresher in zip(self._routers, self._fresher, strict=True):
            fresher.pop(number, None)
            if sketch and sketch.marks:
                router.known.prefixes.tell(news.holder, sketch, self.now)

    def _hear_alone(self, router: int, number: int, news: Candidate) -> None:
        """With an answer."""
        if news.load_at > self._news[number].load_at:
            self._fresher[router][number] = news

    def _arrive(self, job: Job) -> None:
        alive = [number for number, down in enumerate(self._down) if not down and self.servers[number].pace]
        self._route(Request(job, self.rng.choice(alive)))

    def _seen(self, request: Request) -> list[Candidate]:
        entry, fresher = request.entry, self._fresher[request.entry]
        seen = []
        for number, news in enumerate(self._news):
            if not self._routable[number] or number in request.tried:
                continue
            if self._oracle or number == entry:
                self._at_work(number)
                seen.append(self._candidate(number, self.now, exact=self._oracle is not None, local=number == entry))
            else:
                seen.append(fresher.get(number, news))
        return seen

    def _route(self, request: Request) -> None:
        job, router = request.job, self._routers[request.entry]
        chain = job.chain if self.way.affinity else ()
        usual = job.output if self._oracle else router.usual_output(DIGEST)
        request.ask = Ask(prompt_tokens=job.prompt, output_tokens=usual, chain=chain, block_tokens=BLOCK_TOKENS)
        choice = self._choose(request, router)
        if choice is None:
            request.tried.clear()
            self.turned_away += 1
            self.at(self.now + RETRY_S, self._route, request)
            return
        request.server = _index(choice.candidate)
        request.attempt = router.begin(choice, request.ask, now=self.now)
        request.chosen_at, request.expected_s = self.now, request.attempt.first_s or 0.0
        request.tries += 1
        self.sent[request.server] += 1
        self._open[request.server].add(request)
        self.at(self.now + (0 if choice.candidate.local else RTT_S / 2), self._deliver, request, request.tries)

    def _choose(self, request: Request, router: Router) -> Choice | None:
        candidates = self._seen(request)
        if self._oracle and candidates:
            return self._oracle(candidates, request.ask, self._truth, now=self.now, rng=self.rng)
        return router.choose(candidates, request.ask, now=self.now)

    def _deliver(self, request: Request, tries: int) -> None:
        number = request.server
        if tries != request.tries or self._down[number]:
            return  # lost; the asker will notice
        server = self._at_work(number)
        if self._bounces(request, server):
            request.bounced += 1
            self.bounced += 1
            self._leave(request, Outcome.BUSY)
            self._hear_alone(request.entry, number, self._candidate(number, self.now + RTT_S / 2, exact=False))
            self.at(self.now + RTT_S / 2, self._route, request)
            return
        request.work = Work(request.job, request)
        server.take(request.work)
        if server.ready_at is not None:
            self.at(server.ready_at, self._load, number, server.ready_at)
        self._reschedule(number)

    def _bounces(self, request: Request, server: Server) -> bool:
        attempt = request.attempt
        if not self.way.bouncing or self._oracle or attempt is None or attempt.first_s is None or attempt.candidate.local:
            return False
        here = self._candidate(request.server, self.now, exact=False)
        true = estimate(here, request.ask, Own(blocks=server.hit(request.ask.chain)), now=self.now)
        return bounces(expected_s=attempt.first_s, true_s=true.first, before=request.bounced)

    def _load(self, number: int, due: float) -> None:
        server = self._at_work(number)
        if server.ready_at == due and not self._down[number]:
            server.finish_loading()
            self._reschedule(number)

    def _reschedule(self, number: int) -> None:
        self._version[number] += 1
        due = self.servers[number].next_change()
        if due is not None:
            self.at(due, self._change, number, self._version[number])

    def _change(self, number: int, version: int) -> None:
        if version != self._version[number]:
            return
        server = self._at_work(number)
        for work in server.begun():
            request = work.owner
            assert isinstance(request, Request)
            if request.first is None:
                request.first, request.hit = self.now, work.hit
        for work in server.ended():
            request = work.owner
            assert isinstance(request, Request)
            request.end = self.now
            self._leave(request, Outcome.SERVED)
            self._routers[request.entry].learn_length(DIGEST, work.job.output)
            self.finished.append(request)
            if request.entry != number:
                news = self._candidate(number, self.now + RTT_S / 2, exact=False)
                self.at(self.now + RTT_S / 2, self._hear_alone, request.entry, number, news)
        self._reschedule(number)

    def _leave(self, request: Request, outcome: Outcome) -> None:
        self._open[request.server].discard(request)
        if request.attempt:
            self._routers[request.entry].end(request.attempt, outcome, now=self.now)
        request.attempt = request.work = None

    def _fail_over(self, request: Request) -> None:
        """What was written already is read there (design D12)."""
        work = request.work
        self._leave(request, Outcome.FAILED)
        self.failed_over += 1
        request.tried.add(request.server)
        if work and work.begun:
            left = max(1, round(work.write * self.servers[request.server].machine.write))
            written = request.job.output - left
            request.job = msgspec.structs.replace(request.job, prompt=request.job.prompt + written, output=left)
        self._route(request)


def _index(candidate: Candidate) -> int:
    return int.from_bytes(candidate.node, "big")
