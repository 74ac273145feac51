"""Real child processes with the demo model: everything that can happen to one, and what its requests then see.

Starting one takes half a second, so the tests that leave it as it was share one, which lives in an event loop of its own.
"""

import importlib.util
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

pytest.importorskip("llama_cpp")

import trio
from tiny_model import make_tiny_model, tiny_tokenizer
from worker.asking import answer, ask, events_of, gone, running, wait_for
from worker.tool_templates import MISTRAL

from meshnode.errors import ContextTooLong, InvalidRequest, MeshnodeError, ModelUnavailable, Overloaded, Unsupported, WorkerFailed
from meshnode.inference import Bias, Chunk, End, Event, Finish, Logprobs, Progress, Request, Resume, Sampling
from meshnode.worker import child, confinement, known, requests, stream, supervisor
from meshnode.worker.supervisor import State, Worker

Result = TypeVar("Result")

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
LONG = Sampling(temperature=100, top_k=0, top_p=1, seed=6)
"""Nearly random words, and seldom an end: hundreds of tokens."""


@pytest.fixture
def states() -> list[State]:
    return []


@pytest.fixture
async def worker(tmp_path: Path, states: list[State]) -> AsyncIterator[Worker]:
    """A ready worker of one's own, for tests that harm it."""
    async with running(Worker("demo", DEMO, cache_dir=tmp_path / "cache"), states) as worker:
        await wait_for(lambda: worker.state is State.READY)
        yield worker


class Shared:
    """A ready worker in an event loop in a thread; `run` runs a test's coroutine there."""

    def __init__(self, cache_dir: Path) -> None:
        self.worker = Worker("demo", DEMO, aliases=("small",), cache_dir=cache_dir)
        self.states: list[State] = []
        self._ready = threading.Event()
        self._stop = trio.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._ready.wait(20)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with running(self.worker, self.states):
            await wait_for(lambda: self.worker.state is State.READY)
            self._ready.set()
            await self._stop.wait()

    def run(self, test: Callable[[Worker], Awaitable[Result]]) -> Result:
        return trio.from_thread.run(test, self.worker, trio_token=self._token)

    def close(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(tmp_path_factory.mktemp("shared"))
    yield shared
    shared.close()


def test_a_ready_worker_says_what_it_holds(shared: Shared) -> None:
    worker = shared.worker
    load = worker.load()

    assert shared.states == [State.READY]
    assert worker.model is not None
    assert (worker.model.name, worker.model.aliases, worker.model.size) == ("demo", ("small",), DEMO.stat().st_size)
    assert (worker.model.slots, worker.model.context_length, len(worker.model.digest)) == (4, 2048, 32)
    assert (load.name, load.state, load.active, load.slots, load.queued, load.kv_free_tokens) == ("demo", "ready", 0, 4, 0, 8192)


def test_an_answer_streams_and_ends_with_its_counts(shared: Shared) -> None:
    events = shared.run(lambda worker: events_of(worker, ask()))
    chunks = [event for event in events if isinstance(event, Chunk)]

    assert "Paris" in "".join(chunk.text for chunk in chunks)
    assert isinstance(events[0], Progress)
    assert chunks[-1].finish is Finish.STOP
    assert isinstance(events[-1], End)
    assert events[-1].usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks) == len(chunks)
    assert events[-1].usage.prompt_tokens > 5
    load = shared.worker.load()
    assert load.tokens_per_s > 0
    assert load.step_ms > 0
    assert load.load_ms == 0


def test_four_streams_at_once_answer_as_one_alone(shared: Shared) -> None:
    questions = ["What is the capital of France?", "Hello", "Tell me a story about a fox.", "What is 3 + 4?"]

    async def test(worker: Worker) -> tuple[list[str], list[str]]:
        alone = [await answer(worker, ask(question)) for question in questions]
        together = dict.fromkeys(questions, "")

        async def one(question: str) -> None:
            together[question] = await answer(worker, ask(question))

        async with trio.open_nursery() as nursery:
            for question in questions:
                nursery.start_soon(one, question)
        return alone, list(together.values())

    alone, together = shared.run(test)
    assert together == alone


