import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.routing.breaker import FIRST_S, LONGEST_S, Breaker, Mode, Outcome
from meshnode.routing.budget import BURST, RetryBudget

FAILED, SERVED, BUSY, GIVEN_UP = Outcome.FAILED, Outcome.SERVED, Outcome.BUSY, Outcome.GIVEN_UP
SILENT = Outcome.SILENT


def after(*outcomes: Outcome, start: float = 0.0, apart: float = 1.0) -> Breaker:
    breaker = Breaker()
    for number, outcome in enumerate(outcomes):
        breaker.begin(start + apart * number)
        breaker.end(outcome, start + apart * number)
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "mode"),
    [
        ((FAILED, FAILED), Mode.CLOSED),
        ((FAILED, FAILED, FAILED), Mode.OPEN),
        ((FAILED, FAILED, SERVED, FAILED), Mode.CLOSED),
        ((SERVED, FAILED, SERVED, FAILED, FAILED), Mode.OPEN),
        ((SERVED, SERVED, SERVED, FAILED, FAILED), Mode.CLOSED),
        ((BUSY,) * 20, Mode.CLOSED),
        ((GIVEN_UP,) * 20, Mode.CLOSED),
        ((FAILED, BUSY, FAILED, GIVEN_UP, FAILED), Mode.OPEN),
        ((SERVED, SERVED, SILENT), Mode.OPEN),
    ],
)
def test_failures_open_it_and_what_is_none_does_not(outcomes: tuple[Outcome, ...], mode: Mode) -> None:
    assert after(*outcomes).mode(float(len(outcomes))) is mode


def test_failures_far_apart_do_not_open_it() -> None:
    assert after(*[FAILED] * 10, apart=20.0).mode(200.0) is Mode.CLOSED


def test_half_open_it_allows_one_attempt_at_a_time() -> None:
    breaker = after(FAILED, FAILED, FAILED)
    barred, half = breaker.allows(2.0 + FIRST_S - 0.01), breaker.mode(2.0 + FIRST_S)
    allowed = breaker.allows(2.0 + FIRST_S)
    breaker.begin(2.0 + FIRST_S)

    assert (barred, half, allowed) == (False, Mode.HALF_OPEN, True)
    assert not breaker.allows(8.0)


@pytest.mark.parametrize(
    ("outcome", "mode"), [(SERVED, Mode.CLOSED), (FAILED, Mode.OPEN), (BUSY, Mode.HALF_OPEN), (GIVEN_UP, Mode.HALF_OPEN)]
)
def test_the_one_attempt_decides(outcome: Outcome, mode: Mode) -> None:
    breaker = after(FAILED, FAILED, FAILED)
    breaker.begin(8.0)
    breaker.end(outcome, 8.0)

    assert breaker.mode(8.1) is mode
    assert breaker.allows(8.1) == (mode is not Mode.OPEN)


def test_it_stays_open_longer_each_time_and_a_minute_at_most() -> None:
    breaker, now, stays = after(FAILED, FAILED, FAILED), 2.0, []
    for _ in range(7):
        stays.append(breaker.retry_at() - now)
        now = breaker.retry_at()
        breaker.begin(now)
        breaker.end(FAILED, now)

    assert stays == [5.0, 10.0, 20.0, 40.0, LONGEST_S, LONGEST_S, LONGEST_S]


def test_attempts_that_began_before_it_opened_do_not_keep_it_open_longer() -> None:
    breaker = Breaker()
    for _ in range(9):
        breaker.begin(0.0)
    for _ in range(9):
        breaker.end(FAILED, 1.0)

    assert breaker.retry_at() == 1.0 + FIRST_S


def test_one_that_closed_again_begins_anew() -> None:
    breaker = after(FAILED, FAILED, FAILED)
    breaker.begin(8.0)
    breaker.end(SERVED, 8.0)
    breaker.begin(8.5)
    breaker.end(FAILED, 8.5)

    assert breaker.mode(9.0) is Mode.CLOSED
    assert breaker.failing(9.0) == 0.5
    assert not breaker.is_idle(9.0)
    assert breaker.is_idle(60.0)


outcomes = st.lists(st.tuples(st.sampled_from(Outcome), st.floats(0, 30)), max_size=60)


@given(outcomes=outcomes)
def test_whatever_happened_it_allows_an_attempt_within_a_minute(outcomes: list[tuple[Outcome, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for outcome, wait in outcomes:
        now += wait
        breaker.begin(now)
        breaker.end(outcome, now)

    assert breaker.allows(now + LONGEST_S)
    assert 0 <= breaker.failing(now) <= 1


def test_a_tenth_more_and_a_burst_are_what_second_tries_may_cost() -> None:
    budget = RetryBudget()
    burst = sum(budget.take(0.0) for _ in range(1000))
    for _ in range(1000):
        budget.request(0.0)
        budget.take(0.0)
    again = sum(budget.take(0.0) for _ in range(1000))

    assert burst == BURST
    assert again <= 1


def test_who_asks_seldom_has_second_tries_too() -> None:
    budget = RetryBudget()
    while budget.take(0.0):
        pass

    assert [budget.take(10.0), budget.take(10.0), budget.take(10.0)] == [True, True, False]
