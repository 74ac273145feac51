"""Answers that must follow something, over the runtime that is a table of what to say."""

from dataclasses import dataclass, field, replace

import pytest

np = pytest.importorskip("numpy")

from worker.table import END, VOCABULARY, Table  # noqa: E402 - after the check for the extra
from worker.test_engine import chunks, end, engine_over, job, run, text  # noqa: E402

from meshnode.errors import InvalidRequest  # noqa: E402
from meshnode.inference import Finish, Resume  # noqa: E402
from meshnode.worker.job import Job  # noqa: E402
from meshnode.worker.penalties import Bias  # noqa: E402
from meshnode.worker.sampling import Logits, Sampler  # noqa: E402


@dataclass
class Spelling:
    """A constraint: the answer is `wanted`, and may end there if `complete_at_end`; `asked` counts looks at all tokens."""

    wanted: str
    complete_at_end: bool = True
    may_end_anywhere: bool = False
    accepted: list[int] = field(default_factory=list)
    asked: int = 0

    @property
    def complete(self) -> bool:
        return self.may_end_anywhere or (self.complete_at_end and len(self.accepted) == len(self.wanted))

    @property
    def final(self) -> bool:
        return self.complete and len(self.accepted) == len(self.wanted)

    def allows(self, token: int) -> bool:
        if token == END:
            return self.complete
        return self.wanted[len(self.accepted) :][:1] == chr(token)

    def masked(self, logits: Logits) -> Logits:
        self.asked += 1
        allowed = [self.allows(token) for token in range(VOCABULARY)]
        masked: Logits = np.where(allowed, logits, np.float32(-np.inf))
        return masked

    def accept(self, token: int) -> None:
        assert self.allows(token)
        self.accepted.append(token)


def constrained(stream: int, constraint: Spelling, **sampling: object) -> Job:
    sampler = Sampler(seed=1, temperature=0)
    return Job(stream=stream, prompt=(5, 0), sampler=replace(sampler, **sampling), constraint=lambda: constraint)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_follows_its_constraint_and_ends_where_nothing_can_follow(temperature: float) -> None:
    constraint = Spelling("HALO")
    engine = engine_over(Table())
    engine.submit(constrained(1, constraint, temperature=temperature))
    engine.submit(job(2))
    happened = run(engine)

    assert text(happened, 1) == "HALO"
    assert text(happened, 2) == "HELLO"
    assert chunks(happened, 1)[-1].finish is Finish.STOP
    assert end(happened, 1).usage.completion_tokens == 4, "no token is spent on the end"


def test_all_tokens_are_looked_at_only_where_the_drawn_one_does_not_fit() -> None:
    constraint = Spelling("HELLX")
    engine = engine_over(Table())
    engine.submit(constrained(1, constraint))
    run(engine)

    assert constraint.accepted == list(b"HELLX")
    assert constraint.asked == 1


def test_a_constraint_forbids_the_end_where_the_answer_is_not_complete() -> None:
    engine = engine_over(Table(answer="HE"))
    engine.submit(constrained(1, Spelling("HELLO")))
    engine.submit(constrained(2, Spelling("HELLO", may_end_anywhere=True)))
    happened = run(engine)

    assert text(happened, 1) == "HELLO"
    assert text(happened, 2) == "HE"
    assert end(happened, 2).usage.completion_tokens == 3


def test_an_answer_that_may_end_ends_also_where_the_token_for_it_is_forbidden() -> None:
    constraint = Spelling("HE", may_end_anywhere=True)
    engine = engine_over(Table())
    engine.submit(constrained(1, constraint, temperature=1.0, bias=Bias(dict.fromkeys([*b"E", END], -np.inf))))
    happened = run(engine)

    assert text(happened, 1) == "H"
    assert chunks(happened, 1)[-1].finish is Finish.STOP
    assert chunks(happened, 1)[-1].token_ids == ()


def test_a_constraint_that_leaves_no_token_fails_its_answer_alone() -> None:
    table = Table()
    engine = engine_over(table)
    engine.submit(constrained(1, Spelling("HE", complete_at_end=False)))
    engine.submit(job(2))
    happened = run(engine)
    (failure,) = [event for stream, event in happened if stream == 1 and isinstance(event, InvalidRequest)]

    assert text(happened, 1) == "HE"
    assert failure.param == "response_format"
    assert text(happened, 2) == "HELLO"
    assert engine.kv_free_tokens == table.slots * table.context_length


def test_the_limit_counts_for_a_constrained_answer_too() -> None:
    engine = engine_over(Table())
    engine.submit(replace(constrained(1, Spelling("HELLO")), max_tokens=3))
    happened = run(engine)

    assert text(happened, 1) == "HEL"
    assert chunks(happened, 1)[-1].finish is Finish.LENGTH


def test_each_choice_follows_a_constraint_of_its_own() -> None:
    made: list[Spelling] = []

    def new() -> Spelling:
        made.append(Spelling("HALO"))
        return made[-1]

    engine = engine_over(Table(slots=3))
    engine.submit(replace(constrained(1, Spelling("")), constraint=new, n=3))
    happened = run(engine)

    assert text(happened, 1) == "".join("H" * 3 + "A" * 3 + "L" * 3 + "O" * 3)
    assert [each.accepted for each in made] == [list(b"HALO")] * 3


def test_what_was_drawn_elsewhere_is_replayed_for_the_constraint() -> None:
    constraint = Spelling("HALO")
    engine = engine_over(Table())
    engine.submit(replace(constrained(1, constraint), resume=(Resume(token_ids=tuple(b"HA"), emitted_chars=1),)))
    happened = run(engine)

    assert text(happened, 1) == "ALO"
    assert constraint.accepted == list(b"HALO")


def test_an_answer_that_nothing_could_follow_elsewhere_ends_at_once() -> None:
    engine = engine_over(Table())
    engine.submit(replace(constrained(1, Spelling("HA")), resume=(Resume(token_ids=tuple(b"HA"), emitted_chars=1),)))
    happened = run(engine)

    assert text(happened, 1) == "A"
    assert chunks(happened, 1)[-1].finish is Finish.STOP


def test_what_was_drawn_elsewhere_and_does_not_fit_is_refused_and_leaves_nothing() -> None:
    class Strict(Spelling):
        def accept(self, token: int) -> None:
            raise InvalidRequest("it does not fit", param="resume")

    engine = engine_over(Table())
    with pytest.raises(InvalidRequest):
        engine.submit(replace(constrained(1, Strict("HALO")), resume=(Resume(token_ids=(1,), emitted_chars=0),)))

    assert not engine.busy
