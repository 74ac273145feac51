import pytest

np = pytest.importorskip("numpy")

from hypothesis import given, settings  # noqa: E402 - after the check for the extra
from hypothesis import strategies as st  # noqa: E402

from meshnode.worker.penalties import Bias, Penalties  # noqa: E402

TOKENS = st.lists(st.integers(0, 5), max_size=30)
PENALTIES = st.builds(
    Penalties, repeat=st.floats(0.5, 2), last=st.integers(-1, 20), presence=st.floats(-2, 2), frequency=st.floats(-2, 2)
)


def penalised(penalties: Penalties, tokens: list[int], answered: int) -> list[float]:
    row = np.array([2, 1, 0, -1, -2, 3], np.float32)
    penalties.apply(row, tokens, answered)
    values: list[float] = row.tolist()
    return values


def test_without_penalties_nothing_changes() -> None:
    assert penalised(Penalties(), [0, 1, 2], 3) == [2, 1, 0, -1, -2, 3]
    assert penalised(Penalties(repeat=2, last=0), [0, 1, 2], 3) == [2, 1, 0, -1, -2, 3]


def test_repetition_makes_every_logit_of_the_window_smaller_once() -> None:
    assert penalised(Penalties(repeat=2), [0, 0, 0, 3, 2], 1) == [1, 1, 0, -2, -2, 3]
    assert penalised(Penalties(repeat=2, last=2), [5, 0, 3], 3) == [1, 1, 0, -2, -2, 3]
    assert penalised(Penalties(repeat=2, last=-1), [5] + [0] * 99, 0) == [1, 1, 0, -1, -2, 1.5]


def test_presence_and_frequency_look_at_the_answer_alone() -> None:
    assert penalised(Penalties(presence=0.5), [1, 5, 0, 0], 2) == [1.5, 1, 0, -1, -2, 3]
    assert penalised(Penalties(frequency=0.5), [1, 5, 0, 0], 2) == [1, 1, 0, -1, -2, 3]
    assert penalised(Penalties(frequency=0.5, presence=0.25), [5, 0, 0], 3) == [0.75, 1, 0, -1, -2, 2.25]
    assert penalised(Penalties(frequency=-1), [5], 1)[5] == 4
    assert penalised(Penalties(presence=2), [1, 5], 0) == [2, 1, 0, -1, -2, 3]


@settings(max_examples=60)
@given(TOKENS, TOKENS, PENALTIES)
def test_penalties_are_what_a_plain_loop_makes_of_them(prompt: list[int], answer: list[int], penalties: Penalties) -> None:
    expected = np.array([2, 1, 0, -1, -2, 3], np.float32)
    together, last = prompt + answer, penalties.last
    for token in set(together if last < 0 else together[len(together) - min(last, len(together)) :]):
        logit = float(expected[token])
        expected[token] = logit / penalties.repeat if logit > 0 else logit * penalties.repeat
    for token in set(answer):
        expected[token] = float(expected[token]) - (penalties.frequency * answer.count(token) + penalties.presence)

    assert penalised(penalties, together, len(answer)) == expected.tolist()


def test_a_bias_is_added_to_its_token_alone_and_may_forbid_it() -> None:
    row = np.array([2, 1, 0], np.float32)
    Bias({0: 1.5, 2: -np.inf}).apply(row)

    assert row.tolist() == [3.5, 1, -np.inf]