def test_a_seed_makes_an_answer_repeatable(shared: Shared) -> None:
    first = msgspec.structs.replace(LONG, max_tokens=20)
    other = msgspec.structs.replace(first, seed=7)

    async def test(worker: Worker) -> list[str]:
        return [await answer(worker, ask(sampling=sampling)) for sampling in (first, first, other)]

    texts = shared.run(test)
    assert texts[0] == texts[1] != texts[2]


def test_stop_strings_and_max_tokens_are_obeyed(shared: Shared) -> None:
    stopped = shared.run(lambda worker: answer(worker, ask(sampling=Sampling(temperature=0, stop=(" Paris",)))))
    limited = shared.run(lambda worker: events_of(worker, ask(sampling=Sampling(temperature=0, max_tokens=2))))

    assert stopped == "The capital of France is"
    assert [event.finish for event in limited if isinstance(event, Chunk)] == [None, Finish.LENGTH]


def test_an_answer_can_be_kept_from_its_end_and_from_a_word(shared: Shared) -> None:
    async def test(worker: Worker) -> tuple[list[Event], list[Event]]:
        plain = await events_of(worker, ask())
        endless = Sampling(temperature=0, max_tokens=len(plain) + 20, ignore_eos=True)
        first = next(event.token_ids[0] for event in plain if isinstance(event, Chunk))
        without = Sampling(temperature=0, max_tokens=1, logit_bias=(Bias(first, -100),))
        return await events_of(worker, ask(sampling=endless)), await events_of(worker, ask(sampling=without))

    endless, without = shared.run(test)
    finishes = [event.finish for event in endless if isinstance(event, Chunk)]
    assert finishes == [None] * (len(finishes) - 1) + [Finish.LENGTH]
    assert "The" not in "".join(event.text for event in without if isinstance(event, Chunk))


def test_log_probabilities_come_with_each_token(shared: Shared) -> None:
    request = msgspec.structs.replace(ask(), logprobs=Logprobs(top=3))
    events = shared.run(lambda worker: events_of(worker, request))
    chunks = [event for event in events if isinstance(event, Chunk)]
    likely = [each for chunk in chunks for each in chunk.logprobs]

    assert b"".join(each.text for each in likely).decode() == "".join(chunk.text for chunk in chunks)
    assert all(len(each.top) == 3 and each.top[0].token == each.token for each in likely)
    assert all(each.logprob == each.top[0].logprob >= each.top[2].logprob for each in likely)
    assert all(sum(math.exp(other.logprob) for other in each.top) <= 1.001 for each in likely)


def test_penalties_keep_a_greedy_answer_from_its_own_words(shared: Shared) -> None:
    async def test(worker: Worker, sampling: Sampling) -> list[int]:
        events = await events_of(worker, ask("Tell me a story about a fox.", sampling))
        return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]

    plain = Sampling(temperature=0, max_tokens=60, ignore_eos=True)
    strict = msgspec.structs.replace(plain, repeat_penalty=10, repeat_last_n=-1, presence_penalty=2, frequency_penalty=2)
    often, once = shared.run(lambda worker: test(worker, plain)), shared.run(lambda worker: test(worker, strict))

    assert len(set(often)) < len(often)
    assert len(set(once)) > len(set(often))


def test_several_choices_read_the_prompt_once_and_each_is_its_own(shared: Shared) -> None:
    asked = msgspec.structs.replace(ask("Tell me a story.", Sampling(seed=1, temperature=1.5, max_tokens=15)), n=3)
    events = shared.run(lambda worker: events_of(worker, asked))
    texts = dict.fromkeys(range(3), "")
    for event in events:
        if isinstance(event, Chunk):
            texts[event.choice] += event.text
    (end,) = [event for event in events if isinstance(event, End)]
    alone = shared.run(lambda worker: events_of(worker, msgspec.structs.replace(asked, n=1)))

    assert texts[0] == "".join(event.text for event in alone if isinstance(event, Chunk))
    assert len(set(texts.values())) == 3
    assert end.usage.prompt_tokens == next(event for event in alone if isinstance(event, End)).usage.prompt_tokens
    assert end.usage.completion_tokens == sum(len(event.token_ids) for event in events if isinstance(event, Chunk))


