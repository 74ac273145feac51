import pytest

np = pytest.importorskip("numpy")

from hypothesis import given, settings  # noqa: E402 - after the check for the extra
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

from meshnode.inference import LOWEST_LOGPROB, MAX_TOKEN_TEXT  # noqa: E402
from meshnode.worker.logprobs import of_token  # noqa: E402
from meshnode.worker.sampling import Logits  # noqa: E402

ROWS = arrays(np.float32, st.integers(1, 300), elements=st.floats(-30, 30, width=32))


def piece(token: int) -> bytes:
    return str(token).encode()


@settings(max_examples=40)
@given(ROWS, st.integers(0, 20))
def test_the_probabilities_are_those_of_the_softmax_likeliest_first(logits: Logits, top: int) -> None:
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    found = of_token(logits, 0, top, piece)

    assert np.exp(found.logprob) == pytest.approx(probabilities[0], rel=1e-4)
    everything = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    assert [other.token for other in found.top] == everything[:top]
    assert [np.exp(other.logprob) for other in found.top] == pytest.approx(probabilities[everything[:top]], rel=1e-4)
    assert found.text == piece(0)
    assert all(other.text == piece(other.token) for other in found.top)


def test_they_are_numbers_that_json_has() -> None:
    found = of_token(np.array([5, -np.inf], np.float32), 1, 2, piece)

    assert found.logprob == LOWEST_LOGPROB
    assert [other.logprob for other in found.top] == [0.0, LOWEST_LOGPROB]


def test_a_token_of_many_bytes_is_cut() -> None:
    assert of_token(np.zeros(1, np.float32), 0, 0, lambda _: b" " * 1000).text == b" " * MAX_TOKEN_TEXT
