"""Failover, reservation and cancellation over fakes; the time is trio's, and never slept for real."""

import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from meshnode.backend import Backend, Events
from meshnode.dispatch import MAX_ATTEMPTS, MAX_MOVES, Answer, Dispatcher
from meshnode.errors import (
    Busy,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    LinkLost,
    MeshnodeError,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    WorkerCrashed,
    WorkerFailed,
)
from meshnode.gossip.member import Member
from meshnode.inference import Chunk, End, Event, Finish, Message, Phase, Progress, Request, Resume, ToolCall, Usage
from meshnode.names import ModelDigest, short
from meshnode.routing.ask import ask_of
from meshnode.routing.breaker import FIRST_S
from meshnode.routing.patience import UNMEASURED_S, WORKER_S, silence_s
from meshnode.routing.table import Candidate, route
from meshnode.testing import FakeWorker, fake_member, renamed

ASK = Request(id="r1", model="m", messages=(Message(role="user", content="Say something."),))


def dispatcher(
    workers: Mapping[str, FakeWorker], *, me: str = "entry", members: Callable[[], tuple[Member, ...]] | None = None
) -> Dispatcher:
    everyone = (fake_member(me), *(fake_member(name, "m") for name in workers if name != me))
    if me in workers:
        everyone = (fake_member(me, "m"), *everyone[1:])

    def backend_of(candidate: Candidate) -> Backend:
        return workers[candidate.node_name]

    return Dispatcher(
        me=everyone[0].id,
        members=members or (lambda: everyone),
        backend_of=backend_of,
        on_change=lambda: None,
        rng=random.Random(1),
    )


def failing(failure: Callable[[], MeshnodeError], after: int = 0) -> FakeWorker:
    return FakeWorker(fail_after=after, failure=failure)


async def text_of(answer: Answer) -> str:
    return "".join([event.text async for batch in answer.events for event in batch if isinstance(event, Chunk)])


async def test_an_answer_says_who_gave_it() -> None:
    async with dispatcher({"a": FakeWorker()}).submit(ASK) as answer:
        assert await text_of(answer) == "Hello from a fake worker."

        assert (answer.node, answer.model, answer.reason) == ("a", "m", "only-holder")


async def test_the_answer_has_the_name_that_was_asked_for_whatever_the_node_calls_it() -> None:
    members = (fake_member("entry"), fake_member("a", "m", weights="w"), fake_member("b", "other-name", weights="w", active=4))
    both = dispatcher({"a": FakeWorker(), "b": FakeWorker()}, members=lambda: members)
    async with both.submit(msgspec.structs.replace(ASK, model="other-name")) as answer:
        await text_of(answer)

    assert (answer.node, answer.model) == ("a", "other-name")


async def test_a_failure_before_the_first_chunk_is_answered_by_the_other_holder() -> None:
    workers = {"bad": failing(lambda: LinkLost("gone")), "good": FakeWorker(["fine"])}
    for _ in range(4):  # the order of asking is drawn
        async with dispatcher(workers).submit(ASK) as answer:
            assert await text_of(answer) == "fine"
            assert answer.node == "good"

    assert workers["bad"].requests
    assert workers["bad"].cancelled == 0


async def test_a_retried_answer_says_so() -> None:
    workers = {"entry": failing(lambda: Overloaded("full")), "other": FakeWorker(["fine"])}
    async with dispatcher(workers).submit(ASK) as answer:
        await text_of(answer)

    assert answer.reason == "failover;retry=1"


