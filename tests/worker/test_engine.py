"""The scheduler over a runtime that is a table of what to say: which rows each step had is read from its log."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

np = pytest.importorskip("numpy")

from worker.table import END, VOCABULARY, Table  # noqa: E402

from meshnode.errors import ContextTooLong, InternalError, Overloaded  # noqa: E402 - after the check for the extra
from meshnode.inference import Chunk, End, Finish, Phase, Priority, Progress, Resume, Usage  # noqa: E402
from meshnode.worker import schedule  # noqa: E402
from meshnode.worker.dialect import dialect_of  # noqa: E402
from meshnode.worker.engine import Engine, Happening  # noqa: E402
from meshnode.worker.job import Job  # noqa: E402
from meshnode.worker.penalties import Bias  # noqa: E402
from meshnode.worker.reader import Form  # noqa: E402
from meshnode.worker.runtime import Span  # noqa: E402
from meshnode.worker.sampling import Sampler  # noqa: E402


def engine_over(table: Table, max_waiting: int = 64) -> Engine:
    return Engine(table, clock=table.clock, max_waiting=max_waiting)


def job(stream: int, prompt: Sequence[int] = (5, 6, 0), *, max_tokens: int | None = None, stops: tuple[str, ...] = ()) -> Job:
    return Job(stream=stream, prompt=prompt, sampler=Sampler(seed=1, temperature=0), max_tokens=max_tokens, stops=stops)


def run(engine: Engine) -> list[Happening]:
    happened: list[Happening] = []
    while engine.busy:
        happened += engine.step()
    return happened


def chunks(happened: list[Happening], stream: int) -> list[Chunk]:
    return [event for number, event in happened if number == stream and isinstance(event, Chunk)]


def text(happened: list[Happening], stream: int) -> str:
    return "".join(chunk.text for chunk in chunks(happened, stream))


def end(happened: list[Happening], stream: int) -> End:
    (found,) = [event for number, event in happened if number == stream and isinstance(event, End)]
    return found


def slots_of(steps: list[list[Span]]) -> list[list[int]]:
    return [[span.slot for span in step] for step in steps]


def test_an_answer_ends_with_the_models_end_token() -> None:
    engine = engine_over(Table())
    engine.submit(job(1))
    happened = run(engine)

    assert text(happened, 1) == "HELLO"
    assert chunks(happened, 1)[-1].finish is Finish.STOP
    assert [token for chunk in chunks(happened, 1) for token in chunk.token_ids] == [*b"HELLO", END]
    assert end(happened, 1).usage.completion_tokens == 6
    assert end(happened, 1).usage.prompt_tokens == 3
    assert isinstance(happened[-1][1], End)


def test_max_tokens_ends_an_answer() -> None:
    engine = engine_over(Table())
    engine.submit(job(1, max_tokens=2))
    happened = run(engine)

    assert text(happened, 1) == "HE"
    assert chunks(happened, 1)[-1].finish is Finish.LENGTH
    assert sum(chunk.finish is not None for chunk in chunks(happened, 1)) == 1


def calling(answer: str, *, parallel: bool = True, max_tokens: int | None = None, resume: Resume | None = None) -> list[Chunk]:
    """What an engine makes of `answer`, in which \1 is the control token that begins a call."""
    engine = engine_over(Table(answer=answer, context_length=200))
    form = Form(
        thinking=("<t>", "</t>"), marks=HERMES, kinds={"f": {}}, parallel=parallel, controls={1: b"<tool_call>"}, seed="r"
    )
    engine.submit(replace(job(1, max_tokens=max_tokens), form=form, resume=(resume,) if resume else None))
    return chunks(run(engine), 1)


HERMES = dialect_of("tools <tool_call>", takes_tools=True).marks
CALL = '\1{"name": "f", "arguments": {"x": 1}}</tool_call>'


def test_thoughts_text_and_calls_come_apart_and_the_finish_says_so() -> None:
    said = calling("<t>HM</t>YES" + CALL + CALL)

    assert "".join(chunk.reasoning for chunk in said) == "HM"
    assert "".join(chunk.text for chunk in said) == "YES"
    assert [(call.index, call.name, call.arguments) for chunk in said for call in chunk.tool_calls] == [
        (0, "f", '{"x": 1}'),
        (1, "f", '{"x": 1}'),
    ]
    assert said[-1].finish is Finish.TOOL_CALLS
    assert sum(len(chunk.token_ids) for chunk in said) == len("<t>HM</t>YES" + CALL + CALL) + 1


def test_where_one_call_is_wanted_the_answer_ends_with_it() -> None:
    said = calling(CALL + CALL, parallel=False)

    assert len([call for chunk in said for call in chunk.tool_calls]) == 1
    assert said[-1].finish is Finish.TOOL_CALLS
    assert sum(len(chunk.token_ids) for chunk in said) == CALL.index("</tool_call>")


def test_a_call_that_is_cut_off_is_text_and_the_finish_is_the_limit() -> None:
    said = calling(CALL, max_tokens=9)

    assert "".join(chunk.text for chunk in said) == '<tool_call>{"name":'
    assert said[-1].finish is Finish.LENGTH


@pytest.mark.parametrize("cut", [1, 5, 8, 12, 20, 60, 95])
def test_an_answer_with_thoughts_and_calls_goes_on_where_another_node_left_it(cut: int) -> None:
    whole = calling("<t>HM</t>YES" + CALL + CALL)
    before, after = whole[:cut], whole[cut:]
    resume = Resume(
        token_ids=tuple(token for chunk in before for token in chunk.token_ids),
        emitted_chars=sum(len(chunk.text) for chunk in before),
        emitted_reasoning=sum(len(chunk.reasoning) for chunk in before),
        emitted_arguments=sum(len(call.arguments) for chunk in before for call in chunk.tool_calls),
    )

    assert calling("<t>HM</t>YES" + CALL + CALL, resume=resume) == after


def test_the_full_context_ends_an_answer_whatever_max_tokens_says() -> None:
    engine = engine_over(table := Table(context_length=10, answer="X" * 99))
    engine.submit(job(1, max_tokens=1000))
    happened = run(engine)

    assert text(happened, 1) == "X" * 7
    assert chunks(happened, 1)[-1].finish is Finish.LENGTH
    assert len(table.kept(0)) == 9


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    engine = engine_over(Table(context_length=10))

    with pytest.raises(ContextTooLong, match="10 tokens") as caught:
        engine.submit(job(1, prompt=(5,) * 9 + (0,)))
    assert caught.value.param == "messages"
    assert not engine.busy
    engine.submit(job(1, prompt=(5,) * 8 + (0,)))
    assert text(run(engine), 1) == "H"


def test_a_stop_string_is_not_emitted_and_ends_the_work() -> None:
    engine = engine_over(table := Table(answer="ABCDEFGH"))
    engine.submit(job(1, stops=("CD",)))
    happened = run(engine)

    assert [chunk.text for chunk in chunks(happened, 1)] == ["A", "B", "", ""]
    assert chunks(happened, 1)[-1].finish is Finish.STOP
    assert len(table.steps) == 4


def test_streams_share_a_batch_and_say_what_they_say_alone() -> None:
    engine = engine_over(table := Table(slots=4))
    for stream in range(4):
        engine.submit(job(stream, prompt=(stream + 1,) * (stream + 1) + (0,)))
    happened = run(engine)

    assert {text(happened, stream) for stream in range(4)} == {"HELLO"}
    assert len(table.steps) == 6
    assert all(len(step) == 4 for step in table.steps)


def test_who_waits_is_served_in_order_and_told_so() -> None:
    engine = engine_over(Table(slots=1))
    for stream in (1, 2, 3):
        engine.submit(job(stream))
    happened = run(engine)

    assert [number for number, event in happened if isinstance(event, End)] == [1, 2, 3]
    assert (3, Progress(phase=Phase.QUEUED, done=0, total=3)) in happened


def test_the_queue_has_an_end() -> None:
    engine = engine_over(Table(slots=1), max_waiting=2)
    for stream in (1, 2):
        engine.submit(job(stream))

    with pytest.raises(Overloaded):
        engine.submit(job(3))
    assert {number for number, _ in run(engine)} == {1, 2}


def test_decoding_streams_come_first_in_a_batch_and_never_miss_one() -> None:
    engine = engine_over(table := Table(context_length=200, answer="X" * 20))
    engine.submit(job(1))
    engine.step()
    engine.submit(job(2, prompt=(4,) * 99 + (0,)))
    while any(len(span.tokens) > 1 for step in table.steps[-1:] for span in step) or len(table.steps) < 3:
        engine.step()

    assert all(step[0].slot == 0 and len(step[0].tokens) == 1 for step in table.steps[1:])
    assert [len(step[1].tokens) for step in table.steps[1:8]] == [15] * 6 + [10]
    assert [step[1].last for step in table.steps[1:8]] == [False] * 6 + [True]


def test_prefill_is_cut_so_that_a_step_takes_about_its_time() -> None:
    table = Table(context_length=20_000, batch_size=512, seconds_per_token=0.01)
    engine = engine_over(table)
    engine.submit(job(1, prompt=(5,) * 2999 + (0,)))
    run(engine)

    sizes = [len(step[0].tokens) for step in table.steps if not step[0].last]
    assert sizes[0] == 128
    assert set(sizes[1:]) <= {99, 100}


def test_progress_is_told_about_every_second_until_the_first_token() -> None:
    table = Table(context_length=20_000, batch_size=512, seconds_per_token=0.01)
    engine = engine_over(table)
    engine.submit(job(1, prompt=(5,) * 1999 + (0,)))
    times = []
    while engine.busy:
        before = table.now
        if any(isinstance(event, Progress) for _, event in engine.step()):
            times.append(before)

    assert times[0] == 0
    assert max(b - a for a, b in pairwise(times)) <= 1.3
    assert times[-1] > 17


def test_a_cancelled_stream_gets_no_further_step() -> None:
    engine = engine_over(table := Table(answer="X" * 30))
    engine.submit(job(1))
    engine.submit(job(2))
    engine.step()
    engine.step()
    taken = len(table.steps)
    engine.cancel(1)
    happened = run(engine)

    assert slots_of(table.steps[:taken]) == [[0, 1]] * taken
    assert slots_of(table.steps[taken:]) == [[1]] * (31 - taken)
    assert {number for number, _ in happened} == {2}


def test_a_stream_cancelled_while_it_waits_or_is_read_gets_no_step_at_all() -> None:
    engine = engine_over(table := Table(slots=1, context_length=100))
    engine.submit(job(1, prompt=(5,) * 60 + (0,)))
    engine.submit(job(2))
    engine.step()
    engine.cancel(1)
    engine.cancel(2)

    assert not engine.busy
    assert run(engine) == []
    assert len(table.steps) == 1


def test_cancelling_an_unknown_stream_changes_nothing() -> None:
    engine = engine_over(Table())
    engine.submit(job(1))
    engine.cancel(77)

    assert text(run(engine), 1) == "HELLO"


def test_a_prompt_that_begins_like_an_old_one_is_only_read_from_there() -> None:
    engine = engine_over(table := Table())
    engine.submit(job(1, prompt=(5, 6, 7, 0)))
    run(engine)
    table.steps.clear()
    engine.submit(job(2, prompt=(5, 6, 8, 0)))
    happened = run(engine)

    assert [list(span.tokens) for span in table.steps[0]] == [[8, 0]]
    assert end(happened, 2).usage.cached_tokens == 2
    assert text(happened, 2) == "HELLO"


def test_the_same_prompt_again_is_read_from_its_last_token() -> None:
    engine = engine_over(table := Table())
    for stream in (1, 2):
        engine.submit(job(stream))
        happened = run(engine)

    assert text(happened, 2) == "HELLO"
    assert end(happened, 2).usage.cached_tokens == 2
    assert sum(len(step[0].tokens) for step in table.steps) == 3 + 5 + 1 + 5


def test_a_cancelled_streams_slot_keeps_what_is_true() -> None:
    """What the engine believes of a slot is what the runtime holds: the runtime asserts it on every row."""
    for steps in range(8):
        engine = engine_over(Table(slots=1))
        engine.submit(job(1, prompt=(5, 6, 0)))
        for _ in range(steps):
            engine.step()
        engine.cancel(1)
        engine.submit(job(2, prompt=(5, 6, 0)))

        assert text(run(engine), 2) == "HELLO"


def test_a_memory_that_cannot_be_cut_is_emptied() -> None:
    engine = engine_over(Table(slots=1, can_cut=False))
    for stream in (1, 2):
        engine.submit(job(stream))
        happened = run(engine)

    assert text(happened, 2) == "HELLO"
    assert end(happened, 2).usage.cached_tokens == 0


def test_the_longest_unused_slot_is_taken_when_none_begins_alike() -> None:
    engine = engine_over(table := Table(slots=3))
    for stream, first in enumerate((10, 20, 30, 40)):
        engine.submit(job(stream, prompt=(first, 0)))
        run(engine)

    assert [step[0].slot for step in table.steps if step[0].start == 0] == [0, 1, 2, 0]


def test_a_bug_in_one_stream_ends_that_stream_alone() -> None:
    engine = engine_over(Table(broken={0}))
    engine.submit(job(1))
    engine.submit(job(2))
    happened = run(engine)

    assert [type(event) for number, event in happened if number == 1] == [Progress, InternalError]
    assert text(happened, 2) == "HELLO"


def test_usage_and_timings_add_up() -> None:
    table = Table(slots=1, seconds_per_token=0.125)
    engine = engine_over(table)
    engine.submit(job(1))
    engine.submit(job(2, prompt=(9, 9, 0)))
    happened = run(engine)
    first, second = end(happened, 1).timings, end(happened, 2).timings

    assert (first.queue_ms, first.prefill_ms, first.decode_ms) == (0, 3 * 125, 5 * 125)
    assert (second.queue_ms, second.prefill_ms, second.decode_ms) == (8 * 125, 3 * 125, 5 * 125)
    assert engine.speed.tokens_per_s == pytest.approx(8)


def test_log_probabilities_are_the_models_own_and_come_only_where_asked_for() -> None:
    engine = engine_over(Table(answer="HI"))
    hot = Sampler(seed=1, temperature=0.01, top_k=2, bias=Bias({ord("H"): 50.0}))
    engine.submit(Job(stream=1, prompt=(5, 0), sampler=hot, logprobs=2, stops=("I",)))
    engine.submit(job(2))
    happened = run(engine)
    first, *_ = chunks(happened, 1)

    assert all(len(chunk.logprobs) == len(chunk.token_ids) == 1 for chunk in chunks(happened, 1))
    assert not any(chunk.logprobs for chunk in chunks(happened, 2))
    (likely,) = first.logprobs
    assert (likely.token, likely.text) == (ord("H"), b"H")
    assert likely.logprob == pytest.approx(1 - np.log(np.e + VOCABULARY - 1), rel=1e-5)
    assert [other.token for other in likely.top] == [ord("H"), 0]


def test_the_token_that_ends_an_answer_has_no_log_probability() -> None:
    engine = engine_over(Table(answer="H"))
    engine.submit(Job(stream=1, prompt=(5, 0), sampler=Sampler(seed=1, temperature=0), logprobs=0))

    assert [[each.text for each in chunk.logprobs] for chunk in chunks(run(engine), 1)] == [[b"H"], []]


def test_free_room_in_the_cache_is_told() -> None:
    engine = engine_over(Table())
    engine.submit(job(1))

    assert engine.kv_free_tokens == 80
    engine.step()
    assert engine.kv_free_tokens == 80 - 3
    run(engine)
    assert engine.kv_free_tokens == 80


@pytest.mark.parametrize("unified", [True, False])
def test_streams_stand_in_the_order_of_their_slots(*, unified: bool) -> None:
    """In a pool only those that decode: prompts come last."""
    engine = engine_over(table := Table(slots=4, answer="X" * 9, unified=unified))
    for stream in range(4):
        engine.submit(job(stream, prompt=(stream + 1, 0)))
    engine.step()
    engine.cancel(1)
    engine.submit(job(5, prompt=(9, 9, 0)))
    run(engine)
    rows = [[span.slot for span in step if len(span.tokens) == 1 or not unified] for step in table.steps]

    assert all(step == sorted(step) for step in rows)
    assert [[len(span.tokens) for span in step] for step in table.steps[1:2]] == [[1, 1, 1, 3] if unified else [1, 3, 1, 1]]


def test_a_prompt_shares_what_a_running_stream_has_read() -> None:
    engine = engine_over(table := Table(answer="X" * 9))
    engine.submit(job(1, prompt=(5, 6, 7, 0)))
    engine.step()
    engine.submit(job(2, prompt=(5, 6, 8, 0)))
    happened = run(engine)

    assert end(happened, 2).usage.cached_tokens == 2
    assert table.used == (4 + 9) + (2 + 9), "the two that both begin with take room once"
    assert text(happened, 2) == "X" * 9


def test_in_a_cache_in_parts_only_an_idle_slot_is_taken_over() -> None:
    engine = engine_over(Table(answer="X" * 9, unified=False))
    engine.submit(job(1, prompt=(5, 6, 7, 0)))
    engine.step()
    engine.submit(job(2, prompt=(5, 6, 8, 0)))
    happened = run(engine)
    engine.submit(job(3, prompt=(5, 6, 9, 0)))
    happened += run(engine)

    assert end(happened, 2).usage.cached_tokens == 0
    assert end(happened, 3).usage.cached_tokens == 2


def test_a_conversation_that_only_begins_alike_is_not_lost_to_another() -> None:
    engine = engine_over(table := Table(slots=3))
    for stream, rest in enumerate((1, 2, 1)):
        engine.submit(job(stream, prompt=(7, 7, *[rest] * 9, 0)))
        happened = run(engine)

    assert end(happened, 2).usage.cached_tokens == 11
    assert [step[0].slot for step in table.steps if len(step[0].tokens) > 1] == [0, 1]


def test_what_was_longest_unused_is_forgotten_first_and_from_its_end() -> None:
    table = Table(slots=3, context_length=1000, pool=1000, batch_size=1000)
    engine = engine_over(table)
    for stream in (1, 2):
        engine.submit(job(stream, prompt=[stream] * 399 + [0]))
        run(engine)
    engine.submit(job(3, prompt=[3] * 299 + [0]))
    run(engine)

    assert [slot.count for slot in engine.slots] == [405 - 256, 405, 305]


def test_who_came_last_is_parked_when_answers_grow_beyond_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EXPECTED", 2)
    engine = engine_over(table := Table(slots=3, pool=30, context_length=30, answer="X" * 20))
    for stream in (1, 2, 3):
        engine.submit(job(stream, prompt=(stream, 0)))
    happened = run(engine)
    ends = [stream for stream, event in happened if isinstance(event, End)]

    assert ends == [1, 2, 3]
    assert {text(happened, stream) for stream in ends} == {"X" * 20}
    assert min(len(step) for step in table.steps[5:10]) < 3
    assert sum(len(span.tokens) for step in table.steps for span in step) == 3 * (2 + 20), "what was parked is not read again"


def test_of_those_that_are_parked_the_lowest_priority_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EXPECTED", 2)
    engine = engine_over(Table(slots=3, pool=30, context_length=30, answer="X" * 20))
    for stream, priority in enumerate((Priority.BATCH, Priority.INTERACTIVE, Priority.DEFAULT)):
        engine.submit(Job(stream=stream, prompt=(stream + 1, 0), sampler=Sampler(seed=1, temperature=0), priority=priority))

    assert [stream for stream, event in run(engine) if isinstance(event, End)] == [1, 2, 0]


def test_a_parked_stream_says_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EXPECTED", 2)
    engine = engine_over(Table(slots=2, pool=24, context_length=24, answer="X" * 20, seconds_per_token=0.1))
    for stream in (1, 2):
        engine.submit(job(stream, prompt=(stream, 0)))
    happened = [event for stream, event in run(engine) if stream == 2]
    first = next(index for index, event in enumerate(happened) if isinstance(event, Chunk))
    waits = [event for event in happened[first:] if isinstance(event, Progress)]

    assert waits
    assert {event.phase for event in waits} <= {Phase.QUEUED, Phase.PREFILL}


def test_what_does_not_fit_into_the_memory_for_parking_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EXPECTED", 2)
    table = Table(slots=2, pool=30, context_length=30, answer="X" * 20)
    engine = Engine(table, clock=table.clock, max_parked=3)
    for stream in (1, 2):
        engine.submit(job(stream, prompt=(stream, 0)))
    happened = run(engine)

    assert [text(happened, stream) for stream in (1, 2)] == ["X" * 20] * 2
    assert sum(len(span.tokens) for step in table.steps for span in step) > 2 * (2 + 20)
    assert engine.parked_bytes == 0


def test_a_request_waits_until_its_prompt_and_answer_have_room() -> None:
    engine = engine_over(table := Table(slots=2, pool=40, answer="X" * 30))
    engine.submit(job(1, prompt=(1, 0), max_tokens=20))
    engine.submit(job(2, prompt=(2, 0), max_tokens=20))
    engine.step()

    assert slots_of(table.steps) == [[0]]
    assert engine.waiting == 1
    assert len(run(engine)) > 0


def test_several_choices_read_their_prompt_once() -> None:
    engine = engine_over(table := Table(slots=3, answer="XYZ"))
    engine.submit(Job(stream=1, prompt=(5,) * 9 + (0,), sampler=Sampler(seed=1, temperature=0), n=3))
    happened = run(engine)

    assert [[len(span.tokens) for span in step] for step in table.steps] == [[10]] + [[1, 1, 1]] * 3
    for choice in range(3):
        assert "".join(chunk.text for chunk in chunks(happened, 1) if chunk.choice == choice) == "XYZ"
    assert end(happened, 1).usage == Usage(prompt_tokens=10, completion_tokens=12)
    assert isinstance(happened[-1][1], End)


def test_a_bug_in_one_choice_ends_all_of_them_and_nothing_follows() -> None:
    engine = engine_over(table := Table(slots=3))
    engine.submit(Job(stream=1, prompt=(5, 0), sampler=Sampler(seed=1, temperature=0), n=2))
    engine.submit(job(2))
    engine.step()
    table.broken.add(next(span.slot for span in table.steps[0]))
    happened = run(engine)

    assert [type(event) for number, event in happened if number == 1] == [InternalError]
    assert text(happened, 2) == "ELLO"
    assert engine.free_slots == 3


def test_choices_need_no_room_for_the_prompt_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EXPECTED", 5)
    engine = engine_over(table := Table(slots=3, pool=60, context_length=60, batch_size=60, answer="XYZ"))
    engine.submit(Job(stream=1, prompt=(5,) * 29 + (0,), sampler=Sampler(seed=1, temperature=0), n=3))
    run(engine)

    assert [[len(span.tokens) for span in step] for step in table.steps] == [[30]] + [[1, 1, 1]] * 3


def test_choices_without_a_slot_wait_and_share_the_prompt_later() -> None:
    engine = engine_over(table := Table(slots=2, answer="XYZ"))
    engine.submit(Job(stream=1, prompt=(5,) * 9 + (0,), sampler=Sampler(seed=1, temperature=0), n=5))
    happened = run(engine)

    assert end(happened, 1).usage.completion_tokens == 20
    assert sum(len(span.tokens) for step in table.steps for span in step) == 10 + 3 + 3 + 3 * (1 + 3)


def test_a_cancel_takes_all_choices_out() -> None:
    engine = engine_over(Table(slots=2, answer="XYZ"))
    engine.submit(Job(stream=1, prompt=(5, 0), sampler=Sampler(seed=1, temperature=0), n=4))
    engine.step()
    engine.cancel(1)

    assert not engine.busy
    assert engine.waiting == 0
    assert engine.free_slots == 2


@pytest.mark.parametrize(("said", "finish"), [([*b"HELLO", END], Finish.STOP), ([*b"HELL"], Finish.LENGTH)])
def test_an_answer_that_had_ended_elsewhere_ends_without_a_step(said: list[int], finish: Finish) -> None:
    engine = engine_over(table := Table())
    resume = Resume(token_ids=tuple(said), emitted_chars=2)
    sampler = Sampler(seed=1, temperature=0)
    engine.submit(
        Job(stream=1, prompt=(5, 0), sampler=sampler, resume=(resume,), max_tokens=4 if finish is Finish.LENGTH else None)
    )
    happened = run(engine)

    assert happened[0] == (1, Chunk(choice=0, text=bytes(said[2:]).decode().rstrip(chr(END)), finish=finish))
    assert end(happened, 1).usage.completion_tokens == len(said)
    assert table.steps == []


def test_a_full_cache_that_nobody_knew_of_parks_and_goes_on() -> None:
    engine = engine_over(table := Table(slots=2))
    for stream in (1, 2):
        engine.submit(job(stream, prompt=(stream, 0)))
    engine.step()
    table.refusals = 1
    happened = run(engine)

    assert [text(happened, stream) for stream in (1, 2)] == ["ELLO", "ELLO"]


def test_a_chain_is_told_as_far_as_it_is_cached() -> None:
    table = Table(slots=2, context_length=100, pool=100, batch_size=10)
    engine = engine_over(table)
    sampler = Sampler(seed=1, temperature=0)
    engine.submit(Job(stream=1, prompt=[1] * 39 + [0], sampler=sampler, chain=(1, 2, 3, 4)))
    told = []
    for _ in range(4):
        engine.step()
        told.append(engine.slots.chains)
    run(engine)
    assert told == [((1,),), ((1, 2),), ((1, 2, 3),), ((1, 2, 3, 4),)]

    engine.submit(Job(stream=2, prompt=[1] * 20 + [2] * 19 + [0], sampler=sampler, chain=(1, 2, 5, 6)))
    run(engine)
    assert list(engine.slots.chains) == [(1, 2, 5, 6), (1, 2, 3, 4)]
    engine.slots.evict(1)
    assert list(engine.slots.chains) == [(1, 2, 5, 6)]
