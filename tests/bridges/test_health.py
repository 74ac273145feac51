"""The verdicts on a remote: its probes and its breaker, on a clock of our own."""

import random

import pytest

from meshnode.bridges import health
from meshnode.bridges.health import Breaker, Health, State

RNG = random.Random(1)


def ready() -> Health:
    made = Health()
    made.answered()
    return made


def test_one_answer_makes_it_ready() -> None:
    assert Health().state is State.UNKNOWN
    assert ready().state is State.READY
    assert 15 <= ready().pause(RNG) <= 30


def test_what_never_answered_is_down_at_once() -> None:
    made = Health()
    made.failed("refused")

    assert made.state is State.DOWN
    assert made.reason == "refused"


def test_three_failures_in_a_row_are_a_verdict_and_fewer_are_looked_at_soon() -> None:
    made = ready()
    for _ in range(2):
        made.failed("slow")
        assert made.state is State.READY
        assert made.pause(RNG) == health.RETRY_S
    made.failed("slow")

    assert made.state is State.DOWN


def test_one_failure_is_enough_where_an_answer_was_lost_as_well() -> None:
    made = ready()
    made.failed("refused", confirmed=True)

    assert made.state is State.DOWN


def test_it_comes_back_after_two_answers() -> None:
    made = ready()
    made.failed("refused", confirmed=True)
    made.answered()
    after_one = made.state, made.pause(RNG)
    made.answered()

    assert after_one == (State.DOWN, health.RETRY_S)
    assert made.state is State.READY
    assert made.reason == ""


def test_what_warms_up_is_asked_each_second_for_a_while() -> None:
    made = Health()
    states = []
    for now in (100.0, 100.0 + health.MAX_WARMING_S):
        made.warming("loading", now)
        states.append((made.state, made.pause(RNG) == health.WARMING_S))
    made.answered()
    made.answered()
    made.warming("loading", 5000.0)

    assert states == [(State.WARMING, True), (State.DOWN, False)]
    assert made.state is State.WARMING


def end(breaker: Breaker, *oks: bool, now: float = 0.0) -> None:
    for ok in oks:
        breaker.began()
        breaker.ended(ok=ok, now=now)


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    breaker = Breaker()
    end(breaker, *[False] * 4, True, *[False] * 4)
    assert not breaker.is_open(0.0)
    end(breaker, False)

    assert breaker.is_open(59.9)
    assert not breaker.admits(59.9)


def test_half_of_ten_failures_open_it() -> None:
    breaker = Breaker()
    end(breaker, *[True, False] * 5)

    assert breaker.is_open(1.0)


def test_after_a_minute_three_may_try_and_two_that_go_well_close_it() -> None:
    breaker = Breaker()
    end(breaker, *[False] * 5)
    for _ in range(3):
        assert breaker.admits(60.0)
        breaker.began()
    assert not breaker.admits(60.0)
    breaker.ended(ok=True, now=61.0)
    breaker.ended(ok=True, now=61.0)
    for _ in range(20):
        assert breaker.admits(61.0)
        breaker.began()


def test_a_trial_that_fails_opens_it_again() -> None:
    breaker = Breaker()
    end(breaker, *[False] * 5)
    end(breaker, False, now=60.0)

    assert breaker.is_open(119.0)


@pytest.mark.parametrize("oks", [[True] * 30, [True, True, False] * 10])
def test_a_few_failures_among_many_answers_open_nothing(oks: list[bool]) -> None:
    breaker = Breaker()
    end(breaker, *oks)

    assert not breaker.is_open(0.0)