def test_an_answer_goes_on_where_another_node_left_it(shared: Shared) -> None:
    asked = ask(sampling=Sampling(seed=3, temperature=0.8, max_tokens=20))
    whole = [event for event in shared.run(lambda worker: events_of(worker, asked)) if isinstance(event, Chunk)]
    ids = tuple(token for chunk in whole[:4] for token in chunk.token_ids)
    emitted = "".join(chunk.text for chunk in whole[:4])
    asked = msgspec.structs.replace(asked, resume=(Resume(token_ids=ids, emitted_chars=len(emitted)),))
    events = shared.run(lambda worker: events_of(worker, asked))

    assert "".join(event.text for event in events if isinstance(event, Chunk)) == "".join(chunk.text for chunk in whole[4:])
    assert isinstance(events[-1], End)
    assert events[-1].usage.completion_tokens == sum(len(chunk.token_ids) for chunk in whole)


def test_a_message_cannot_end_its_own_turn(shared: Shared) -> None:
    def cost(content: str) -> int:
        (end,) = [event for event in shared.run(lambda worker: events_of(worker, ask(content))) if isinstance(event, End)]
        return end.usage.prompt_tokens

    # As control tokens, ten more markers would cost ten tokens; spelt out they cost several each.
    assert cost("Hi" + "<|im_end|>" * 11) - cost("Hi<|im_end|>") >= 40


def test_a_plain_prompt_is_gone_on_with_without_a_template_and_may_name_control_tokens(shared: Shared) -> None:
    """The prompt is what the template makes of the question, spelt by the client; hence the same answer, at the same cost."""
    spelt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    plain = msgspec.structs.replace(ask(), messages=(), prompt=spelt)
    told, own = shared.run(lambda worker: events_of(worker, ask())), shared.run(lambda worker: events_of(worker, plain))

    assert [event.text for event in own if isinstance(event, Chunk)] == [event.text for event in told if isinstance(event, Chunk)]
    assert isinstance(own[-1], End)
    assert isinstance(told[-1], End)
    assert own[-1].usage.prompt_tokens == told[-1].usage.prompt_tokens


def test_a_prompt_is_counted_without_an_answer_even_one_beyond_the_context(shared: Shared) -> None:
    def counted(content: str) -> tuple[str, int]:
        events = shared.run(lambda worker: events_of(worker, ask(content, Sampling(max_tokens=0))))
        assert isinstance(events[-1], End)
        return "".join(event.text for event in events if isinstance(event, Chunk)), events[-1].usage.prompt_tokens

    (end,) = [event for event in shared.run(lambda worker: events_of(worker, ask())) if isinstance(event, End)]
    assert counted("What is the capital of France?") == ("", end.usage.prompt_tokens)
    assert counted("word " * 3000)[1] > 3000


