"""One request at remote services that fail in every way, over real sockets."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from bridges.serving import Asked, Script, Server, scripted

from meshnode.bridges import answer as answering
from meshnode.bridges.answer import Reaction, answer
from meshnode.bridges.client import Client, Headers
from meshnode.errors import InvalidRequest, Overloaded, RemoteFailed
from meshnode.inference import Chunk, End, Event, Message, Progress, Request

ASK = Request(id="r", model="m", messages=(Message(role="user", content="Hi"),))


def chunk(text: str, finish: str | None = None) -> bytes:
    said = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}
    return b"data: %b\n\n" % json.dumps(said).encode()


DONE = b"data: [DONE]\n\n"


async def say_hello(asked: Asked) -> None:
    await asked.events(chunk("Hello"), chunk("!", "stop"), DONE)


class Service:
    """A Target at a scripted server. `renews`: it has another token after a 401."""

    model = "theirs"
    secrets = ("sk-old", "sk-new")

    def __init__(self, name: str, server: Server, *, renews: bool = False) -> None:
        self.name = name
        self.client = Client(server.url)
        self.oks: list[bool | None] = []
        self.tokens = 0
        self.token = "sk-old"
        self._renews = renews

    async def authorization(self) -> Headers:
        return (("Authorization", f"Bearer {self.token}"),)

    def began(self) -> None:
        pass

    def refused(self, status: int, answer: bytes) -> Reaction:
        self.token = "sk-new"
        if status == 404:
            return Reaction.GONE
        return Reaction.ASK_AGAIN if self._renews and status == 401 else Reaction.PLAIN

    def ended(self, *, ok: bool | None, tokens: int) -> None:
        self.oks.append(ok)
        self.tokens += tokens


@asynccontextmanager
async def services(*scripts: Script, renews: bool = False) -> AsyncIterator[list[Service]]:
    async with trio.open_nursery() as nursery:
        made: list[Service] = []

        async def serve(index: int, script: Script, task_status: trio.TaskStatus[Server]) -> None:
            async with scripted(script) as server:
                task_status.started(server)
                await trio.sleep_forever()

        for index, script in enumerate(scripts):
            server: Server = await nursery.start(serve, index, script)
            made.append(Service(f"s{index}", server, renews=renews))
        yield made
        nursery.cancel_scope.cancel()


async def collect(targets: Sequence[Service], seen: list[Event] | None = None) -> list[Event]:
    """All events, also put into `seen` as they come."""
    seen = [] if seen is None else seen
    with trio.fail_after(10):
        async with answer(ASK, targets) as events:
            async for batch in events:
                seen += batch
    return seen


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


async def refuse(asked: Asked) -> None:
    await asked.answer(503, b"<html>no worker</html>")


async def cut_at_once(asked: Asked) -> None:
    await asked.stream.aclose()


async def break_off(asked: Asked) -> None:
    await asked.events(chunk("Once upon"), end=False)


async def end_early(asked: Asked) -> None:
    await asked.events(chunk("Once upon"))


@pytest.mark.parametrize("bad", [refuse, cut_at_once])
async def test_before_the_first_chunk_another_service_is_asked(bad: Script) -> None:
    async with services(bad, say_hello) as (first, second):
        events = await collect([first, second])

    assert text(events) == "Hello!"
    assert isinstance(events[-1], End)
    assert (first.oks, second.oks) == ([False], [True])


@pytest.mark.parametrize("bad", [break_off, end_early])
async def test_after_the_first_chunk_a_loss_is_an_error_and_nobody_else_is_asked(bad: Script) -> None:
    async with services(bad, say_hello) as (first, second):
        seen: list[Event] = []
        with pytest.raises(RemoteFailed, match="in the middle"):
            await collect([first, second], seen)

    assert text(seen) == "Once upon"
    assert (first.oks, second.oks) == ([False], [])


async def test_what_the_request_did_wrong_is_final_and_no_fault_of_the_service() -> None:
    async def dislike(asked: Asked) -> None:
        await asked.answer(400, b'{"error":{"message":"temperature is too high","param":"temperature"}}')

    async with services(dislike, say_hello) as (first, second):
        with pytest.raises(InvalidRequest, match="s0 refuses the request: temperature is too high") as caught:
            await collect([first, second])

    assert caught.value.param == "temperature"
    assert (first.oks, second.oks) == ([None], [])


async def test_when_every_service_fails_the_last_failure_is_told() -> None:
    async def busy(asked: Asked) -> None:
        await asked.answer(429, b"{}", ("Retry-After", "3"))

    async with services(refuse, busy) as targets:
        with pytest.raises(Overloaded, match="s1") as caught:
            await collect(targets)

    assert caught.value.retry_after == 3.0
    assert [target.oks for target in targets] == [[False], [None]]


async def test_a_service_whose_proxy_chose_a_dead_replica_is_asked_again_twice() -> None:
    asks = 0

    async def lose_two(asked: Asked) -> None:
        nonlocal asks
        asks += 1
        await (say_hello(asked) if asks == 3 else asked.answer(502, b"{}"))

    async def lose_all(asked: Asked) -> None:
        await asked.answer(502, b"{}")

    async with services(lose_two, lose_all) as (good, bad):
        assert text(await collect([good])) == "Hello!"
        with pytest.raises(RemoteFailed, match="s1 failed"):
            await collect([bad])

    assert good.oks == [False, False, True]
    assert bad.oks == [False, False, False]


async def test_a_service_that_is_gone_is_left_for_another_whatever_its_status_says() -> None:
    async def gone(asked: Asked) -> None:
        await asked.answer(404, b"{}")

    async with services(gone, say_hello) as (first, second):
        assert text(await collect([first, second])) == "Hello!"

    assert first.oks == [False]


async def test_a_token_that_is_refused_is_renewed_once() -> None:
    async def want_new(asked: Asked) -> None:
        if asked.headers["authorization"] == "Bearer sk-new":
            await say_hello(asked)
        else:
            await asked.answer(401, b'{"title":"Signature has expired: sk-old"}')

    async def never(asked: Asked) -> None:
        await asked.answer(401, b'{"title":"Not with sk-old, not with sk-new"}')

    async with services(want_new, never, renews=True) as (good, bad):
        assert text(await collect([good])) == "Hello!"
        with pytest.raises(RemoteFailed) as caught:
            await collect([bad])

    assert "sk-" not in str(caught.value)


async def test_a_connection_serves_one_answer_after_another() -> None:
    connections: list[int] = []

    async def note(asked: Asked) -> None:
        connections.append(asked.connection)
        await say_hello(asked)

    async with services(note) as targets:
        for _ in range(3):
            await collect(targets)

    assert connections == [1, 1, 1]
    assert targets[0].oks == [True, True, True]


async def test_only_what_the_request_says_and_our_own_headers_are_sent() -> None:
    seen: list[Asked] = []

    async def note(asked: Asked) -> None:
        seen.append(asked)
        await say_hello(asked)

    async with services(note) as targets:
        await collect(targets)

    assert json.loads(seen[0].body)["model"] == "theirs"
    assert set(seen[0].headers) == {
        "host", "content-type", "accept", "x-meshnode-scope", "authorization", "user-agent", "accept-encoding", "content-length",
    }  # fmt: skip


async def test_silence_gives_signs_of_life_and_then_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PROGRESS_S", 0.02)
    monkeypatch.setattr(answering, "FIRST_CHUNK_S", 0.1)

    async def sleep(_: Asked) -> None:
        await trio.sleep_forever()

    async with services(sleep) as targets:
        seen: list[Event] = []
        with pytest.raises(RemoteFailed, match="said nothing"):
            await collect(targets, seen)

    assert len(seen) > 2
    assert all(isinstance(event, Progress) for event in seen)


async def test_who_leaves_early_closes_the_connection_and_blames_nobody() -> None:
    left = trio.Event()

    async def endless(asked: Asked) -> None:
        await asked.events(chunk("Once"), end=False)
        try:
            while await asked.stream.receive_some(100):
                pass
        finally:
            left.set()

    async with services(endless) as targets:
        async with answer(ASK, targets) as events:
            await anext(events)
        with trio.fail_after(1):
            await left.wait()

    assert targets[0].oks == [None]


async def test_a_caller_that_is_cancelled_leaves_nothing_open() -> None:
    async def say_and_wait(asked: Asked) -> None:
        await asked.events(chunk("Hello", "stop"), DONE, end=False)
        await trio.sleep_forever()

    async with services(say_and_wait) as targets:
        with trio.CancelScope() as scope:
            async with answer(ASK, targets) as events:
                async for batch in events:
                    if isinstance(batch[-1], End):
                        scope.cancel()

    assert targets[0].oks == [True]
    assert targets[0].client._idle == []
