"""The KV cache of the real llama.cpp under the engine: shared, parked, cut and continued without a token's difference.

In a unified cache llama.cpp sums a sequence's values in the order of their cells. Holes that others leave change it, hence the
last digits, and in time a token where two are nearly as likely. So these are answers that the demo model is sure of.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

import math
import random
import time
from collections import Counter
from dataclasses import replace

import numpy as np
from llama_cpp import llama_cpp as c
from tiny_model import make_tiny_model

from meshnode.inference import Chunk, End, Finish, Priority, Resume
from meshnode.worker import schedule
from meshnode.worker.compute import Compute, FlashAttention, KvType
from meshnode.worker.engine import Engine, Happening
from meshnode.worker.gguf import read_facts
from meshnode.worker.job import Job
from meshnode.worker.llama import LlamaRuntime
from meshnode.worker.penalties import Bias, Penalties
from meshnode.worker.runtime import NoRoom, Span
from meshnode.worker.sampling import Sampler

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
DEFAULT = Compute()
QUESTIONS = ("Tell me a story about a fox.", "Tell me a story about a dog.", "Tell me a story about a pig.")


def demo(*, slots: int = 3, context_length: int = 256, compute: Compute = DEFAULT) -> LlamaRuntime:
    return LlamaRuntime(DEMO, read_facts(DEMO), slots=slots, context_length=context_length, compute=compute)


@pytest.fixture(scope="module")
def runtime() -> LlamaRuntime:
    return demo()


@pytest.fixture(scope="module")
def parts() -> LlamaRuntime:
    return demo(compute=Compute(unified=False))


def prompt(runtime: LlamaRuntime, question: str) -> list[int]:
    return runtime.tokenize(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", True)


def fresh(runtime: LlamaRuntime, **bounds: int) -> Engine:
    for slot in range(runtime.slots):
        runtime.cut(slot, 0)
    return Engine(runtime, clock=time.monotonic, **bounds)


def endless(runtime: LlamaRuntime, *, temperature: float = 0.0, choice: int = 0) -> Sampler:
    bias = Bias(dict.fromkeys(runtime.ending(), -math.inf))
    return Sampler(seed=5, temperature=temperature, choice=choice, bias=bias)


def run(engine: Engine, *jobs: Job) -> list[Happening]:
    for job in jobs:
        engine.submit(job)
    happened: list[Happening] = []
    while engine.busy:
        happened += engine.step()
    return happened


def tokens(happened: Sequence[Happening], stream: int, choice: int = 0) -> list[int]:
    chunks = [event for number, event in happened if number == stream and isinstance(event, Chunk)]
    return [token for chunk in chunks if chunk.choice == choice for token in chunk.token_ids]


def text(happened: Sequence[Happening], stream: int) -> str:
    return "".join(event.text for number, event in happened if number == stream and isinstance(event, Chunk))


@pytest.mark.parametrize("kv_type", KvType)
@pytest.mark.parametrize("flash", FlashAttention)
def test_the_precision_of_the_cache_and_the_kind_of_attention_are_as_set(kv_type: KvType, flash: FlashAttention) -> None:
    if kv_type is not KvType.F16 and flash is FlashAttention.OFF:
        pytest.skip("llama.cpp quantises a cache only for flash attention; the settings refuse it")
    runtime = demo(compute=Compute(kv_type=kv_type, flash_attention=flash))
    run(engine := fresh(runtime), Job(stream=1, prompt=prompt(runtime, "What is 3 + 4?"), sampler=Sampler(seed=1, temperature=0)))
    saved = runtime.save(0, 10**9)

    assert not engine.busy
    assert saved is not None
    # keys and values of 64 numbers each in 5 layers, and a few bytes for each token and layer
    assert len(saved) / next(iter(engine.slots)).count == pytest.approx(2 * 5 * 64 * kv_type.bits / 8, rel=0.1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("max_parked", [10**9, 0])
def test_a_parked_answer_goes_on_as_if_nothing_had_been(
    max_parked: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three answers of some 70 tokens in a pool of 192, less their prompts. Without memory to park in, they are read again."""
    monkeypatch.setattr(schedule, "EXPECTED", 20)
    runtime = demo(context_length=64)
    jobs = [
        Job(stream=stream, prompt=prompt(runtime, question), sampler=Sampler(seed=5, temperature=temperature))
        for stream, question in enumerate(QUESTIONS)
    ]
    alone = [tokens(run(fresh(runtime), job), job.stream) for job in jobs]
    engine = fresh(runtime, max_parked=max_parked)
    for job in jobs:
        engine.submit(job)
    happened: list[Happening] = []
    waiting, parked = 0, 0
    while engine.busy:
        happened += engine.step()
        waiting, parked = max(waiting, engine.waiting), max(parked, engine.parked_bytes)

    assert [tokens(happened, job.stream) for job in jobs] == alone
    assert waiting > 0
    assert (parked > 0) is (max_parked > 0)
    assert engine.parked_bytes == 0


