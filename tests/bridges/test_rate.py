"""How often a manager is asked, by its own figures."""

import random

from hypothesis import given
from hypothesis import strategies as st

from meshnode.bridges.rate import Rate

RNG = random.Random(1)


def told(limit: int, remaining: int, *, window: int = 900, reset: int | None = None) -> Rate:
    rate = Rate()
    headers = {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining), "x-ratelimit-window": str(window)}
    rate.answered(headers | ({} if reset is None else {"x-ratelimit-reset": str(reset)}))
    return rate


def test_without_figures_and_with_the_usual_ones_it_is_a_quarter_of_a_minute_or_a_half() -> None:
    for rate in (Rate(), told(10_000, 9_000), told(30_000, 29_000)):
        assert 15 <= rate.pause(1, RNG) <= 36


@given(st.integers(1, 200), st.integers(1, 8), st.integers(0, 2**32))
def test_a_window_never_takes_more_than_half_of_the_limit_from_all_bridges_together(limit: int, bridges: int, seed: int) -> None:
    pause = told(limit, limit).pause(1, random.Random(seed), bridges=bridges)

    assert 900 / pause * bridges <= max(limit / 2, 1) + 1e-9 or pause >= 900 * bridges


def test_thirty_calls_in_fifteen_minutes_are_enough_to_work_with() -> None:
    assert 60 <= told(30, 30).pause(1, RNG) <= 72


def test_with_little_left_it_is_spread_over_the_rest_of_the_window() -> None:
    assert told(1000, 5, reset=600).pause(1, RNG) >= 150
    assert told(1000, 0, reset=600).pause(1, RNG) >= 600


def test_a_refusal_backs_off_further_each_time_and_an_answer_ends_it() -> None:
    rate = Rate()
    pauses = []
    for _ in range(12):
        rate.refused()
        pauses.append(rate.pause(1, RNG))
    rate.answered({})

    assert pauses[0] >= 60
    assert pauses[1] >= 120
    assert max(pauses) <= 900 * 1.2
    assert rate.pause(1, RNG) <= 36


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_figures_that_are_none_do_no_harm(limit: str, remaining: str, window: str, reset: str) -> None:
    rate = Rate()
    rate.answered(
        {"x-ratelimit-limit": limit, "x-ratelimit-remaining": remaining, "x-ratelimit-window": window, "x-ratelimit-reset": reset}
    )

    assert 15 <= rate.pause(1, RNG) <= 1100
