"""Vectors of a real model with random weights."""

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from encoder_model import CONTEXT, make_encoder  # noqa: E402 - after the check for the extra
from llama_cpp import llama_cpp as c  # noqa: E402
from tiny_model import make_tiny_model  # noqa: E402

from meshnode.errors import ModelUnavailable, Unsupported  # noqa: E402
from meshnode.worker import machine  # noqa: E402
from meshnode.worker.gguf import read_facts  # noqa: E402
from meshnode.worker.llama import LlamaEmbedding, LlamaRuntime  # noqa: E402
from meshnode.worker.runtime import Span  # noqa: E402

TEXTS = ("hello world", "the quick brown fox", "fox", "jumps over the lazy dog " * 5, "Grüße, 世界")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> LlamaRuntime:
    path = make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    return LlamaRuntime(path, read_facts(path), slots=1, context_length=512)


@pytest.fixture(scope="module")
def model(runtime: LlamaRuntime) -> LlamaEmbedding:
    return runtime.embedding()


def test_many_texts_in_one_batch_have_the_vectors_of_each_alone(model: LlamaEmbedding) -> None:
    texts = [model.tokenize(text) for text in TEXTS]
    alone = np.concatenate([model.embed([text]) for text in texts])

    assert np.allclose(model.embed(texts), alone, atol=1e-4)
    assert np.allclose(model.embed(texts[::-1]), alone[::-1], atol=1e-4)
    assert not np.allclose(alone[0], alone[1], atol=1e-2)


def test_a_model_that_reads_from_both_sides_sees_each_text_whole_and_alone(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "encoder.gguf")
    runtime = LlamaRuntime(path, read_facts(path), slots=1, context_length=CONTEXT)
    model = runtime.embedding()
    texts = [model.tokenize(text) for text in ("hello world", "world hello", "the quick brown fox " * 12, "fox [CLS]")]
    alone = np.concatenate([model.embed([text]) for text in texts])

    assert not runtime.generates
    assert [text[0] for text in texts] == [2] * 4, "the token that a text begins with, and none from within it"
    assert 2 not in texts[3][1:]
    assert np.allclose(model.embed(texts), alone, atol=5e-3)
    assert not np.allclose(alone[0], alone[1], atol=1e-2)


def test_a_text_as_long_as_the_limit_fits_and_so_do_the_most_texts(model: LlamaEmbedding) -> None:
    token = model.tokenize("a")[0]

    assert model.max_tokens == 512
    assert model.embed([[token] * model.max_tokens]).shape == (1, 64)
    assert model.embed([[token]] * model.sequences).shape == (model.sequences, 64)


def test_a_model_that_says_nothing_of_pooling_gives_the_mean(model: LlamaEmbedding) -> None:
    assert c.llama_pooling_type(model._context) == c.LLAMA_POOLING_TYPE_MEAN


def test_answers_are_what_they_were_before(runtime: LlamaRuntime) -> None:
    tokens = runtime.tokenize("hello world", False)
    (before,) = (row.copy() for row in runtime.decode([Span(0, 0, tokens, True)]))
    runtime.cut(0, 0)
    other = runtime.embedding()
    other.embed([other.tokenize("the fox")])
    (after,) = (row.copy() for row in runtime.decode([Span(0, 0, tokens, True)]))
    runtime.cut(0, 0)

    assert np.array_equal(before, after)


@pytest.mark.parametrize(("pooling", "expected"), [(2, c.LLAMA_POOLING_TYPE_CLS), (3, c.LLAMA_POOLING_TYPE_LAST)])
def test_pooling_is_as_the_file_says(tmp_path: Path, pooling: int, expected: int) -> None:
    model = pooled(tmp_path, pooling).embedding()

    assert c.llama_pooling_type(model._context) == expected


def test_without_memory_there_are_no_embeddings_and_the_figures_are_told(
    runtime: LlamaRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_available", lambda: 1000)

    with pytest.raises(ModelUnavailable, match=r"need about .*, .* are free"):
        runtime.embedding()


def test_a_model_that_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="ranks texts"):
        pooled(tmp_path, 4).embedding()


def pooled(folder: Path, pooling: int) -> LlamaRuntime:
    """The tiny model with one more entry in its file."""
    path = make_tiny_model(folder / "pooled.gguf", pooling=pooling)
    return LlamaRuntime(path, read_facts(path), slots=1, context_length=256)