def test_a_prompt_can_be_had_back_as_tokens_and_the_tokens_as_text(shared: Shared) -> None:
    def echoed(prompt: str | tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        request = Request(id="r", model="demo", messages=(), prompt=prompt, echo=True, sampling=Sampling(max_tokens=0))
        (chunk, _) = shared.run(lambda worker: events_of(worker, request))
        assert isinstance(chunk, Chunk)
        return chunk.text, chunk.token_ids

    text, tokens = echoed("Once upon a time — ✓")
    assert text == "Once upon a time — ✓"
    assert echoed(tokens) == (text, tokens)
    assert len(tokens) > 3


async def test_a_model_is_told_whether_to_think(tmp_path: Path) -> None:
    template = "{% if enable_thinking is defined %}{{ 'qzxjqzxj' if enable_thinking else 'qzxj' }}{% endif %}b"
    path = make_tiny_model(tmp_path / "thinker.gguf", template=template)
    async with running(Worker("demo", path, cache_dir=tmp_path / "cache")) as worker:
        await wait_for(lambda: worker.state is State.READY)
        counts = []
        for thinking in (None, False, True):
            request = msgspec.structs.replace(ask(sampling=Sampling(max_tokens=0)), thinking=thinking)
            counts += [event.usage.prompt_tokens for event in await events_of(worker, request) if isinstance(event, End)]

    assert counts[0] < counts[1] < counts[2]


TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'


def test_tools_are_told_to_the_model_unless_none_may_be_called(shared: Shared) -> None:
    def cost(**changes: str) -> int:
        request = msgspec.structs.replace(ask(sampling=Sampling(max_tokens=1)), **changes)
        (end,) = [event for event in shared.run(lambda worker: events_of(worker, request)) if isinstance(event, End)]
        return end.usage.prompt_tokens

    assert cost(tools=TOOLS) > cost() + 50
    assert cost(tools=TOOLS, tool_choice='"none"') == cost()


def test_a_model_that_must_call_begins_to(shared: Shared) -> None:
    """What it makes of the arguments is up to it: a call, or what was written shown as text."""
    choice = '{"type": "function", "function": {"name": "weather"}}'
    request = msgspec.structs.replace(ask(sampling=Sampling(temperature=0, max_tokens=40)), tools=TOOLS, tool_choice=choice)
    said = [event for event in shared.run(lambda worker: events_of(worker, request)) if isinstance(event, Chunk)]
    text = "".join(chunk.text for chunk in said)

    assert text.startswith('<tool_call>\n{"name": "weather", "arguments": ') or [
        call.name for chunk in said for call in chunk.tool_calls if call.id
    ] == ["weather"]


@pytest.mark.slow
async def test_a_mark_that_is_a_control_token_is_seen_by_the_reader_of_calls_and_by_nobody_else(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "marked.gguf", template=MISTRAL)
    mark = tiny_tokenizer().tokens.index("<|im_start|>")
    path.write_bytes(path.read_bytes().replace(b"<|im_start|>", b"[TOOL_CALLS]"))
    always = Sampling(temperature=0, max_tokens=3, logit_bias=(Bias(mark, 100),))
    async with running(Worker("demo", path, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.READY)

        assert await answer(worker, msgspec.structs.replace(ask(sampling=always), tools=TOOLS)) == "[TOOL_CALLS]" * 3
        assert await answer(worker, ask(sampling=always)) == ""


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask("word " * 3000), ContextTooLong),
        (msgspec.structs.replace(ask(), n=9), InvalidRequest),
        (msgspec.structs.replace(ask(), resume=(Resume(token_ids=(10**6,), emitted_chars=0),)), InvalidRequest),
        (ask(sampling=Sampling(max_tokens=-1)), InvalidRequest),
        (ask("half a pair: \ud800"), InvalidRequest),
        (ask(sampling=Sampling(logit_bias=(Bias(10**6, 1),))), InvalidRequest),
        (msgspec.structs.replace(ask(), messages=(), prompt=(10**6,)), InvalidRequest),
        (msgspec.structs.replace(ask(), messages=(), prompt=()), InvalidRequest),
        (msgspec.structs.replace(ask("1 " * (1 << 20)), echo=True, sampling=Sampling(max_tokens=0)), InvalidRequest),
        (msgspec.structs.replace(ask(), tools="["), InvalidRequest),
        (msgspec.structs.replace(ask(), tools='[{"type": "web_search"}]'), Unsupported),
    ],
)
def test_a_bad_request_fails_alone_and_the_child_goes_on(shared: Shared, request_: Request, error: type[MeshnodeError]) -> None:
    pid = shared.worker.pid
    with pytest.raises(error):
        shared.run(lambda worker: events_of(worker, request_))

    assert "Paris" in shared.run(lambda worker: answer(worker, ask()))
    assert shared.worker.pid == pid


