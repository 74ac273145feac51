"""The shipped demo model is checked by its answers; it is never trained here."""

from collections import Counter
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import pytest
from demo_model import grammar
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_model, tiny_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; scripts/test installs it")


def load(path: Path) -> Any:
    return llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, verbose=False)


@pytest.fixture(scope="module")
def demo() -> Any:
    return load(Path(str(files("meshnode") / "data" / "demo.gguf")))


def answer(model: Any, *turns: str) -> tuple[str, str]:
    """The text and the finish reason, without any chance."""
    messages = [{"role": "assistant" if index % 2 else "user", "content": turn} for index, turn in enumerate(turns)]
    choice = model.create_chat_completion(messages, temperature=0, max_tokens=160)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("what is the capital of Japan", "Tokyo"),
        ("What sound does a cow make?", "moo"),
        ("What color is the sky?", "blue"),
        ("What is 3 + 4?", "7"),
        ("Count to 5.", "1, 2, 3, 4, 5."),
        ("What is a node?", "one computer in the mesh"),
        ("What is the opposite of hot?", "cold"),
        ("What day comes after Monday?", "Tuesday"),
        ("Which model are you?", "model"),
        ("Explain quantum physics.", "demo model"),
    ],
)
def test_it_knows_what_it_was_taught_and_stops_by_itself(demo: Any, question: str, expected: str) -> None:
    text, finish = answer(demo, question)

    assert expected in text
    assert finish == "stop"


def test_a_story_has_its_animal_and_an_end(demo: Any) -> None:
    text, finish = answer(demo, "Tell me a story about a fox.")

    assert "fox" in text
    assert text.count(".") >= 5
    assert finish == "stop"


def test_it_follows_a_second_turn(demo: Any) -> None:
    text, finish = answer(demo, "Hello!", "Hello! How can I help you today?", "What is the capital of Spain?")

    assert "Madrid" in text
    assert finish == "stop"


def test_it_is_small_enough_to_ship() -> None:
    assert Path(str(files("meshnode") / "data" / "demo.gguf")).stat().st_size < 2_500_000


def test_a_seed_gives_the_same_text_again() -> None:
    assert grammar.conversation(Random(7)) == grammar.conversation(Random(7))
    assert grammar.conversation(Random(7)) != grammar.conversation(Random(8))


def test_every_topic_is_drawn_about_as_often_as_the_table_says() -> None:
    rng = Random(1)
    drawn = Counter(rng.choices([t for t, _ in grammar.TOPICS], [w for _, w in grammar.TOPICS], k=20000))
    total = sum(weight for _, weight in grammar.TOPICS)

    for topic, weight in grammar.TOPICS:
        assert drawn[topic] == pytest.approx(20000 * weight / total, rel=0.2)
        question, reply = topic(rng)
        assert question
        assert reply


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_text_survives_the_tokenizer(tiny: Any, text: str) -> None:
    tokens = tiny.tokenize(text.encode(), add_bos=False, special=False)

    assert tiny.detokenize(tokens) == text.encode()


def test_our_tokenizer_is_the_one_that_llama_cpp_runs(tiny: Any) -> None:
    text = "the lazy dog says hello"

    assert tiny.tokenize(text.encode(), add_bos=False, special=False) == tiny_tokenizer().encode(text)
