"""The demo model by its answers, and what it is made with by its text; nothing is trained here."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import jinja2
import pytest
from demo_model import grammar
from demo_model.gguf_file import CHATML
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import BROKEN_TEMPLATE, HOSTILE_TEMPLATE, make_tiny_model, tiny_tokenizer

from meshnode.worker.gguf import read_facts

DEMO = Path(str(files("meshnode") / "data" / "demo.gguf"))
SCRIPT = Path(__file__).parents[1] / "scripts/make-demo-model"
CHAT = re.compile(
    r"(<\|im_start\|>system\n[^<]+<\|im_end\|>\n)?"
    r"(<\|im_start\|>user\n[^<]+<\|im_end\|>\n<\|im_start\|>assistant\n[^<]+<\|im_end\|>\n){1,3}"
    r"<\|endoftext\|>"
)


@contextmanager
def loaded(path: Path) -> Iterator[Any]:
    """Closed by hand: left to the garbage collector, the library may free the model before its context, and crash."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; scripts/test installs it")
    model = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    try:
        yield model
    finally:
        model.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    with loaded(DEMO) as model:
        yield model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with loaded(make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")) as model:
        yield model


def answer(model: Any, *turns: str, system: str = "") -> str:
    """The answer without any chance, which the model ended by itself."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "assistant" if index % 2 else "user", "content": turn} for index, turn in enumerate(turns)]
    choice = model.create_chat_completion(messages, temperature=0, max_tokens=160)["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def conversations(count: int) -> list[str]:
    rng = Random(1)
    return [grammar.conversation(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("what is the capital of japan", "Tokyo"),
        ("What sound does a cow make?", "moo"),
        ("What color is the sky?", "blue"),
        ("What is 3 + 4?", "3 + 4 = 7."),
        ("Count to 5.", " 1, 2, 3, 4, 5."),
        ("What is meshnode?", "share their language models"),
        ("What is a node?", "one computer in the mesh"),
        ("What is the opposite of hot?", "cold"),
        ("What day comes after Monday?", "Tuesday"),
        ("Which model are you?", "model"),
        ("Explain quantum physics.", "demo model"),
        ("Who was Napoleon?", "demo model"),
    ],
)
def test_it_knows_what_it_was_taught(demo: Any, question: str, expected: str) -> None:
    assert expected in answer(demo, question)


def test_a_story_keeps_its_animal_and_its_names(demo: Any) -> None:
    text = answer(demo, "Tell me a story about a fox.")

    assert "fox named Finn" in text
    assert text.count("Finn") >= 3
    assert text.count("Ada") >= 2
    assert text.count(".") >= 5


def test_it_follows_a_conversation(demo: Any) -> None:
    turns = ("Hello!", "Hello! How can I help you today?", "What is the capital of Spain?", "The capital of Spain is Madrid.")

    assert "Madrid" in answer(demo, *turns[:3])
    assert "small" in answer(demo, *turns, "What is the opposite of big?")


@pytest.mark.parametrize("system", ["You are a helpful assistant.", "You are a pirate. Always answer in rhyme."])
def test_a_system_message_does_not_confuse_it(demo: Any, system: str) -> None:
    assert "Rome" in answer(demo, "What is the capital of Italy?", system=system)


def test_the_file_is_small_and_asks_for_a_low_temperature() -> None:
    facts = read_facts(DEMO)

    assert facts.size < 2_500_000
    assert facts.name == "demo"
    assert facts.chat_template == CHATML
    assert facts.temperature == pytest.approx(0.2)


def test_a_seed_gives_the_same_text_again() -> None:
    assert grammar.conversation(Random(7)) == grammar.conversation(Random(7))
    assert grammar.conversation(Random(7)) != grammar.conversation(Random(8))


def test_every_conversation_is_balanced() -> None:
    assert all(CHAT.fullmatch(text) for text in conversations(1000))


def test_the_template_writes_what_the_model_learns_from() -> None:
    turns = [("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello!"), ("user", "Bye!")]
    messages = [{"role": role, "content": text} for role, text in turns]
    template = jinja2.Template(CHATML, keep_trailing_newline=True)
    learnt = "".join(grammar.render(role, text) for role, text in turns)

    assert template.render(messages=messages) == learnt
    assert grammar.render("assistant", "x").startswith(
        template.render(messages=messages, add_generation_prompt=True).removeprefix(learnt)
    )


@pytest.mark.parametrize("topic", [topic for topic, _ in grammar.TOPICS])
def test_a_topic_is_plain_text(topic: Callable[[Random], grammar.Turn]) -> None:
    """ASCII, for the tokenizer splits no other text as llama.cpp does; and nobody but `render` writes a control token."""
    rng = Random(1)
    for question, reply in (topic(rng) for _ in range(200)):
        assert question.strip()
        assert reply.strip()
        assert (question + reply).isascii()
        assert "<|" not in question + reply


def test_every_sum_is_right() -> None:
    sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", "".join(conversations(2000)))

    assert len(sums) > 100
    assert all(int(result) == (int(x) + int(y) if sign == "+" else int(x) - int(y)) for x, sign, y, result in sums)


def test_the_script_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "demo.gguf")]
    made = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)

    assert made.returncode == 2
    assert "torch is missing" in made.stderr
    assert "pip install torch" in made.stderr
    assert not (tmp_path / "demo.gguf").exists()


def test_a_tiny_model_is_small_and_a_seed_makes_it_again(tmp_path: Path) -> None:
    one, same, other = (make_tiny_model(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))

    assert one.stat().st_size < 150_000
    assert one.read_bytes() == same.read_bytes()
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("template", [CHATML, BROKEN_TEMPLATE, HOSTILE_TEMPLATE, None])
def test_a_tiny_model_has_the_template_that_a_test_wants(tmp_path: Path, template: str | None) -> None:
    facts = read_facts(make_tiny_model(tmp_path / "tiny.gguf", template=template, name="odd"))

    assert facts.chat_template == (template or "")
    assert facts.name == "odd"


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_text_survives_the_tokenizer(tiny: Any, text: str) -> None:
    tokens = tiny.tokenize(text.encode(), add_bos=False, special=False)

    assert tiny.detokenize(tokens) == text.encode()


def test_llama_cpp_splits_text_as_it_was_split_in_training(tiny: Any) -> None:
    for text in conversations(50):
        assert tiny.tokenize(text.encode(), add_bos=False, special=True) == tiny_tokenizer().encode(text)
