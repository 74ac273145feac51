from collections import Counter

import pytest

np = pytest.importorskip("numpy")

from hypothesis import given, settings  # noqa: E402 - after the check for the extra
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

from meshnode.worker.penalties import Bias, Penalties  # noqa: E402
from meshnode.worker.sampling import MAX_TOP_K, Logits, Sampler, likeliest, uniform  # noqa: E402

ROWS = arrays(np.float32, st.integers(1, 2000), elements=st.floats(-30, 30, width=32))


def row(*values: float) -> Logits:
    logits: Logits = np.array(values, np.float32)
    return logits


@settings(max_examples=40)
@given(ROWS, st.integers(1, 50))
def test_the_likeliest_are_those_of_a_full_sort(logits: Logits, count: int) -> None:
    everything = sorted(range(len(logits)), key=lambda token: (-logits[token], token))

    assert likeliest(logits, count).tolist() == everything[:count]


@settings(max_examples=40)
@given(ROWS, st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_zero_temperature_and_top_k_one_take_the_likeliest(logits: Logits, seed: int, position: int) -> None:
    assert Sampler(seed=seed, temperature=0).draw(logits, position) == int(np.argmax(logits))
    assert Sampler(seed=seed, top_k=1).draw(logits, position) == int(np.argmax(logits))


SAMPLERS = st.builds(
    Sampler,
    seed=st.integers(),
    temperature=st.floats(0.01, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 60),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0.01, 1),
)


@settings(max_examples=40)
@given(ROWS, SAMPLERS, st.integers(0, 10_000))
def test_a_draw_is_one_of_the_likeliest_and_always_the_same(logits: Logits, sampler: Sampler, position: int) -> None:
    token = sampler.draw(logits, position)

    assert token in likeliest(logits, sampler.top_k or MAX_TOP_K)
    assert token == sampler.draw(logits.copy(), position)


def test_the_draws_have_known_values() -> None:
    """Written into the protocol: a change here breaks continuation between versions."""
    assert [uniform(0, 0, 0), uniform(1, 2, 3), uniform(-1, 0, 7)] == [
        0.7223730062905211,
        0.5162353131377926,
        0.03484096850822049,
    ]


def test_draws_differ_by_seed_choice_and_position() -> None:
    draws = {uniform(seed, choice, position) for seed in range(10) for choice in range(10) for position in range(10)}

    assert len(draws) == 1000
    assert all(0 <= draw < 1 for draw in draws)
    assert 0.45 < sum(draws) / 1000 < 0.55


def test_tokens_come_as_often_as_their_probability_says() -> None:
    logits = np.log(row(0.5, 0.3, 0.2))
    counts = Counter(Sampler(seed=7, temperature=1, top_p=1).draw(logits, position) for position in range(4000))

    assert [round(counts[token] / 4000, 1) for token in range(3)] == [0.5, 0.3, 0.2]


def test_top_p_is_taken_before_the_temperature() -> None:
    logits = np.log(row(0.6, 0.3, 0.1))
    hot = Sampler(seed=7, temperature=5, top_p=0.7)

    assert {hot.draw(logits, position) for position in range(200)} == {0, 1}


def test_a_tiny_top_p_leaves_the_likeliest() -> None:
    sampler = Sampler(seed=7, temperature=2, top_p=1e-9)

    assert {sampler.draw(row(1, 3, 2), position) for position in range(100)} == {1}


def drawn(sampler: Sampler, logits: Logits, count: int = 300) -> set[int]:
    return {sampler.draw(logits, position) for position in range(count)}


def test_min_p_compares_with_the_likeliest() -> None:
    logits = np.log(row(0.5, 0.25, 0.15, 0.1))

    assert drawn(Sampler(seed=7, temperature=5, top_p=1, min_p=0.25), logits) == {0, 1, 2}
    assert drawn(Sampler(seed=7, temperature=5, top_p=1, min_p=1), logits) == {0}


def test_typical_p_may_drop_the_likeliest() -> None:
    """Its surprise of 0.8 is farther from the entropy of 2.0 than the 2.7 of the others."""
    logits = np.log(row(0.45, *[0.55 / 8] * 8))

    assert drawn(Sampler(seed=7, temperature=1, top_p=1, typical_p=0.3), logits) == {1, 2, 3, 4, 5}
    assert drawn(Sampler(seed=7, temperature=1, top_p=1, typical_p=1), logits) == set(range(9))


def test_a_forbidden_token_is_never_drawn_though_all_are_asked_for() -> None:
    for typical_p in (0.9, 1):
        sampler = Sampler(seed=7, temperature=5, top_p=1, top_k=0, typical_p=typical_p, bias=Bias({0: -np.inf, 2: 1.0}))

        assert 0 not in drawn(sampler, row(9, 1, 0, 1))


def test_what_is_drawn_greedily_is_the_likeliest_after_bias_and_penalties() -> None:
    greedy = Sampler(seed=7, temperature=0, bias=Bias({1: 2.5}), penalties=Penalties(repeat=2))

    assert greedy.draw(row(3, 1, 2), 0, []) == 1
    assert greedy.draw(row(3, 1, 2), 0, [1]) == 0


def test_the_row_stays_as_it_was() -> None:
    logits = row(3, 1, 2)
    Sampler(seed=7, bias=Bias({1: 2.5}), penalties=Penalties(repeat=2, presence=1)).draw(logits, 2, [0, 1, 2])

    assert logits.tolist() == [3, 1, 2]


def test_a_continuation_that_replays_the_tokens_draws_the_same() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 2, (30, 50)).astype(np.float32)
    sampler = Sampler(seed=7, penalties=Penalties(repeat=1.3, last=8, presence=0.5, frequency=0.2), min_p=0.02, typical_p=0.95)
    whole = [1, 2, 3]
    for position in range(30):
        whole.append(sampler.draw(rows[position], position, whole))
    replayed = whole[: 3 + 12]
    for position in range(12, 30):
        replayed.append(sampler.draw(rows[position], position, tuple(replayed)))

    assert replayed == whole
