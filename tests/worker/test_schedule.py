"""Who is served next, and how much is read: over the engine where the order shows, else by plain calls."""

import pytest

pytest.importorskip("numpy")

from hypothesis import given
from hypothesis import strategies as st
from worker.table import Table

from meshnode.inference import End, Priority
from meshnode.worker import schedule
from meshnode.worker.engine import Engine
from meshnode.worker.generation import Choice, generation_of
from meshnode.worker.job import Job
from meshnode.worker.sampling import Sampler
from meshnode.worker.speed import FIRST_PREFILL, MIN_PREFILL, SHARED_STEP_S, STEP_S, Speed


def job(stream: int, length: int = 3, *, priority: Priority = Priority.DEFAULT, max_tokens: int | None = None) -> Job:
    prompt = [*[stream % 30 + 1] * (length - 1), 0]
    return Job(stream=stream, prompt=prompt, sampler=Sampler(seed=1, temperature=0), priority=priority, max_tokens=max_tokens)


def choice(length: int, *, submitted: float = 0, max_tokens: int | None = None, context_length: int = 10_000) -> Choice:
    due = schedule.due(submitted, Priority.DEFAULT)
    return generation_of(
        job(1, length, max_tokens=max_tokens), submitted=submitted, due=due, context_length=context_length
    ).choices[0]


def order_of_ends(engine: Engine) -> list[int]:
    order = []
    while engine.busy:
        order += [stream for stream, event in engine.step() if isinstance(event, End)]
    return order


def test_the_interactive_are_served_before_the_others_and_a_batch_last() -> None:
    table = Table(slots=1)
    engine = Engine(table, clock=table.clock)
    for stream, priority in enumerate((Priority.BATCH, Priority.DEFAULT, Priority.INTERACTIVE, Priority.INTERACTIVE)):
        engine.submit(job(stream, priority=priority))

    assert order_of_ends(engine) == [2, 3, 1, 0]


def test_a_batch_that_waited_long_enough_is_served_before_an_interactive_newcomer() -> None:
    table = Table(slots=1)
    engine = Engine(table, clock=table.clock)
    engine.submit(job(1, priority=Priority.BATCH))
    table.now = 2 * schedule.PATIENCE_S + 1
    engine.submit(job(2, priority=Priority.INTERACTIVE))

    assert order_of_ends(engine) == [1, 2]


def test_the_shortest_prompt_is_read_first() -> None:
    table = Table(slots=3, context_length=2000, batch_size=100, seconds_per_token=0.01)
    engine = Engine(table, clock=table.clock)
    for stream, length in enumerate((1000, 300, 50)):
        engine.submit(job(stream, length))

    assert order_of_ends(engine) == [2, 1, 0]


def test_a_long_prompt_is_not_overtaken_for_ever() -> None:
    """Short prompts come as fast as they can be read, and the long one is read all the same."""
    table = Table(slots=2, context_length=1000, batch_size=100, seconds_per_token=0.01, answer="")
    engine = Engine(table, clock=table.clock)
    engine.submit(job(0, 500))
    ends: list[int] = []
    for stream in range(1, 100):
        engine.submit(job(stream, 100))
        ends += [number for number, event in engine.step() if isinstance(event, End)]
        if 0 in ends:
            break

    assert ends[:1] != [0]
    assert 0 in ends
    assert table.now < (schedule.STRETCH + 2) * 5


@given(rooms=st.integers(0, 300), lengths=st.lists(st.integers(2, 200), max_size=5))
def test_pieces_fill_the_room_and_take_no_more_than_is_missing(rooms: int, lengths: list[int]) -> None:
    reading = [choice(length) for length in lengths]
    pieces = schedule.pieces(reading, rooms, 100)

    assert sum(count for _, count in pieces) == min(rooms, sum(lengths))
    assert all(0 < count <= each.missing for each, count in pieces)
    assert len(pieces) == len({id(each) for each, _ in pieces})


def test_a_large_limit_books_no_more_than_a_fair_share() -> None:
    assert schedule.booked(choice(100), 4096) == 100 + schedule.EXPECTED
    assert schedule.booked(choice(100, max_tokens=10), 4096) == 110
    assert schedule.booked(choice(100, max_tokens=9000), 4096) == 4096
    assert schedule.booked(choice(5000, max_tokens=9000), 4096) == 5000 + schedule.EXPECTED
    assert schedule.booked(choice(100, context_length=120), 4096) == 120


def test_the_remaining_work_is_what_is_not_read_and_a_usual_answer() -> None:
    choices = (choice(101), choice(11, max_tokens=20))

    assert schedule.remaining_s(choices, prefill_rate=10, step_s=0.5) == 11 + (schedule.EXPECTED + 20) / 2
    assert schedule.remaining_s(choices, prefill_rate=0, step_s=0) == 0


def test_the_engine_tells_of_the_work_that_is_left_until_none_is() -> None:
    table = Table(slots=1, context_length=2000, batch_size=100, seconds_per_token=0.01)
    engine = Engine(table, clock=table.clock)
    engine.submit(job(1))
    order_of_ends(engine)
    for stream in (2, 3):
        engine.submit(job(stream, 501, max_tokens=100))
    engine.step()
    engine.step()

    assert engine.remaining_s == pytest.approx((501 - 200 + 501 - 2) * 0.01 + 200 * 0.01, rel=0.1)
    order_of_ends(engine)
    assert engine.remaining_s == 0


def test_a_step_beside_decoding_streams_stays_short_and_one_without_takes_the_full_time() -> None:
    speed = Speed()
    assert speed.prefill_room(0) == speed.prefill_room(3) == FIRST_PREFILL
    speed.measure(0.05, decoded=4, read=0)
    speed.measure(1.0, decoded=0, read=1000)

    assert speed.prefill_room(4) == pytest.approx((SHARED_STEP_S - 0.05) * 1000, abs=1)
    assert speed.prefill_room(0) == STEP_S * 1000
    assert speed.tokens_per_s == pytest.approx(80)


def test_what_decoding_takes_is_taken_off_before_reading_is_measured() -> None:
    speed = Speed()
    speed.measure(0.1, decoded=4, read=0)
    speed.measure(0.3, decoded=4, read=100)

    assert speed.prefill_rate == pytest.approx(500)


def test_a_slow_model_reads_a_little_in_every_step() -> None:
    speed = Speed()
    speed.measure(0.5, decoded=2, read=0)
    speed.measure(10, decoded=0, read=100)

    assert speed.prefill_room(2) == MIN_PREFILL


def test_steps_are_known_by_the_number_of_streams_and_guessed_from_fewer() -> None:
    speed = Speed()
    assert speed.step_s(3) == 0
    speed.measure(0.1, decoded=2, read=0)
    speed.measure(0.2, decoded=8, read=0)

    assert [speed.step_s(streams) for streams in (0, 1, 2, 5, 8, 16)] == [0, 0.1, 0.1, 0.1, 0.2, 0.2]


def test_what_a_stream_adds_to_a_step_is_a_line_through_the_ends() -> None:
    speed = Speed()
    assert speed.line() == (0, 0)
    speed.measure(0.1, decoded=2, read=0)
    assert speed.line() == (0.1, 0)
    speed.measure(0.16, decoded=4, read=0)

    assert speed.line() == pytest.approx((0.07, 0.03))
