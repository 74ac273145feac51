"""The scheduler over a runtime that is a table of what to say: which rows each step had is read from its log."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

np = pytest.importorskip("numpy")

from meshnode.errors import ContextTooLong, InternalError, Overloaded  # noqa: E402 - after the check for the extra
from meshnode.inference import Chunk, End, Finish, Phase, Progress  # noqa: E402
from meshnode.worker.answer import Form  # noqa: E402
from meshnode.worker.dialect import dialect_of  # noqa: E402
from meshnode.worker.engine import Engine, Happening, Job, Span  # noqa: E402
from meshnode.worker.penalties import Bias  # noqa: E402
from meshnode.worker.sampling import Logits, Sampler  # noqa: E402

VOCABULARY = 128
END = 127
"""The token that ends an answer; token t < 127 is the letter chr(t)."""


@dataclass
class Table:
    """A runtime in which the token after n tokens of a sequence is a function of all of them."""

    slots: int = 2
    context_length: int = 40
    batch_size: int = 16
    answer: str = "HELLO"
    can_cut: bool = True
    seconds_per_token: float = 0.0
    now: float = 0.0
    steps: list[list[Span]] = field(default_factory=list)
    kept: dict[int, list[int]] = field(default_factory=dict)
    """What the KV cache holds, by slot: checked against what the engine believes."""
    broken: set[int] = field(default_factory=set)
    """Slots whose logits cannot be drawn from."""

    def clock(self) -> float:
        return self.now

    def decode(self, spans: Sequence[Span]) -> list[Logits]:
        assert 0 < sum(len(span.tokens) for span in spans) <= self.batch_size
        assert len({span.slot for span in spans}) == len(spans)
        self.steps.append(list(spans))
        self.now += self.seconds_per_token * sum(len(span.tokens) for span in spans)
        return [logits for span in spans for logits in self._run(span)]

    def _run(self, span: Span) -> list[Logits]:
        kept = self.kept.setdefault(span.slot, [])
        assert span.start == len(kept), "positions follow each other"
        kept += span.tokens
        assert len(kept) <= self.context_length
        if not span.last:
            return []
        logits = np.zeros(VOCABULARY, np.float32)
        logits[self.next_token(kept)] = 1
        return [np.zeros(0, np.float32) if span.slot in self.broken else logits]

    def next_token(self, kept: list[int]) -> int:
        """A prompt ends with 0, the answer follows it."""
        said = len(kept) - 1 - max(index for index, token in enumerate(kept) if token == 0)
        return ord(self.answer[said]) if said < len(self.answer) else END

    def cut(self, slot: int, length: int) -> bool:
        if length and not self.can_cut:
            return False
        del self.kept.setdefault(slot, [])[length:]
        return True

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def ends(self, token: int) -> bool:
        return token == END


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


def calling(answer: str, *, parallel: bool = True, max_tokens: int | None = None) -> list[Chunk]:
    """What an engine makes of `answer`, in which \1 is the control token that begins a call."""
    engine = engine_over(Table(answer=answer, context_length=200))
    form = Form(
        thinking=("<t>", "</t>"), marks=HERMES, kinds={"f": {}}, parallel=parallel, controls={1: b"<tool_call>"}, seed="r"
    )
    engine.submit(replace(job(1, max_tokens=max_tokens), form=form))
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


def test_the_full_context_ends_an_answer_whatever_max_tokens_says() -> None:
    engine = engine_over(table := Table(context_length=10, answer="X" * 99))
    engine.submit(job(1, max_tokens=1000))
    happened = run(engine)

    assert text(happened, 1) == "X" * 7
    assert chunks(happened, 1)[-1].finish is Finish.LENGTH
    assert len(table.kept[0]) == 9


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
    engine.submit(job(2, prompt=(5,) * 99 + (0,)))
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
    assert set(sizes[1:]) <= {49, 50}


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
    assert engine.tokens_per_s == pytest.approx(8)


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
    assert engine.kv_free_tokens == 80 - 4
    run(engine)
    assert engine.kv_free_tokens == 80
