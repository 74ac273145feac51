from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import Overloaded
from meshnode.inference import Priority
from meshnode.routing.queue import MAX_LENGTH, MAX_WAIT_S, QUANTUM_S, STARVED_S, Queue, Ticket

INTERACTIVE, DEFAULT, BATCH = Priority


def ticket(
    caller: str = "a", *, work_s: float = 1.0, priority: Priority = DEFAULT, since: float = 0.0, deadline: float | None = None
) -> Ticket:
    return Ticket(priority=priority, caller=caller, work_s=work_s, since=since, deadline=deadline)


def queue(*tickets: Ticket) -> Queue:
    waiting = Queue(max_length=1000, max_wait_s=1e9)
    for each in tickets:
        waiting.add(each, running_s=0.0, rate=1.0, now=each.since)
    return waiting


def order(waiting: Queue, now: float = 0.0) -> list[Ticket]:
    found = []
    while each := waiting.next(now):
        found.append(each)
    return found


def test_one_callers_requests_keep_their_order() -> None:
    tickets = [ticket(work_s=work) for work in (1.0, 5.0, 0.1)]

    assert order(queue(*tickets)) == tickets


def test_the_more_urgent_class_goes_first() -> None:
    late, usual, now = ticket(priority=BATCH), ticket(priority=DEFAULT), ticket(priority=INTERACTIVE)

    assert order(queue(late, usual, now)) == [now, usual, late]


def test_nobody_waits_for_ever_behind_the_more_urgent() -> None:
    old = ticket("old", priority=BATCH, since=0.0)
    waiting = queue(old, *(ticket(priority=INTERACTIVE, since=STARVED_S - 1) for _ in range(3)))

    assert waiting.next(STARVED_S - 0.1) is not old
    assert waiting.next(STARVED_S) is old


def test_who_brings_much_work_does_not_keep_others_waiting() -> None:
    greedy = [ticket("greedy", work_s=4.0) for _ in range(50)]
    modest = [ticket("modest", work_s=1.0) for _ in range(4)]
    found = order(queue(*greedy, *modest))

    assert {found.index(each) for each in modest} <= set(range(6))


works = st.lists(st.floats(0.01, 5.0), min_size=30, max_size=60)


@given(one=works, other=works)
def test_two_callers_get_equal_shares_of_the_work(one: list[float], other: list[float]) -> None:
    """As long as both have something to wait with, to within a quantum and the largest request."""
    waiting = queue(*(ticket("one", work_s=work) for work in one), *(ticket("other", work_s=work) for work in other))
    got, left = Counter[str](), Counter({"one": len(one), "other": len(other)})
    while min(left.values()):
        each = waiting.next(0.0)
        assert each
        got[each.caller] += each.work_s  # type: ignore[assignment]  # a Counter of seconds
        left[each.caller] -= 1
        assert abs(got["one"] - got["other"]) <= 2 * (5.0 + QUANTUM_S)


@given(
    tickets=st.lists(
        st.builds(
            ticket, st.sampled_from("abc"), work_s=st.floats(0, 1e6), priority=st.sampled_from(Priority), since=st.floats(0, 60)
        ),
        max_size=40,
    ),
    gone=st.sets(st.integers(0, 39)),
)
def test_everybody_comes_out_once_and_those_that_left_never(tickets: list[Ticket], gone: set[int]) -> None:
    waiting = queue(*tickets)
    left = {id(each) for place, each in enumerate(tickets) if place in gone}
    for each in tickets:
        if id(each) in left:
            waiting.remove(each)
            waiting.remove(each)

    assert len(waiting) == len(tickets) - len(left)
    assert sorted(map(id, order(waiting, 60.0))) == sorted(id(each) for each in tickets if id(each) not in left)
    assert len(waiting) == 0


def test_a_full_queue_refuses_and_says_when_there_will_be_room() -> None:
    waiting = Queue()
    for _ in range(MAX_LENGTH):
        waiting.add(ticket(work_s=0.5), running_s=0.0, rate=1.0, now=0.0)

    with pytest.raises(Overloaded, match="64 requests wait") as refusal:
        waiting.add(ticket(), running_s=33.0, rate=1.0, now=0.0)
    assert refusal.value.retry_after == 1.0
    assert len(waiting) == MAX_LENGTH


def test_a_wait_that_is_too_long_is_refused_with_the_time_until_it_is_not() -> None:
    waiting = Queue()
    waiting.add(ticket(work_s=100.0), running_s=20.0, rate=2.0, now=0.0)

    with pytest.raises(Overloaded, match="would wait for 75 s") as refusal:
        waiting.add(ticket(), running_s=50.0, rate=2.0, now=0.0)
    assert refusal.value.retry_after == 75 - MAX_WAIT_S
    with pytest.raises(Overloaded) as refusal:
        waiting.add(ticket(), running_s=1e6, rate=2.0, now=0.0)
    assert refusal.value.retry_after == 120


def test_the_time_to_come_back_is_true() -> None:
    """Whoever comes back then, when the work has gone on as told, is let in."""
    waiting = Queue()
    waiting.add(ticket(work_s=100.0), running_s=100.0, rate=2.0, now=0.0)
    with pytest.raises(Overloaded) as refusal:
        waiting.add(ticket(), running_s=100.0, rate=2.0, now=0.0)
    assert refusal.value.retry_after

    waiting.add(ticket(), running_s=100.0 - 2.0 * refusal.value.retry_after, rate=2.0, now=refusal.value.retry_after)


def test_the_urgent_wait_only_for_the_urgent() -> None:
    waiting = Queue()
    waiting.add(ticket(work_s=50.0, priority=BATCH), running_s=0.0, rate=1.0, now=0.0)

    assert waiting.wait_s(INTERACTIVE, running_s=3.0, rate=2.0) == 1.5
    assert waiting.wait_s(BATCH, running_s=3.0, rate=2.0) == 26.5


def test_whoever_cannot_be_answered_in_time_is_refused_or_taken_out() -> None:
    waiting = Queue()
    hurried, patient = ticket(work_s=2.0, deadline=10.0), ticket(work_s=2.0)
    waiting.add(hurried, running_s=5.0, rate=1.0, now=0.0)
    waiting.add(patient, running_s=5.0, rate=1.0, now=0.0)

    with pytest.raises(Overloaded, match="4 s later than the caller waits") as refusal:
        waiting.add(ticket(work_s=5.0, deadline=10.0), running_s=5.0, rate=1.0, now=0.0)
    assert refusal.value.retry_after == 4
    assert waiting.next_late() == 8.0
    assert waiting.take_late(8.0) == []
    assert waiting.take_late(8.1) == [hurried]
    assert waiting.next_late() is None
    assert order(waiting) == [patient]