def test_the_work_that_is_left_is_told_while_there_is_some(shared: Shared) -> None:
    async def test(worker: Worker) -> tuple[int, int]:
        async with worker.submit(ask(sampling=LONG)) as events:
            for _ in range(5):
                await anext(events)
            left = worker.load().remaining_ms
        return left, worker.load().remaining_ms

    left, after = shared.run(test)
    assert left > 0
    assert after == 0


async def test_what_is_cached_is_told_by_the_chain_of_its_prompt_until_the_child_ends(tmp_path: Path) -> None:
    worker = Worker("demo", DEMO, cache_dir=tmp_path, chain_of=lambda request, _: (len(request.messages[0].content), 7))
    async with running(worker):
        await wait_for(lambda: worker.state is State.READY)
        assert worker.cached == ()
        for content in ("Hello", "Hi", "Hello"):
            await answer(worker, ask(content))
        await wait_for(lambda: worker.cached == ((5, 7), (2, 7)))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await wait_for(lambda: worker.state is State.FAILED)
        assert worker.cached == ()


def test_who_leaves_early_cancels_at_once(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send = child.Child.send

    def spy(self: child.Child, data: bytes) -> None:
        sent.append(data)
        send(self, data)

    async def test(worker: Worker) -> tuple[int, int]:
        async with worker.submit(ask(sampling=LONG)) as events:
            await anext(events)
            active = worker.load().active
        return active, worker.load().active

    monkeypatch.setattr(child.Child, "send", spy)
    assert shared.run(test) == (1, 0)
    assert [b"cancel" in data for data in sent] == [False, True]


def test_a_reader_that_never_reads_loses_its_stream_and_only_that(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_UNREAD", 20)

    async def test(worker: Worker) -> str:
        async with worker.submit(ask("Tell me a story about a fox.")) as events:
            other = await answer(worker, ask())
            await wait_for(lambda: isinstance(events, stream.Stream) and events.finished)
            with pytest.raises(Overloaded, match="tokens behind"):
                _ = [batch async for batch in events]
        return other

    assert "Paris" in shared.run(test)


@pytest.mark.slow
async def test_more_requests_than_slots_wait_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_WAITING", 1)
    async with running(Worker("demo", DEMO, cache_dir=tmp_path, slots=1, context_length=256)) as worker:
        await wait_for(lambda: worker.state is State.READY)
        async with worker.submit(ask(sampling=LONG)) as first, worker.submit(ask()) as second:
            load = worker.load()
            with pytest.raises(Overloaded):
                await events_of(worker, ask())
            await anext(first)
            text = "".join([event.text async for batch in second for event in batch if isinstance(event, Chunk)])

        assert (load.active, load.queued) == (1, 1)
        assert "Paris" in text
        assert worker.model is not None
        assert worker.model.context_length == 256


async def test_requests_that_nobody_waits_for_do_not_pile_up_before_a_busy_child(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_UNSENT", 1_000_000)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    for _ in range(10):
        with suppress(Overloaded):
            async with worker.submit(ask("x" * 300_000)):
                pass
    with pytest.raises(Overloaded, match="behind"):
        await answer(worker, ask())

    os.kill(worker.pid, signal.SIGCONT)
    await wait_for(lambda: worker._child is not None and worker._child.unsent == 0)
    assert await answer(worker, ask())


async def test_a_killed_child_fails_its_requests_and_comes_back(
    worker: Worker, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S", 0.05)
    killed = worker.pid
    assert killed is not None
    async with worker.submit(ask(sampling=LONG)) as events, worker.submit(ask(sampling=LONG)) as others:
        while not any(isinstance(event, Chunk) for event in await anext(events)):
            pass
        os.kill(killed, signal.SIGKILL)
        with trio.fail_after(1):
            for stream_ in (events, others):
                with pytest.raises(WorkerFailed, match="killed by SIGKILL"):
                    async for _ in stream_:
                        pass
    await wait_for(lambda: worker.state is State.LOADING)
    trouble_while_loading = worker.trouble
    await wait_for(lambda: worker.state is State.READY and worker.pid != killed)

    assert "SIGKILL" in trouble_while_loading
    assert worker.trouble == ""
    assert states == [State.READY, State.FAILED, State.LOADING, State.READY]
    assert "Paris" in await answer(worker, ask())


@pytest.mark.slow
async def test_an_aborting_child_is_told_with_the_signal_and_starts_no_debugger(worker: Worker) -> None:
    async with worker.submit(ask(sampling=LONG)) as events:
        await anext(events)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGABRT)  # what GGML_ASSERT does
        with trio.fail_after(1), pytest.raises(WorkerFailed, match="killed by SIGABRT"):
            async for _ in events:
                pass

    assert worker.state is State.FAILED
    with pytest.raises(ModelUnavailable, match="demo is failed on this node: its worker process ended") as caught:
        await events_of(worker, ask())
    assert caught.value.retry_after == pytest.approx(1, abs=0.5)
    assert worker.load().state == "failed"
    assert worker.model is not None


async def test_a_child_that_dies_at_its_start_is_tried_again_ever_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S", 0.02)
    times: list[float] = []

    def dying(_module: str, *_args: str) -> list[str]:
        times.append(trio.current_time())
        return ["/bin/sh", "-c", "echo first >&2; echo GGML_ASSERT of ours failed >&2; exit 3"]

    monkeypatch.setattr(confinement, "command", dying)
    async with running(Worker("demo", DEMO, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: len(times) == 5)
        await wait_for(lambda: worker.state is State.FAILED)

        assert worker.reason == "its worker process ended: exit status 3; its last words: first | GGML_ASSERT of ours failed"
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(gap >= 0.02 * 2**index for index, gap in enumerate(gaps))
    assert worker.model is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1000], "is truncated: it has"),
        pytest.param(lambda _: b"PK" + b"\0" * 99, "is not a GGUF file", marks=pytest.mark.slow),
    ],
)
async def test_a_bad_file_is_named_and_tried_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes], said: str
) -> None:
    monkeypatch.setattr(known, "FILE_POLL_S", 0.02)
    path = tmp_path / "m.gguf"
    path.write_bytes(damage(DEMO.read_bytes()))
    async with running(Worker("demo", path, cache_dir=tmp_path / "cache")) as worker:
        await wait_for(lambda: worker.state is State.FAILED)
        assert said in worker.reason
        assert str(path) in worker.reason
        assert worker.pid is None
        path.write_bytes(DEMO.read_bytes())
        await wait_for(lambda: worker.state is State.READY)

        assert "Paris" in await answer(worker, ask())