def test_a_prompt_is_shared_with_a_stream_that_is_still_running(runtime: LlamaRuntime) -> None:
    long = prompt(runtime, " ".join(QUESTIONS))
    job = Job(stream=2, prompt=[*long, *long[:3]], sampler=endless(runtime), max_tokens=30)
    alone = tokens(run(fresh(runtime), job), 2)
    engine = fresh(runtime)
    engine.submit(Job(stream=1, prompt=long, sampler=endless(runtime), max_tokens=60))
    engine.step()
    happened = run(engine, job)
    (end,) = [event for number, event in happened if number == 2 and isinstance(event, End)]

    assert end.usage.cached_tokens == len(long)
    assert tokens(happened, 2) == alone


@pytest.mark.parametrize("which", ["runtime", "parts"])
def test_each_of_several_choices_is_drawn_as_it_would_be_alone(which: str, request: pytest.FixtureRequest) -> None:
    runtime: LlamaRuntime = request.getfixturevalue(which)

    def job(sampler: Sampler, n: int = 1) -> Job:
        return Job(stream=1, prompt=prompt(runtime, QUESTIONS[0]), sampler=sampler, n=n, max_tokens=30)

    alone = [tokens(run(fresh(runtime), job(endless(runtime, temperature=0.9, choice=n))), 1, n) for n in range(3)]
    happened = run(fresh(runtime), job(endless(runtime, temperature=0.9), n=3))

    assert [tokens(happened, 1, choice) for choice in range(3)] == alone
    assert len({tuple(drawn) for drawn in alone}) == 3


def test_in_a_cache_in_parts_nothing_is_shared_and_everybody_says_what_they_say_alone(parts: LlamaRuntime) -> None:
    jobs = [
        Job(stream=stream, prompt=prompt(parts, question), sampler=endless(parts), max_tokens=100)
        for stream, question in enumerate(QUESTIONS)
    ]
    alone = [tokens(run(fresh(parts), job), job.stream) for job in jobs]
    happened = run(fresh(parts), *jobs)

    assert [tokens(happened, job.stream) for job in jobs] == alone
    assert not parts.copy(0, 1, 5)
    assert parts.context_length == 256


def test_one_request_may_use_the_whole_pool(runtime: LlamaRuntime) -> None:
    engine = fresh(runtime)
    question = prompt(runtime, QUESTIONS[0])
    happened = run(engine, Job(stream=1, prompt=question, sampler=endless(runtime)))

    assert runtime.context_length == runtime.pool == 768
    assert len(tokens(happened, 1)) == 768 - len(question)


def test_a_batch_without_room_is_refused_and_changes_nothing(runtime: LlamaRuntime) -> None:
    fresh(runtime)
    line = prompt(runtime, QUESTIONS[0]) * 40
    runtime.decode([Span(0, 0, line[:500], False)])
    with pytest.raises(NoRoom):
        runtime.decode([Span(1, 0, line[:300], False)])
    runtime.decode([Span(1, 0, line[:268], False)])

    assert runtime.cut(0, 0)


def test_what_was_saved_is_put_back_only_where_there_is_room(runtime: LlamaRuntime) -> None:
    fresh(runtime)
    line = (prompt(runtime, QUESTIONS[0]) * 40)[:500]
    runtime.decode([Span(0, 0, line, False)])
    saved = runtime.save(0, 10**9)
    expected = runtime.decode([Span(0, 500, line[:1], True)])[0].copy()

    assert saved is not None
    assert runtime.save(0, len(saved) - 1) is None
    assert not runtime.restore(1, saved)
    assert runtime.cut(0, 0)
    assert runtime.restore(1, saved)
    assert np.array_equal(runtime.decode([Span(1, 500, line[:1], True)])[0], expected)


def continued(runtime: LlamaRuntime, job: Job, ids: Sequence[int], emitted: int) -> list[Happening]:
    resume = Resume(token_ids=tuple(ids), emitted_chars=emitted)
    fields = {name: getattr(job, name) for name in ("stream", "prompt", "sampler", "max_tokens", "stops")}
    return run(fresh(runtime), Job(**fields, resume=(resume,)))


@pytest.mark.parametrize(
    ("letters", "stops", "finish"),
    [
        ("", (), Finish.LENGTH),
        ("", (" Finn said",), Finish.LENGTH),
        ("", (" Finn found",), Finish.STOP),
        ("é", (), Finish.LENGTH),
        ("é", ("ééé",), Finish.STOP),
    ],
)
def test_an_answer_cut_anywhere_goes_on_with_the_same_tokens_and_text(
    runtime: LlamaRuntime, letters: str, stops: tuple[str, ...], finish: Finish
) -> None:
    """Also inside a character, where only the bytes of `letters` are said, and inside what may become a stop string."""
    letters_bias = Bias(dict.fromkeys((token for each in letters for token in runtime.tokenize(each, False)), 90.0))
    sampler = Sampler(seed=11, temperature=0.8, penalties=Penalties(repeat=1.1, presence=0.2), bias=letters_bias)
    job = Job(stream=1, prompt=prompt(runtime, QUESTIONS[0]), sampler=sampler, max_tokens=50, stops=stops)
    whole = run(fresh(runtime), job)
    chunks = [event for _, event in whole if isinstance(event, Chunk)]
    held = 0
    for count in range(len(chunks) + 1):
        emitted = "".join(chunk.text for chunk in chunks[:count])
        ids = tokens(whole, 1)[:count]
        held += len(b"".join(map(runtime.piece, ids)).decode(errors="ignore")) > len(emitted)
        happened = continued(runtime, job, ids, len(emitted))

        assert ids + tokens(happened, 1) == tokens(whole, 1)
        assert emitted + text(happened, 1) == text(whole, 1)
        assert [event.finish for _, event in happened if isinstance(event, Chunk)][-1] is chunks[-1].finish
        assert [event.usage.completion_tokens for _, event in happened if isinstance(event, End)] == [len(chunks)]

    assert chunks[-1].finish is finish
    assert (held > 0) is bool(stops)


