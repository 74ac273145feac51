"""The real llama.cpp under the engine, with the demo model, in this process."""

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

import itertools
import time

from meshnode.errors import ConfigurationError
from meshnode.inference import Chunk
from meshnode.worker import machine
from meshnode.worker.engine import Engine
from meshnode.worker.gguf import read_facts
from meshnode.worker.job import Job
from meshnode.worker.llama import LlamaRuntime, gpus
from meshnode.worker.prompt import Tokenizer
from meshnode.worker.protocol import Region
from meshnode.worker.runtime import Span
from meshnode.worker.sampling import Sampler

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
QUESTIONS = ("What is the capital of France?", "Tell me a story about a fox.", "Hello", "What is 3 + 4?")


@pytest.fixture(scope="module")
def runtime() -> LlamaRuntime:
    return LlamaRuntime(DEMO, read_facts(DEMO), slots=4, context_length=512)


def prompt(runtime: LlamaRuntime, question: str) -> list[int]:
    return runtime.tokenize(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", True)


def answers(runtime: LlamaRuntime, questions: Sequence[str], temperature: float = 0) -> list[str]:
    engine = Engine(runtime, clock=time.monotonic)
    for slot in range(runtime.slots):
        runtime.cut(slot, 0)
    for stream, question in enumerate(questions):
        engine.submit(Job(stream=stream, prompt=prompt(runtime, question), sampler=Sampler(seed=5, temperature=temperature)))
    texts = [""] * len(questions)
    while engine.busy:
        for stream, event in engine.step():
            if isinstance(event, Chunk):
                texts[stream] += event.text
    return texts


def test_the_demo_model_knows_a_capital(runtime: LlamaRuntime) -> None:
    assert "Paris" in answers(runtime, QUESTIONS[:1])[0]


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(runtime: LlamaRuntime, temperature: float) -> None:
    alone = [answers(runtime, [question], temperature)[0] for question in QUESTIONS]

    assert answers(runtime, QUESTIONS, temperature) == alone


def test_tokens_spell_the_text_that_they_came_from(runtime: LlamaRuntime) -> None:
    text = "Grüße, 世界! \N{PILE OF POO}"

    assert b"".join(map(runtime.piece, runtime.tokenize(text, False))).decode() == text


def test_only_the_template_can_write_a_control_token(runtime: LlamaRuntime) -> None:
    (control,) = runtime.tokenize("<|im_end|>", True)
    tokens = Tokenizer(runtime.tokenize, controls=runtime.control_texts(), first=None).tokens(
        [Region(text="<|im_start|>", ours=True), Region(text="x<|im_end|>y", ours=False), Region(text="<|im_end|>", ours=True)]
    )

    assert tokens.count(control) == 1
    assert tokens[-1] == control
    assert runtime.ends(control)
    assert runtime.piece(control) == b""


def test_an_honest_prompt_has_the_tokens_of_the_whole_text(runtime: LlamaRuntime) -> None:
    whole = "<|im_start|>user\nHello there<|im_end|>\n"
    regions = [
        Region(text="<|im_start|>", ours=True),
        Region(text="user", ours=False),
        Region(text="\n", ours=True),
        Region(text="Hello there", ours=False),
        Region(text="<|im_end|>\n", ours=True),
    ]

    tokens = Tokenizer(runtime.tokenize, controls=runtime.control_texts(), first=None).tokens(regions)
    assert tokens == runtime.tokenize(whole, True)


@pytest.mark.skipif(gpus() > 0, reason="weights do not go to main memory here")
def test_a_model_that_does_not_fit_is_refused_with_both_figures() -> None:
    with pytest.raises(machine.MemoryShort, match=r"needs about \d+ MB: 1\.2 MB weights, .*; 50 MB are free"):
        LlamaRuntime(DEMO, read_facts(DEMO), slots=4, context_length=512, memory_free=50_000_000)


def test_the_number_of_threads_is_changed_between_batches() -> None:
    runtime = LlamaRuntime(DEMO, read_facts(DEMO), slots=1, context_length=256)
    runtime._thread_limit = 8
    counts = []
    for count in (8, 3, 0, 100):
        runtime.set_threads(count)
        counts.append(runtime.threads())
        (logits,) = runtime.decode([Span(0, len(counts) - 1, [5], True)])
        assert len(logits) == runtime.vocabulary()

    assert counts == [8, 3, 1, 8]


def test_threads_are_fewer_while_somebody_else_has_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = LlamaRuntime(DEMO, read_facts(DEMO), slots=1, context_length=256)
    runtime._thread_limit = 4
    runtime.set_threads(4)
    wall, cpu = itertools.count(), itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 0.1 * next(wall))
    monkeypatch.setattr(time, "process_time", lambda: 0.35 * next(cpu))  # three threads whole, one halved
    runtime.decode([Span(0, 0, [5], True)])

    assert runtime.threads() == 3


def test_a_file_that_llama_cpp_refuses_is_named_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    path.write_bytes(DEMO.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxxma", 1))

    with pytest.raises(ConfigurationError, match=r"cannot load .*strange\.gguf: .*lxxma"):
        LlamaRuntime(path, read_facts(path), slots=1, context_length=256)
