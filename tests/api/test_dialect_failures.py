"""Failures as the official clients of Anthropic and Ollama see them, against a node of fakes."""

from collections.abc import Callable
from typing import Any, TypeVar

import anthropic
import ollama
import pytest
import trio
from api.serving import CLOSE, SECRET, FakeNode, app_of, in_memory, post, read_all, served
from trio.testing import MockClock

from meshnode.api.app import App
from meshnode.errors import LinkLost, Overloaded
from meshnode.testing import FakeWorker

T = TypeVar("T")
ASK: Any = [{"role": "user", "content": "Say something."}]


async def with_port(worker: FakeWorker, use: Callable[[int], T]) -> T:
    """What `use` makes of a node's port in a thread; or its exception."""
    failure: Exception
    async with served(App(FakeNode({"holder": worker}), admin_secret=SECRET, hosts=frozenset())) as serving:
        try:
            return await trio.to_thread.run_sync(use, serving.port)
        except (anthropic.APIError, ollama.ResponseError) as error:
            failure = error
    raise failure


def anthropic_at(port: int) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="any", max_retries=0)


def lost(after: int) -> FakeWorker:
    return FakeWorker(fail_after=after, failure=lambda: LinkLost("The peer went away."))


async def test_a_failure_in_mid_stream_raises_in_anthropics_client() -> None:
    texts: list[str] = []

    def use(port: int) -> None:
        with anthropic_at(port).messages.stream(model="m", messages=ASK, max_tokens=9) as stream:
            texts.extend(stream.text_stream)

    with pytest.raises(anthropic.APIStatusError, match="went away") as caught:
        await with_port(lost(2), use)

    body: Any = caught.value.body
    assert texts == ["Hello", " from"]
    assert body["error"]["type"] == "api_error"


async def test_a_failure_in_mid_stream_raises_in_ollamas_client() -> None:
    texts: list[str] = []

    def use(port: int) -> None:
        for piece in ollama.Client(host=f"127.0.0.1:{port}").chat(model="m", messages=ASK, stream=True):
            texts.append(piece.message.content or "")

    with pytest.raises(ollama.ResponseError, match="went away"):
        await with_port(lost(2), use)

    assert texts == ["Hello", " from"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_busy_mesh_is_529_to_anthropics_client_with_a_time_to_come_back(*, stream: bool) -> None:
    worker = FakeWorker(fail_after=0, failure=lambda: Overloaded("Too busy.", retry_after=3))
    with pytest.raises(anthropic.InternalServerError) as caught:
        await with_port(
            worker, lambda port: anthropic_at(port).messages.create(model="m", messages=ASK, max_tokens=9, stream=stream)
        )

    assert caught.value.status_code == 529
    assert caught.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_keeps_its_status_for_ollamas_client(*, stream: bool) -> None:
    def use(port: int) -> object:
        client = ollama.Client(host=f"127.0.0.1:{port}")
        return list(client.generate("m", "Hi", stream=True)) if stream else client.generate("m", "Hi")

    with pytest.raises(ollama.ResponseError, match="went away") as caught:
        await with_port(lost(0), use)

    assert caught.value.status_code == 503


@pytest.mark.parametrize(
    ("path", "sent", "signs"),
    [
        (
            b"/v1/messages",
            b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hi"}],"stream":true}',
            b"event: ping",
        ),
        (b"/api/chat", b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}', b'"content":""},"done":false'),
        (b"/v1/completions", b'{"model":"m","prompt":"Hi","stream":true}', b": keep-alive"),
    ],
)
async def test_a_silent_stream_shows_signs_of_life_in_every_dialect(
    autojump_clock: MockClock, path: bytes, sent: bytes, signs: bytes
) -> None:
    """A word takes 24 s: two signs before the first, as many before the second, where its client takes them."""
    async with trio.open_nursery() as nursery:
        with in_memory(app_of(FakeWorker(["one", "two"], delay=24)), nursery) as stream:
            await stream.send_all(post(sent, CLOSE, path=path))
            received = await read_all(stream)
            await stream.aclose()

    assert received.startswith(b"HTTP/1.1 200")
    assert received.index(b"one") < received.rindex(signs) < received.index(b"two")
