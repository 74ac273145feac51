"""The open requests of one model, without a child."""

from typing import cast

import msgspec
import pytest
from worker.asking import ask

from meshnode.errors import Overloaded
from meshnode.inference import End, Message, Phase, Progress, Request, Sampling, Usage
from meshnode.worker import requests
from meshnode.worker.child import Child
from meshnode.worker.protocol import Step
from meshnode.worker.requests import LONGEST_RETRY_S, Requests, work_s
from meshnode.worker.stream import Stream


@pytest.mark.parametrize(("remaining_s", "retry_after"), [(0.0, 1.0), (40.0, 10.0), (1e6, LONGEST_RETRY_S)])
async def test_who_is_refused_is_told_when_one_of_those_before_him_may_have_ended(
    monkeypatch: pytest.MonkeyPatch, remaining_s: float, retry_after: float
) -> None:
    monkeypatch.setattr(requests, "MAX_WAITING", 2)
    full = Requests("demo", slots=2)
    for _ in range(4):
        full.open(ask(), None)
    with pytest.raises(Overloaded) as caught:
        full.open(ask(), None, remaining_s=remaining_s)

    assert caught.value.retry_after == retry_after


class FakeChild:
    """Notes the requests that it was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.unsent = 0

    def send(self, data: bytes) -> None:
        self.sent.append(data)


END = End(usage=Usage(prompt_tokens=1, completion_tokens=1))


def asked_by(caller: str, **fields: object) -> Request:
    return msgspec.structs.replace(ask(), caller=caller, **fields)


async def test_callers_take_turns_and_the_child_has_a_few_more_than_its_slots() -> None:
    """One who sends twenty does not keep another waiting for all of them."""
    child = FakeChild()
    every = Requests("demo", slots=2)
    opened: dict[int, tuple[str, Stream]] = {}
    for caller in (*["many"] * 20, "one"):
        number, stream = every.open(asked_by(caller), cast(Child, child))
        opened[number] = (caller, stream)
    before = len(child.sent)
    turns: list[str] = []
    while len(child.sent) < 21:
        running = next(number for number in opened if number in every._given)
        given = set(every._given)
        every.hear(running, END, cast(Child, child))
        every.close(running, opened[running][1], cast(Child, child))
        turns += [opened[number][0] for number in set(every._given) - given]

    assert before == 2 + requests.AHEAD
    assert "one" in turns[:2]
    assert turns.count("many") == 20 - before


async def test_who_leaves_the_queue_is_never_given_and_who_waits_is_told_so() -> None:
    child = FakeChild()
    every = Requests("demo", slots=1)
    opened = [every.open(asked_by("a"), cast(Child, child)) for _ in range(5)]
    waiting = await anext(opened[4][1])
    every.close(*opened[3], cast(Child, child))
    for number, stream in opened[:3]:
        every.close(number, stream, cast(Child, child))

    assert waiting == (Progress(phase=Phase.QUEUED),)
    assert opened[4][0] in every._given
    assert opened[3][0] not in every._given
    assert len(every) == 1
    assert not every._numbers
    assert every.waiting_s == 0


def test_the_work_of_a_request_grows_with_what_it_reads_and_writes() -> None:
    measured = Step(events=(), prefill_per_s=100.0, step_s=0.1)
    short = asked_by("a", sampling=Sampling(max_tokens=10))
    long = msgspec.structs.replace(short, messages=(Message(role="user", content="x" * 4000),))

    assert work_s(long, measured) == pytest.approx(10 + 1)
    assert work_s(short, measured) < 1.2
    assert work_s(msgspec.structs.replace(short, n=3), measured) > 3
    assert work_s(short, Step(events=())) > 0


async def test_what_takes_no_slot_does_not_wait() -> None:
    child = FakeChild()
    every = Requests("demo", slots=1)
    for _ in range(6):
        every.open(asked_by("a"), cast(Child, child))
    embedding, _ = every.open(asked_by("a", messages=(), inputs=("x",)), cast(Child, child))
    counting, _ = every.open(asked_by("a", sampling=Sampling(max_tokens=0)), cast(Child, child))

    assert {embedding, counting} <= set(every._given)
