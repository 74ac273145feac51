import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.names import ModelDigest, NodeId
from meshnode.routing.ask import Ask
from meshnode.routing.estimate import BRIDGE_S, LOAD_S, Own, Speed, best_told, estimate
from meshnode.routing.table import Candidate
from meshnode.wire.messages import ModelState

ASK = Ask(prompt_tokens=1000, output_tokens=100, chain=(1, 2, 3, 4), block_tokens=64)
NOW = 50.0


def candidate(
    *, age: float = 0.0, local: bool = False, origin: str = "", rtt_ms: float | None = 4.0, **load: float | str
) -> Candidate:
    figures = {"slots": 4, "prefill_per_s": 500.0, "prefill_ms": 100.0, "step_ms": 20.0, "stream_ms": 5.0, **load}
    state = msgspec.structs.replace(ModelState("m", ModelDigest(b""), "ready"), **figures)
    node = NodeId(bytes(16))
    return Candidate(
        node=node, node_name="a", model="m", digest=ModelDigest(b""), load=state, load_at=NOW - age, rtt_ms=rtt_ms, local=local,
        origin=origin,
    )  # fmt: skip


def test_an_idle_node_costs_the_round_trip_the_reading_and_the_writing() -> None:
    found = estimate(candidate(), ASK, now=NOW)

    assert (found.rtt, found.wait, found.load, found.penalty) == (0.004, 0.0, 0.0, 0.0)
    assert found.prefill == pytest.approx(0.1 + 1000 / 500)
    assert found.decode == pytest.approx(100 * 0.02)
    assert found.first == pytest.approx(0.004 + 2.1)
    assert found.finish == pytest.approx(found.first + found.decode)
    assert found.alone == pytest.approx(4.1)


def test_streams_beside_ours_slow_it_down_by_the_fit_of_the_steps() -> None:
    found = estimate(candidate(active=2, remaining_ms=8000), ASK, now=NOW)

    assert found.wait == 0
    assert found.decode == pytest.approx(100 * (0.02 + 2 * 0.005))
    assert found.prefill == pytest.approx(2.1 * 1.5)


def test_without_a_free_slot_it_waits_for_its_share_of_what_is_left() -> None:
    """Four streams together get 4 / 1.75 of the work done that one would; ours is the third of three that wait."""
    found = estimate(candidate(active=4, queued=2, remaining_ms=12_000), ASK, now=NOW)

    assert found.wait == pytest.approx(12 * 1.75 / 4 * 3 / 6)


def test_the_work_of_old_news_has_gone_on_meanwhile() -> None:
    fresh, old, done = (
        estimate(candidate(active=4, queued=2, remaining_ms=12_000, age=age), ASK, now=NOW).wait for age in (0.0, 2.0, 60.0)
    )

    assert old == pytest.approx(fresh - 2.0 * 3 / 6)
    assert done == 0


def test_own_bookings_are_added_to_what_the_node_told() -> None:
    told = estimate(candidate(active=4, queued=2, remaining_ms=12_000), ASK, now=NOW)
    ours = estimate(candidate(active=4, queued=1, remaining_ms=8000), ASK, Own(booked=1, booked_s=4.0), now=NOW)

    assert ours == told


def test_the_cached_beginning_is_not_read_again_and_at_least_one_token_is() -> None:
    some = estimate(candidate(), ASK, Own(blocks=4), now=NOW)
    everything = estimate(candidate(), msgspec.structs.replace(ASK, prompt_tokens=200), Own(blocks=4), now=NOW)

    assert some.cached == 256
    assert some.prefill == pytest.approx(0.1 + 744 / 500)
    assert everything.prefill == pytest.approx(0.1 + 1 / 500)


def test_a_full_cache_makes_it_wait_for_the_end_of_one_that_runs() -> None:
    roomy = candidate(active=2, remaining_ms=6000, kv_free_tokens=5000)
    full = candidate(active=2, remaining_ms=6000, kv_free_tokens=300)

    assert estimate(roomy, ASK, now=NOW).wait == 0
    assert estimate(full, ASK, now=NOW).wait > 0


def test_loading_costs_what_the_node_says_or_a_guess_and_what_is_left_of_it_while_it_loads() -> None:
    assert estimate(candidate(state="available", load_ms=9000), ASK, now=NOW).load == 9
    assert estimate(candidate(state="available"), ASK, now=NOW).load == LOAD_S
    assert estimate(candidate(state="loading", load_ms=9000, age=2.0), ASK, now=NOW).load == pytest.approx(7)
    assert estimate(candidate(state="loading", load_ms=9000, age=20.0), ASK, now=NOW).load == 0


def test_what_is_not_time_is_a_penalty_in_seconds() -> None:
    assert estimate(candidate(origin="cloud"), ASK, now=NOW).penalty == BRIDGE_S
    assert (
        0
        < estimate(candidate(), ASK, Own(failing=0.5), now=NOW).penalty
        < estimate(candidate(), ASK, Own(failing=1.0), now=NOW).penalty
    )


def test_we_ourselves_are_no_way_away_and_never_old_news() -> None:
    found = estimate(candidate(local=True, rtt_ms=None, age=9.0), ASK, now=NOW)

    assert (found.rtt, found.age) == (0, 0)
    assert estimate(candidate(rtt_ms=None, age=9.0), ASK, now=NOW).age == 9


def test_what_was_not_measured_is_taken_from_the_fastest_that_told() -> None:
    silent = candidate(prefill_per_s=0.0, step_ms=0.0)
    others = [candidate(prefill_per_s=100.0, step_ms=10.0), silent, candidate(prefill_per_s=800.0, step_ms=40.0)]

    assert best_told(others) == Speed(1 / 800, 0.01)
    assert estimate(silent, ASK, now=NOW, unknown=best_told(others)).decode == pytest.approx(100 * 0.01)
    assert best_told([silent]) == Speed()


counts = st.integers(0, 2**53)
reals = st.floats(0, 1e12)
loads = st.builds(
    ModelState,
    st.just("m"),
    st.just(ModelDigest(b"")),
    st.sampled_from(["ready", "available", "loading"]),
    counts, counts, counts, counts, counts, reals, reals, reals, reals, reals, counts,
)  # fmt: skip
asks = st.builds(Ask, prompt_tokens=st.floats(1, 1e7), output_tokens=st.floats(1, 1e6), chain=st.just((1, 2)))
owns = st.builds(Own, st.integers(0, 1000), st.floats(0, 1e6), st.integers(0, 2), st.floats(0, 1))


@given(load=loads, ask=asks, own=owns, age=st.floats(-10, 1e6))
def test_whatever_a_node_tells_no_term_is_negative_or_no_number(load: ModelState, ask: Ask, own: Own, age: float) -> None:
    found = estimate(msgspec.structs.replace(candidate(age=age), load=load), ask, own, now=NOW)

    assert all(value >= 0 and not math.isnan(value) for value in msgspec.structs.astuple(found))


@given(load=loads, ask=asks, more=st.floats(0, 1e6))
def test_more_work_booked_never_makes_it_faster(load: ModelState, ask: Ask, more: float) -> None:
    busy = msgspec.structs.replace(candidate(), load=load)
    less = estimate(busy, ask, Own(booked=1, booked_s=1.0), now=NOW)

    assert estimate(busy, ask, Own(booked=1, booked_s=1.0 + more), now=NOW).finish >= less.finish