@pytest.mark.parametrize("unified", [True, False])
def test_several_choices_cut_anywhere_go_on_each_where_it_was(*, unified: bool) -> None:
    """One of them is far ahead, or ended; what is passed on again of that one is its finish alone."""
    runtime = demo(compute=Compute(unified=unified))
    sampler = Sampler(seed=3, temperature=0.9)
    job = Job(stream=1, prompt=prompt(runtime, QUESTIONS[1]), sampler=sampler, n=3, max_tokens=30)
    whole = run(fresh(runtime), job)
    chunks = [event for _, event in whole if isinstance(event, Chunk)]
    for cut in (1, 2, 7, 40, len(chunks) - 1, len(chunks)):
        heard = chunks[:cut]
        resume = tuple(
            Resume(
                token_ids=tuple(token for chunk in heard if chunk.choice == choice for token in chunk.token_ids),
                emitted_chars=sum(len(chunk.text) for chunk in heard if chunk.choice == choice),
            )
            for choice in range(3)
        )
        happened = run(fresh(runtime), replace(job, resume=resume))

        for choice in range(3):
            rest = [event for _, event in happened if isinstance(event, Chunk) and event.choice == choice]
            assert list(resume[choice].token_ids) + tokens(happened, 1, choice) == tokens(whole, 1, choice)
            said = "".join(chunk.text for chunk in heard if chunk.choice == choice)
            assert said + "".join(chunk.text for chunk in rest) == "".join(
                chunk.text for chunk in chunks if chunk.choice == choice
            )
            assert [chunk.finish for chunk in rest if chunk.finish] == [Finish.LENGTH]
        assert [event.usage.completion_tokens for _, event in happened if isinstance(event, End)] == [90]


def test_a_hundred_cancels_and_parks_at_random_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More streams than slots and three times what the pool holds, of which a third is cancelled at any moment."""
    monkeypatch.setattr(schedule, "EXPECTED", 8)
    path = make_tiny_model(tmp_path / "tiny.gguf")
    runtime = LlamaRuntime(path, read_facts(path), slots=6, context_length=64)
    rng = random.Random(7)
    engine = Engine(runtime, clock=time.monotonic, max_parked=60_000)
    counts: Counter[str] = Counter()
    count_calls(monkeypatch, runtime, counts)
    running: set[int] = set()
    ended: Counter[int] = Counter()
    stream = 0
    while min(counts["cancel"], counts["save"], counts["restore"]) < 100:
        if len(running) < 12:
            stream += 1
            running.add(stream)
            start = [rng.randrange(3, 6) for _ in range(rng.randrange(2))] * rng.randrange(1, 40)
            engine.submit(
                Job(
                    stream=stream,
                    prompt=[*start, *(rng.randrange(3, 200) for _ in range(rng.randrange(1, 40)))],
                    sampler=endless(runtime, temperature=rng.choice((0.0, 1.0))),
                    n=rng.choice((1, 1, 1, 3)),
                    max_tokens=rng.choice((None, 5, 100)),
                    priority=rng.choice(list(Priority)),
                )
            )
        for number, event in engine.step():
            assert number in running
            assert not isinstance(event, Exception)
            if isinstance(event, End):
                ended[number] += 1
                running.remove(number)
        if rng.random() < 0.05:
            counts["cancel"] += 1
            engine.cancel(leaver := rng.choice(sorted(running)))
            running.remove(leaver)
    for number, event in run(engine):
        if isinstance(event, End):
            ended[number] += 1
            running.remove(number)

    assert not running
    assert set(ended.values()) == {1}
    assert counts["copy"] > 0
    assert engine.parked_bytes == 0
    assert engine.free_slots == runtime.slots
    for slot in engine.slots:
        assert c.llama_memory_seq_pos_max(runtime._memory, slot.id) == slot.count - 1


def count_calls(monkeypatch: pytest.MonkeyPatch, runtime: LlamaRuntime, counts: Counter[str]) -> None:
    """Count the calls of `save`, `restore` and `copy` that did something."""

    def counting(name: str) -> None:
        real = getattr(runtime, name)

        def call(*arguments: object) -> object:
            result = real(*arguments)
            counts[name] += bool(result)
            return result

        monkeypatch.setattr(runtime, name, call)

    for name in ("save", "restore", "copy"):
        counting(name)