@pytest.mark.parametrize("after", range(1, 6))
async def test_an_answer_whose_node_is_lost_goes_on_at_another_with_the_same_weights(after: int) -> None:
    workers = {"entry": failing(lambda: LinkLost("gone"), after=after), "other": FakeWorker()}
    async with dispatcher(workers).submit(ASK) as answer:
        events = [event async for batch in answer.events for event in batch]

    chunks = [event for event in events if isinstance(event, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == "Hello from a fake worker."
    assert [token for chunk in chunks for token in chunk.token_ids] == [0, 1, 2, 3, 4, 5]
    assert isinstance(events[-1], End)
    assert events[-1].usage.completion_tokens == 6
    assert (answer.node, answer.resumed) == ("other", 1)
    first, second = workers["entry"].requests[0], workers["other"].requests[0]
    said = sum(len(word.text) for word in FakeWorker().words[:after])
    assert second.resume == (Resume(token_ids=tuple(range(after)), emitted_chars=said),)
    assert first.sampling.seed is not None
    assert second.sampling == first.sampling


async def test_who_goes_on_is_told_how_much_of_thoughts_and_calls_was_passed_on() -> None:
    calls = (ToolCall(0, "c", "f", '{"a":'), ToolCall(0, "", "", " 1}"))
    words = (Chunk(choice=0, text="", reasoning="Hm."), Chunk(choice=0, text="", tool_calls=calls), "!")
    lost = FakeWorker(words, fail_after=2, failure=lambda: LinkLost("gone"))
    workers = {"entry": lost, "other": FakeWorker(words)}
    async with dispatcher(workers).submit(ASK) as answer:
        assert await text_of(answer) == "!"

    assert workers["other"].requests[0].resume == (
        Resume(token_ids=(0, 1), emitted_chars=0, emitted_reasoning=3, emitted_arguments=8),
    )


async def test_of_an_answer_that_was_lost_after_its_last_word_only_the_end_is_asked_for() -> None:
    class Endless(FakeWorker):
        """Says its last word, with the finish, and is lost before its end."""

        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            async with super().submit(request) as events:
                yield without_end(events)

    async def without_end(events: Events) -> AsyncIterator[tuple[Event, ...]]:
        async for batch in events:
            yield tuple(event for event in batch if not isinstance(event, End))
        raise LinkLost("gone")

    workers = {"entry": Endless(), "other": FakeWorker()}
    async with dispatcher(workers).submit(ASK) as answer:
        assert await text_of(answer) == "Hello from a fake worker."

    assert workers["other"].steps == 0


@pytest.mark.parametrize("weights", ["other", ""], ids=["other weights", "no digest"])
async def test_a_failure_after_the_first_chunk_is_the_callers_to_see_where_nobody_has_the_same_weights(weights: str) -> None:
    """The other one would do before the first chunk, by its name or by a majority that has changed meanwhile."""
    here, there = fake_member("entry", "m", weights="mine"), fake_member("other", "m", weights=weights or "mine")
    if not weights:
        here, there = (
            renamed(member, *(msgspec.structs.replace(model, digest=ModelDigest(b"")) for model in member.models))
            for member in (here, there)
        )
    workers = {"entry": failing(lambda: LinkLost("gone"), after=2), "other": FakeWorker(["fine"])}
    with pytest.raises(LinkLost, match="gone"):
        async with dispatcher(workers, members=lambda: (here, there) if workers["entry"].requests else (here,)).submit(
            ASK
        ) as answer:
            await text_of(answer)

    assert not workers["other"].requests


async def test_vectors_are_not_gone_on_with_elsewhere() -> None:
    """Their text is no text, of which a beginning could be continued."""
    workers = {"entry": failing(lambda: LinkLost("gone"), after=2), "other": FakeWorker()}
    with pytest.raises(LinkLost, match="gone"):
        async with dispatcher(workers).submit(msgspec.structs.replace(ASK, messages=(), inputs=("a", "b"))) as answer:
            await text_of(answer)

    assert not workers["other"].requests


async def test_of_several_choices_each_goes_on_where_it_was_and_none_finishes_twice() -> None:
    """One had ended when the node was lost: that it has, is said once more by whoever goes on, and not passed on."""

    class Choices(FakeWorker):
        """Says these chunks, then is lost or ends."""

        def __init__(self, *chunks: Chunk, lost: bool = False) -> None:
            super().__init__()
            self.chunks, self.lost = chunks, lost

        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            self.requests.append(request)
            yield self.events()

        async def events(self) -> AsyncIterator[tuple[Event, ...]]:
            for chunk in self.chunks:
                yield (chunk,)
            if self.lost:
                raise LinkLost("gone")
            yield (End(usage=Usage(prompt_tokens=1, completion_tokens=4)),)

    begun = [
        Chunk(choice=0, text="a", token_ids=(1,)),
        Chunk(choice=1, text="x", token_ids=(7,)),
        Chunk(choice=0, text="b", token_ids=(2,), finish=Finish.STOP),
    ]
    rest = [Chunk(choice=0, text="", finish=Finish.STOP), Chunk(choice=1, text="y", token_ids=(8,), finish=Finish.LENGTH)]
    workers = {"entry": Choices(*begun, lost=True), "other": Choices(*rest)}
    asked = msgspec.structs.replace(ASK, n=2)
    async with dispatcher(dict(workers)).submit(asked) as answer:
        events = [event async for batch in answer.events for event in batch]

    assert events[:-1] == [*begun, rest[1]]
    assert workers["other"].requests[0].resume == (
        Resume(token_ids=(1, 2), emitted_chars=2),
        Resume(token_ids=(7,), emitted_chars=1),
    )


async def test_where_no_further_node_can_go_on_the_failure_is_the_one_that_was_seen() -> None:
    workers = {"entry": failing(lambda: LinkLost("first"), after=2), "other": failing(lambda: LinkLost("second"), after=3)}
    with pytest.raises(LinkLost, match="second"):
        async with dispatcher(workers).submit(ASK) as answer:
            await text_of(answer)


async def test_when_every_holder_failed_the_caller_is_told_to_come_back() -> None:
    workers = {"a": failing(lambda: LinkLost("lost a")), "b": failing(lambda: LinkLost("lost b"))}
    with pytest.raises(ModelUnavailable, match=r"tried 2.*lost") as caught:
        async with dispatcher(workers).submit(ASK) as answer:
            await text_of(answer)

    assert caught.value.retry_after is not None


async def test_at_most_three_nodes_are_asked() -> None:
    workers = {name: failing(lambda: LinkLost("gone")) for name in "abcde"}
    with pytest.raises(ModelUnavailable):
        async with dispatcher(workers).submit(ASK) as answer:
            await text_of(answer)

    assert sum(len(worker.requests) for worker in workers.values()) == 3


async def test_the_callers_own_mistake_is_not_tried_elsewhere() -> None:
    workers = {"entry": failing(lambda: InvalidRequest("no such thing", param="x")), "b": FakeWorker()}
    with pytest.raises(InvalidRequest):
        async with dispatcher(workers).submit(ASK) as answer:
            await text_of(answer)

    assert not workers["b"].requests


async def test_a_request_under_which_two_workers_died_is_stopped() -> None:
    workers = {name: failing(lambda: WorkerFailed("killed by signal 11")) for name in "abc"}
    with pytest.raises(WorkerCrashed, match="2 workers"):
        async with dispatcher(workers).submit(ASK) as answer:
            await text_of(answer)

    assert sorted(request.worker_deaths for worker in workers.values() for request in worker.requests) == [0, 1]


async def test_a_peer_hears_of_the_worker_that_died_under_its_request() -> None:
    """Else it would not count the death, and ask the next node and the next."""
    serving = dispatcher({"a": failing(lambda: WorkerFailed("killed by signal 11"))}, me="a")
    with pytest.raises(WorkerFailed, match="signal 11"):
        async with serving.serve(ASK, fake_member("entry").id) as events:
            assert [batch async for batch in events]


async def test_a_holder_that_vanished_meanwhile_leaves_503() -> None:
    here = fake_member("entry")
    views = [(here, fake_member("a", "m")), (here, fake_member("a", "m", routable=False, reason="link lost"))]
    broken = dispatcher({"a": failing(lambda: LinkLost("gone"))}, members=lambda: views.pop(0) if len(views) > 1 else views[0])
    with pytest.raises(ModelUnavailable, match="link lost") as caught:
        async with broken.submit(ASK) as answer:
            await text_of(answer)

    assert caught.value.retry_after is not None


async def test_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFound):
        async with dispatcher({"a": FakeWorker()}).submit(msgspec.structs.replace(ASK, model="nope")):
            pass


async def test_a_peer_gets_the_name_with_the_digest_and_one_hop() -> None:
    workers = {"entry": FakeWorker(), "a": FakeWorker()}
    both = dispatcher(workers)
    async with both.submit(msgspec.structs.replace(ASK, model="m@a")) as answer:
        await text_of(answer)
    async with both.submit(msgspec.structs.replace(ASK, model="m@entry")) as answer:
        await text_of(answer)

    assert (workers["a"].requests[0].model, workers["a"].requests[0].hops) == ("m#6d000000", 1)
    assert (workers["entry"].requests[0].model, workers["entry"].requests[0].hops) == ("m", 0)


@pytest.mark.parametrize(("said", "taken"), [("", ""), ("someone", ""), ("own:key", "own:key")])
async def test_a_peer_takes_turns_in_its_own_name_alone(said: str, taken: str) -> None:
    worker, peer = FakeWorker(), fake_member("asker").id
    caller, own = said.replace("own", short(peer)), short(peer)
    async with dispatcher({"a": worker}, me="a").serve(msgspec.structs.replace(ASK, caller=caller), peer) as events:
        assert [batch async for batch in events]

    assert worker.requests[0].caller == (taken.replace("own", own) or own)


async def test_a_forwarded_request_is_never_forwarded_again() -> None:
    workers = {"other": FakeWorker()}
    relay = dispatcher(workers)
    with pytest.raises(ModelUnavailable):
        async with relay.serve(ASK, fake_member("other").id) as events:
            await anext(events)

    assert not workers["other"].requests


async def test_leaving_early_cancels_the_work_and_releases_the_reservation(autojump_clock: MockClock) -> None:
    workers = {"a": FakeWorker(delay=1.0), "b": FakeWorker(delay=1.0)}
    both = dispatcher(workers)
    for _ in range(2):
        async with both.submit(ASK) as answer:
            await anext(answer.events)

    assert sum(worker.cancelled for worker in workers.values()) == 2
    assert len(both.router.known.bookings) == 0


async def test_the_load_has_changed_when_a_request_is_over() -> None:
    changes: list[int] = []
    worker, members = FakeWorker(), (fake_member("entry", "m"),)
    alone = Dispatcher(
        me=members[0].id,
        members=lambda: members,
        backend_of=lambda _: worker,
        on_change=lambda: changes.append(worker.finished),
        rng=random.Random(1),
    )
    async with alone.submit(ASK) as answer:
        await text_of(answer)

    assert changes == [1]  # once, and after the backend let it go


async def test_requests_under_way_push_the_next_one_to_the_other_node(autojump_clock: MockClock) -> None:
    workers = {"a": FakeWorker(delay=1.0), "b": FakeWorker(delay=1.0)}
    both = dispatcher(workers)
    async with both.submit(ASK), both.submit(ASK), both.submit(ASK), both.submit(ASK):
        assert [len(worker.requests) for worker in workers.values()] == [2, 2]


async def test_a_cancelled_wait_loses_nothing(autojump_clock: MockClock) -> None:
    async with dispatcher({"a": FakeWorker(["one", " two"], delay=1.0)}).submit(ASK) as answer:
        with trio.move_on_after(0.5) as scope:
            await anext(answer.events)

        assert scope.cancelled_caught
        assert await text_of(answer) == "one two"


class SlowDoor(FakeWorker):
    """Takes `door` seconds to begin and as long to end, as a backend over a slow connection may."""

    door = 3.0

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        await trio.sleep(self.door)
        async with super().submit(request) as events:
            yield events
            await trio.sleep(self.door)


async def collect_impatiently(answer: Answer, patience: float) -> str:
    """Wait in slices of `patience` seconds, as the API does to send its keep-alive comments."""
    text = ""
    while True:
        with trio.move_on_after(patience):
            try:
                batch = await anext(answer.events)
            except StopAsyncIteration:
                return text
            text += "".join(event.text for event in batch if isinstance(event, Chunk))


async def test_a_candidate_whose_beginning_was_cut_by_impatience_is_asked_again(autojump_clock: MockClock) -> None:
    workers = {"entry": failing(lambda: LinkLost("gone")), "slow": SlowDoor(["fine"])}
    async with dispatcher(workers).submit(ASK) as answer:
        with trio.move_on_after(1):
            await anext(answer.events)
            await anext(answer.events)
        assert await collect_impatiently(answer, 4) == "fine"


async def test_a_decision_is_not_forgotten_when_the_wait_for_it_is_cut(autojump_clock: MockClock) -> None:
    """The first holder fails after its first word and is slow to end; the second must not be asked, whoever waits how."""
    first = SlowDoor(["Hello", " again"], fail_after=1, failure=lambda: WorkerCrashed("gone"))
    workers = {"entry": first, "other": FakeWorker(["Hello", " twice"])}
    with pytest.raises(WorkerCrashed):
        async with dispatcher(workers).submit(ASK) as answer:
            await collect_impatiently(answer, 3.5)

    assert not workers["other"].requests


async def test_a_request_can_be_explained_before_it_is_sent() -> None:
    both = dispatcher({"a": FakeWorker(), "b": FakeWorker()})
    explanation = both.explain(ASK)

    assert sorted(row.node_name for row in explanation.candidates) == ["a", "b"]
    assert [row.verdict.split(":")[0] for row in explanation.candidates if row.chosen] == ["chosen"]
    with pytest.raises(ModelNotFound):
        both.explain(msgspec.structs.replace(ASK, model="nope"))


async def test_a_node_that_failed_thrice_is_not_asked_and_second_tries_have_a_budget() -> None:
    workers = {"bad": failing(lambda: LinkLost("gone")), "good": FakeWorker(["fine"])}
    both = dispatcher(workers)
    for _ in range(40):
        async with both.submit(ASK) as answer:
            assert await text_of(answer) == "fine"
    while both.router.budget.take(trio.current_time()):
        pass
    lost = {name: failing(lambda: LinkLost("gone")) for name in "ab"}
    alone = dispatcher(lost)
    while alone.router.budget.take(trio.current_time()):
        pass
    with pytest.raises(ModelUnavailable, match="tried 1"):
        async with alone.submit(ASK) as answer:
            await text_of(answer)

    assert len(workers["bad"].requests) <= 3
    assert sum(len(worker.requests) for worker in lost.values()) == 1


async def test_who_has_the_model_and_cannot_be_asked_is_explained_too() -> None:
    away = fake_member("away", "m", routable=False, reason="draining")
    broken = fake_member("broken", "m")
    broken = msgspec.structs.replace(broken, load=(msgspec.structs.replace(broken.load[0], state="failed"),))
    everyone = (fake_member("entry"), fake_member("a", "m"), broken, away, fake_member("b", "other"))
    explanation = dispatcher({"a": FakeWorker()}, members=lambda: everyone).explain(ASK)

    assert [row.node_name for row in explanation.candidates] == ["a"]
    assert [(each.node_name, each.reason) for each in explanation.barred] == [
        ("away", "draining"),
        ("broken", "its model is failed"),
    ]


def told(member: Member, *, active: int = 0) -> Member:
    """`member` with measured speeds: one request takes 4 s there, of which it reads for 0.01."""
    load = msgspec.structs.replace(
        member.load[0], active=active, remaining_ms=4000 * active, prefill_per_s=1000.0, step_ms=20.0, stream_ms=5.0
    )
    return msgspec.structs.replace(member, load=(load,))


async def test_a_peer_gives_back_what_takes_much_longer_than_was_thought_but_not_for_ever() -> None:
    busy = told(fake_member("a", "m"), active=40)
    serving = dispatcher({"a": FakeWorker(["fine"])}, me="a", members=lambda: (busy,))
    hurried = msgspec.structs.replace(ASK, expected_ms=100)
    with pytest.raises(Busy, match=r"would take \d+\.\d s here") as caught:
        async with serving.serve(hurried, fake_member("entry").id):
            pass
    for patient in (ASK, msgspec.structs.replace(hurried, expected_ms=10**6), msgspec.structs.replace(hurried, bounces=2)):
        async with serving.serve(patient, fake_member("entry").id) as events:
            assert [batch async for batch in events]

    assert caught.value.retry_after is not None
    assert caught.value.code == "busy"


async def test_what_was_given_back_may_stay_where_it_was_and_is_no_failure() -> None:
    given_back: list[int] = []

    class Bouncing(FakeWorker):
        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            given_back.append(request.bounces)
            if request.bounces < 2:
                raise Busy("Later.")
            async with super().submit(request) as events:
                yield events

    lone = dispatcher({"a": Bouncing(["fine"])}, members=lambda: (fake_member("entry"), told(fake_member("a", "m"))))
    async with lone.submit(ASK) as answer:
        text = await text_of(answer)

    assert text == "fine"
    assert given_back == [0, 1, 2]
    assert answer.reason == "only-holder"


class Frozen(FakeWorker):
    """Says `before` words, then nothing for ever; or for `slow` seconds only that it is at it, and then the rest."""

    def __init__(self, *, before: int = -1, slow: float = 0.0) -> None:
        super().__init__()
        self.before = before
        self.slow = slow

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        async with super().submit(request) as events:
            yield _Freezing(events, self.before, self.slow)


class _Freezing:
    def __init__(self, events: Events, before: int, slow: float) -> None:
        self._events = events
        self._left = before + 1
        self._slow = slow

    def __aiter__(self) -> "_Freezing":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if self._left:
            self._left -= 1
            return await anext(self._events)
        if not self._slow:
            await trio.sleep_forever()
        await trio.sleep(1)
        self._slow -= 1
        if not self._slow:
            self._left = 100
        return (Progress(phase=Phase.PREFILL, done=1, total=9),)


def asked_first(workers: Mapping[str, FakeWorker]) -> Dispatcher:
    """Over peers that hold the same model, of which the first one is always asked first: the others are occupied."""
    holders = [fake_member(name, "m", active=30 * place) for place, name in enumerate(workers)]
    return dispatcher(workers, members=lambda: (fake_member("entry"), *holders))


@pytest.mark.parametrize("before", [-1, 0, 1, 4], ids=["no sign", "no word", "one word", "four words"])
async def test_a_frozen_peer_costs_three_seconds_and_somebody_else_goes_on(autojump_clock: MockClock, before: int) -> None:
    workers = {"frozen": Frozen(before=before), "other": FakeWorker()}
    both, start = asked_first(workers), trio.current_time()
    async with both.submit(ASK) as answer:
        text = await text_of(answer)

    assert text == "Hello from a fake worker."
    assert (answer.node, answer.resumed) == ("other", int(before > 0))
    assert 3 <= trio.current_time() - start < 3.5
    assert workers["frozen"].cancelled == 1


async def test_who_was_silent_once_is_left_in_peace_and_then_tried_again(autojump_clock: MockClock) -> None:
    workers = {"frozen": Frozen(), "other": FakeWorker()}
    both = asked_first(workers)
    for _ in range(5):
        async with both.submit(ASK) as answer:
            await text_of(answer)
    asked = len(workers["frozen"].requests)
    await trio.sleep(FIRST_S)
    async with both.submit(ASK) as answer:
        await text_of(answer)

    assert asked == 1
    assert len(workers["frozen"].requests) == 2


@pytest.mark.parametrize("before", [-1, 2], ids=["before the first word", "in the middle"])
async def test_who_says_that_he_is_at_it_is_waited_for_however_long_it_takes(autojump_clock: MockClock, before: int) -> None:
    workers = {"slow": Frozen(before=before, slow=600.0), "other": FakeWorker()}
    async with asked_first(workers).submit(ASK) as answer:
        assert await text_of(answer) == "Hello from a fake worker."

    assert (answer.node, answer.resumed) == ("slow", 0)
    assert not workers["other"].requests


async def test_the_silent_one_is_given_up_however_the_wait_is_sliced(autojump_clock: MockClock) -> None:
    workers = {"frozen": Frozen(before=0), "other": FakeWorker()}
    start = trio.current_time()
    async with asked_first(workers).submit(ASK) as answer:
        assert await collect_impatiently(answer, 2) == "Hello from a fake worker."

    assert trio.current_time() - start < 5


async def test_a_client_that_does_not_read_is_no_silence_of_the_node(autojump_clock: MockClock) -> None:
    workers = {"a": FakeWorker(), "other": FakeWorker()}
    async with asked_first(workers).submit(ASK) as answer:
        with trio.move_on_after(0):
            await anext(answer.events)
        await trio.sleep(60)
        await text_of(answer)

    assert answer.node == "a"


async def test_where_nobody_else_can_the_silent_one_is_waited_for(autojump_clock: MockClock) -> None:
    lone = {"silent": Frozen()}
    with trio.move_on_after(600) as scope:
        async with dispatcher(lone).submit(ASK) as answer:
            await text_of(answer)
    begun = {"silent": Frozen(before=1), "other": FakeWorker()}
    with trio.move_on_after(600) as middle:
        async with asked_first(begun).submit(msgspec.structs.replace(ASK, inputs=("a",), messages=())) as answer:
            await text_of(answer)

    assert scope.cancelled_caught
    assert middle.cancelled_caught
    assert not begun["other"].requests


async def test_a_peer_hears_that_our_own_worker_is_stuck(autojump_clock: MockClock) -> None:
    here = told(fake_member("a", "m"))
    serving = dispatcher({"a": Frozen()}, me="a", members=lambda: (here,))
    start = trio.current_time()
    with pytest.raises(WorkerFailed, match="said nothing"):
        async with serving.serve(ASK, fake_member("entry").id) as events:
            await anext(events)

    assert trio.current_time() - start == pytest.approx(WORKER_S)


def test_a_worker_may_be_silent_for_as_long_as_its_slowest_step_may_take() -> None:
    here = told(fake_member("a", "m"))
    asking = ask_of(ASK, ModelDigest(b""), usual_output=100)
    candidate = route("m", (here,), me=here.id).candidates[0]
    assert candidate.load
    slow = msgspec.structs.replace(candidate, load=msgspec.structs.replace(candidate.load, prefill_per_s=2.0))
    bridge = msgspec.structs.replace(candidate, origin="elsewhere")

    assert silence_s(candidate, asking) == WORKER_S
    assert silence_s(slow, asking) > 3 * 128 / 2.0
    assert silence_s(slow, msgspec.structs.replace(asking, prompt_tokens=1000.0)) > 3 * 1000 / 2.0
    assert silence_s(bridge, asking) == math.inf
    assert silence_s(msgspec.structs.replace(candidate, load=None), asking) == UNMEASURED_S


class Doors(FakeWorker):
    """Waits wherever a backend may wait, and counts what it began and what it ended."""

    def __init__(self, failure: Callable[[], MeshnodeError] | None = None, after: int | None = None) -> None:
        super().__init__(("one", " two", " three"), failure=failure, fail_after=after)
        self.open = 0

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        await trio.lowlevel.checkpoint()
        self.open += 1
        try:
            async with super().submit(request) as events:
                await trio.lowlevel.checkpoint()
                yield events
                await trio.lowlevel.checkpoint()
        finally:
            self.open -= 1


class CutAt(trio.abc.Instrument):
    """Cancels `scope` as `task` waits for the `at`th time."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, at: int) -> None:
        self._task = task
        self._scope = scope
        self._left = at

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def is_over_before(at: int, *, me: str, after: int, served: bool) -> bool:
    """Run a request of two attempts, cut at its `at`th await, and see that nothing is left; whether it was over before."""
    workers = {"first": Doors(lambda: LinkLost("gone"), after), "second": Doors()}
    holders = [fake_member(name, "m", active=30 * place) for place, name in enumerate(workers)]
    everyone = (*holders, *([] if me in workers else [fake_member(me)]))
    both = dispatcher(workers, me=me, members=lambda: everyone)
    with trio.CancelScope() as scope:
        cut = CutAt(trio.lowlevel.current_task(), scope, at)
        trio.lowlevel.add_instrument(cut)
        try:
            if served:
                async with both.serve(ASK, fake_member("asker").id) as events:
                    assert [batch async for batch in events]
            else:
                async with both.submit(ASK) as answer:
                    assert await text_of(answer) == "one two three"
        except LinkLost:
            assert served
        finally:
            trio.lowlevel.remove_instrument(cut)
    assert len(both.router.known.bookings) == 0
    assert [worker.open for worker in workers.values()] == [0, 0]
    assert sum(len(worker.requests) for worker in workers.values()) == sum(
        worker.finished + worker.cancelled for worker in workers.values()
    )
    return not scope.cancel_called


@pytest.mark.parametrize(
    ("me", "served"), [("entry", False), ("first", False), ("first", True)], ids=["far", "here", "for a peer"]
)
@pytest.mark.parametrize("after", [0, 2], ids=["moved before the first word", "moved after it"])
async def test_a_request_cut_at_any_await_leaves_nothing_behind(me: str, served: bool, after: int) -> None:
    at = 1
    while not await is_over_before(at, me=me, after=after, served=served):
        at += 1

    assert at > 4 if served else at > 8


@pytest.mark.parametrize("after", [0, 3], ids=["before the first word", "in the middle"])
async def test_a_node_that_drains_hands_over_and_that_is_no_failure(after: int) -> None:
    workers = {"leaving": failing(lambda: Draining("leaving"), after=after), "other": FakeWorker()}
    both = asked_first(workers)
    before = both.router.budget._left
    for _ in range(6):
        async with both.submit(ASK) as answer:
            assert await text_of(answer) == "Hello from a fake worker."
            assert answer.node == "other"

    assert len(workers["leaving"].requests) == 6, "no breaker bars it"
    assert both.router.budget._left >= before - 0.01


async def test_an_answer_outlives_the_restart_of_every_node_and_may_come_back_to_the_first() -> None:
    """Three nodes hand it over in turn; two more than may be asked when they fail."""

    class Leaving(FakeWorker):
        """Says one more word each time, and leaves."""

        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            said = len(request.resume[0].token_ids) if request.resume else 0
            self.fail_after, self.failure = said + 1, lambda: Draining("leaving")
            async with super().submit(request) as events:
                yield events

    workers = {name: Leaving() for name in "abc"}
    async with dispatcher(workers).submit(ASK) as answer:
        assert await text_of(answer) == "Hello from a fake worker."

    assert answer.resumed == 5


async def test_nodes_that_all_drain_are_not_asked_for_ever() -> None:
    workers = {name: failing(lambda: Draining("leaving")) for name in "ab"}
    with pytest.raises(ModelUnavailable):
        async with dispatcher(workers).submit(ASK) as answer:
            await text_of(answer)

    assert sum(len(worker.requests) for worker in workers.values()) <= MAX_MOVES + MAX_ATTEMPTS


@pytest.mark.parametrize("name", ["entry", "a"], ids=["here", "at a peer"])
async def test_an_answer_ends_at_the_deadline_of_its_caller(autojump_clock: MockClock, name: str) -> None:
    worker = FakeWorker(delay=1.0)
    start = trio.current_time()
    with pytest.raises(DeadlineExceeded):
        async with dispatcher({name: worker}).submit(msgspec.structs.replace(ASK, deadline_ms=3500)) as answer:
            await text_of(answer)

    assert trio.current_time() - start == pytest.approx(3.5)
    assert worker.cancelled == 1
    assert worker.requests[0].deadline_ms == 3500


async def test_a_second_node_is_told_what_is_left_of_the_time(autojump_clock: MockClock) -> None:
    workers = {"lost": FakeWorker(delay=1.0, fail_after=0, failure=lambda: LinkLost("gone")), "other": FakeWorker()}
    async with asked_first(workers).submit(msgspec.structs.replace(ASK, deadline_ms=10_000)) as answer:
        await text_of(answer)

    assert workers["other"].requests[0].deadline_ms == 8000


async def test_what_would_come_too_late_is_refused_at_once_with_the_time_to_come_back() -> None:
    busy = told(fake_member("a", "m"), active=40)
    serving = dispatcher({"a": FakeWorker()}, me="a", members=lambda: (busy,))
    with pytest.raises(Overloaded, match="after the deadline") as caught:
        async with serving.serve(msgspec.structs.replace(ASK, deadline_ms=500), fake_member("entry").id):
            pass

    assert 1 <= (caught.value.retry_after or 0) <= 120