async def test_a_context_beyond_what_the_model_was_trained_for_is_cut_and_told(tmp_path: Path) -> None:
    async with running(Worker("demo", DEMO, cache_dir=tmp_path, slots=1, context_length=100_000)) as worker:
        await wait_for(lambda: worker.state is State.READY)

        assert worker.reason == "It was trained for a context of 2048 tokens and gets that, not 100000."
        assert worker.model is not None
        assert worker.model.context_length == 2048


@pytest.mark.slow
async def test_a_model_without_a_template_gets_chatml_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.gguf")  # no UTF-8: names of files are bytes
    path.write_bytes(DEMO.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatf"))
    async with running(Worker("demo", path, cache_dir=tmp_path / "cache")) as worker:
        await wait_for(lambda: worker.state is State.READY)

        assert "no chat template; ChatML is used" in worker.reason
        assert "Paris" in await answer(worker, ask())


async def test_a_child_that_cannot_be_started_is_a_failure_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "command", lambda *_: ["/nowhere/python"])
    async with running(Worker("demo", DEMO, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.FAILED)

        assert "cannot be started: No such file or directory" in worker.reason


async def test_a_file_that_is_not_there_is_named_in_the_log_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(Worker("demo", tmp_path / "nowhere.gguf", cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.FAILED)

        assert "nowhere.gguf" in worker.reason
        assert ("WARNING", f"demo is failed: {worker.reason}") in [(each.levelname, each.getMessage()) for each in caplog.records]


@pytest.mark.slow
async def test_a_file_that_makes_llama_cpp_abort_costs_its_child_only(tmp_path: Path) -> None:
    key = b"llama.block_count\x04\0\0\0"
    path = tmp_path / "m.gguf"
    path.write_bytes(DEMO.read_bytes().replace(key + b"\x05\0\0\0", key + b"\0\0\0\0"))
    async with running(Worker("demo", path, cache_dir=tmp_path / "cache")) as worker:
        await wait_for(lambda: worker.state is State.FAILED)

        assert "killed by SIGABRT; its last words:" in worker.reason
        assert "GGML_ASSERT" in worker.reason


@pytest.mark.slow
async def test_a_model_with_a_hostile_template_is_not_offered(tmp_path: Path) -> None:
    old = b"{% for message in messages %}"
    path = tmp_path / "m.gguf"
    path.write_bytes(DEMO.read_bytes().replace(old, b"{{ 'a' * 300000000 }}".ljust(len(old))))
    async with running(Worker("demo", path, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.FAILED)

        assert "Its chat template is refused" in worker.reason


async def test_without_llama_cpp_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else name)
    async with running(Worker("demo", DEMO, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.FAILED)

        assert "llama_cpp missing" in worker.reason
        assert "pip install 'meshnode[llama]'" in worker.reason


async def test_a_request_before_it_is_ready_is_told_to_come_back(tmp_path: Path) -> None:
    worker = Worker("demo", DEMO, cache_dir=tmp_path)

    with pytest.raises(ModelUnavailable, match="demo is loading") as caught:
        await events_of(worker, ask())
    assert caught.value.retry_after == 2
    assert worker.load().state == "loading"


@LINUX
def test_the_child_has_given_up_what_it_does_not_need(shared: Shared) -> None:
    proc = Path(f"/proc/{shared.worker.pid}")
    files = [os.readlink(entry) for entry in (proc / "fd").iterdir()]

    assert "NoNewPrivs:\t1" in (proc / "status").read_text()
    assert "Max core file size        0                    0" in (proc / "limits").read_text()
    assert b"MESHNODE_" not in (proc / "environ").read_bytes()
    assert sum(name.startswith("socket:") for name in files) == 2  # to us and to the renderer
    assert sum(name.startswith("pipe:") for name in files) == 1  # standard error


@LINUX
@pytest.mark.slow
async def test_stopping_ends_the_child_and_its_renderer(tmp_path: Path) -> None:
    async with running(Worker("demo", DEMO, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.READY)
        pid = worker.pid
        (renderer,) = children(pid)
    assert pid is not None

    assert gone(pid)
    await wait_for(lambda: gone(renderer), 2)


@LINUX
@pytest.mark.slow
async def test_a_child_that_does_not_go_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.05)
    monkeypatch.setattr(child, "_TERM_S", 0.05)
    async with running(Worker("demo", DEMO, cache_dir=tmp_path)) as worker:
        await wait_for(lambda: worker.state is State.READY)
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

    assert gone(pid)


def children(pid: int | None) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


PARENT = """
import sys, trio
from pathlib import Path
from meshnode.worker.supervisor import State, Worker
worker = Worker("demo", Path(sys.argv[1]), cache_dir=Path(sys.argv[2]))
trio.run(lambda: worker.run(on_change=lambda: print(worker.pid, flush=True)))
"""


@LINUX
@pytest.mark.slow
def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(DEMO), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=DEMO.parents[2]) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        (renderer,) = children(pid)
        parent.kill()

    trio.run(wait_for, lambda: gone(pid) and gone(renderer), 2)
