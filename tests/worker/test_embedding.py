"""Which texts share a batch, and what comes of them."""

import base64
from collections.abc import Sequence

import pytest

np = pytest.importorskip("numpy")

from meshnode.errors import ContextTooLong, InternalError, InvalidRequest, Overloaded  # noqa: E402 - after the check for the extra
from meshnode.inference import Chunk, End, Finish  # noqa: E402
from meshnode.worker.embedding import MAX_WAITING, STEP_TOKENS, Embedder, Happening, Vectors  # noqa: E402


class Sums:
    """A text's vector is (its sum, its length)."""

    sequences = 3
    max_tokens = 2 * STEP_TOKENS

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def embed(self, texts: Sequence[Sequence[int]]) -> Vectors:
        self.batches.append([len(text) for text in texts])
        vectors: Vectors = np.array([[sum(text), len(text)] for text in texts], np.float32)
        return vectors


def run(embedder: Embedder) -> list[Happening]:
    happened: list[Happening] = []
    while embedder.busy:
        happened += embedder.step()
    return happened


def vectors(happened: list[Happening], stream: int) -> list[list[float]]:
    texts = [event.text for number, event in happened if number == stream and isinstance(event, Chunk)]
    return [np.frombuffer(base64.b64decode(text), "<f4").tolist() for text in texts]


def test_vectors_have_length_one_and_come_in_order_with_the_usage() -> None:
    embedder = Embedder(Sums())
    embedder.submit(7, [[3, 1], [0, 0, 0, 0], [1]])
    happened = run(embedder)

    assert vectors(happened, 7) == [pytest.approx([2 / 5**0.5, 1 / 5**0.5]), [0, 1], pytest.approx([0.5**0.5, 0.5**0.5])]
    chunks = [event for _, event in happened if isinstance(event, Chunk)]
    assert [(chunk.choice, chunk.finish) for chunk in chunks] == [(0, Finish.STOP), (1, Finish.STOP), (2, Finish.STOP)]
    (end,) = [event for _, event in happened if isinstance(event, End)]
    assert happened[-1][1] is end
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (7, 0)


def test_a_vector_of_zeros_stays_one() -> None:
    class Zeros(Sums):
        def embed(self, texts: Sequence[Sequence[int]]) -> Vectors:
            vectors: Vectors = np.float32(0) * super().embed(texts)
            return vectors

    embedder = Embedder(Zeros())
    embedder.submit(1, [[1]])

    assert vectors(run(embedder), 1) == [[0, 0]]


def test_texts_of_several_requests_share_a_batch_as_far_as_there_is_room() -> None:
    runtime = Sums()
    embedder = Embedder(runtime)
    embedder.submit(1, [[1], [1, 1], [1] * STEP_TOKENS])
    embedder.submit(2, [[1] * (STEP_TOKENS + 1)])
    embedder.submit(3, [[1]] * 4)
    happened = run(embedder)

    assert runtime.batches == [[1, 2], [STEP_TOKENS], [STEP_TOKENS + 1], [1, 1, 1], [1]]
    assert [stream for stream, event in happened if isinstance(event, End)] == [1, 2, 3]


def test_a_text_that_is_empty_or_too_long_is_named_and_nothing_is_queued() -> None:
    embedder = Embedder(Sums())
    limit = Sums.max_tokens
    with pytest.raises(InvalidRequest, match=r"`input\[1\]` is empty"):
        embedder.submit(1, [[1], []])
    with pytest.raises(ContextTooLong, match=rf"`input\[0\]` has {limit + 1} tokens; {limit} are"):
        embedder.submit(1, [[1] * (limit + 1)])
    with pytest.raises(InvalidRequest, match="`input` is empty"):
        embedder.submit(1, [])

    assert not embedder.busy


def test_a_cancelled_request_is_not_run_any_further() -> None:
    runtime = Sums()
    embedder = Embedder(runtime)
    embedder.submit(1, [[1]] * 10)
    embedder.submit(2, [[2]])
    embedder.step()
    embedder.cancel(1)
    happened = run(embedder)

    assert {stream for stream, _ in happened} == {2}
    assert runtime.batches == [[1, 1, 1], [1]]
    embedder.cancel(9)


def test_only_so_many_requests_wait() -> None:
    embedder = Embedder(Sums())
    for stream in range(MAX_WAITING):
        embedder.submit(stream, [[1]])

    with pytest.raises(Overloaded):
        embedder.submit(MAX_WAITING, [[1]])


def test_what_is_not_a_number_fails_its_request_alone() -> None:
    class Broken(Sums):
        def embed(self, texts: Sequence[Sequence[int]]) -> Vectors:
            broken: Vectors = np.where(np.array([[text[0] == 9] * 2 for text in texts]), np.float32(np.nan), super().embed(texts))
            return broken

    embedder = Embedder(Broken())
    embedder.submit(1, [[1], [9], [1], [1], [1]])
    embedder.submit(2, [[1]])
    happened = run(embedder)

    assert [type(event) for stream, event in happened if stream == 1] == [Chunk, InternalError]
    assert len(vectors(happened, 2)) == 1
