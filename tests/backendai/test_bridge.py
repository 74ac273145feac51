"""The cluster's bridge at real managers and the real app proxy."""

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, tzinfo
from functools import partial

import pytest
import trio
from backendai.cluster import GEMMA, QWEN
from backendai.cluster import Cluster as Lab

from meshnode.bridges import manager, service
from meshnode.bridges.cluster import Cluster
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import RemoteFailed
from meshnode.inference import Chunk, End, Event, Message, Request
from meshnode.remote import Remote

pytestmark = pytest.mark.slow


def bridge(remote: Remote) -> Cluster:
    return Cluster(remote, rng=random.Random(1))


@asynccontextmanager
async def running(remote: Remote) -> AsyncIterator[Cluster]:
    """A bridge that runs and has models."""
    made = bridge(remote)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(made.run, on_change=lambda: None))
        await until(lambda: bool(made.models()))
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - real services tell no event
            await trio.sleep(0.05)


async def ask(made: Cluster, name: str, seen: list[Event] | None = None) -> list[Event]:
    request = Request(id="r", model=name, messages=(Message(role="user", content="Hi"),))
    seen = [] if seen is None else seen
    with trio.fail_after(30):
        async with made.backend(name).submit(request) as events:
            async for batch in events:
                seen += batch
    return seen


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk)).strip()


async def test_a_right_key_pair_is_accepted_and_its_services_are_found(cluster: Lab) -> None:
    made = bridge(cluster.remote())
    said = await made.verify()

    assert said.startswith(f"Backend.AI {'26.9.6' if cluster.release == '26' else '23.09.10'}: 3 of 5 services can be used")
    assert {model.name for model in made.models()} == {QWEN, GEMMA}
    assert {model.origin for model in made.models()} == {"lab"}
    assert "dead-svc" in dict(made.facts().left_out)
    assert dict(made.facts().left_out)["dead-svc"]
    assert "bob-svc" not in str(made.facts())


@pytest.mark.parametrize(
    ("keys", "verdict"),
    [
        ({"access_key": "AKNOTTHERE0000000001"}, Verdict.WRONG_KEY),
        ({"key": "not-the-secret"}, Verdict.WRONG_SECRET),
    ],
)
async def test_a_wrong_key_is_told_from_a_wrong_secret(cluster: Lab, keys: dict[str, str], verdict: Verdict) -> None:
    with pytest.raises(Unusable) as caught:
        await bridge(cluster.remote(**keys)).verify()

    assert caught.value.verdict is verdict
    assert cluster.user("alice")["secret_key"] not in str(caught.value)


class Slow(datetime):
    """A clock that is twenty minutes behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # the base class says Self
        return datetime.now(tz) - timedelta(minutes=20)


async def test_a_clock_twenty_minutes_behind_is_corrected_for(cluster: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "datetime", Slow)
    said = await bridge(cluster.remote()).verify()

    assert "20 minutes apart" in said


async def test_without_correction_the_manager_says_that_it_is_the_clock(cluster: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "datetime", Slow)
    monkeypatch.setattr(manager.Manager, "_set_clock", lambda *_: None)
    with pytest.raises(Unusable) as caught:
        await bridge(cluster.remote()).verify()

    assert caught.value.verdict is Verdict.CLOCK


async def test_a_key_pair_whose_calls_are_used_up_is_rate_limited_and_left_alone(cluster: Lab) -> None:
    made = bridge(cluster.remote("bob"))

    async def use_up() -> None:
        for _ in range(40):
            await made.manager.verify()

    with pytest.raises(Unusable) as caught:
        await use_up()

    assert caught.value.verdict is Verdict.RATE_LIMITED
    assert made._pause() >= 60


async def test_private_and_public_services_answer_and_one_can_be_pinned(cluster: Lab) -> None:
    async with running(cluster.remote()) as made:
        answers = [text(await ask(made, name)) for name in (QWEN, GEMMA, f"lab/qwen-spare/{QWEN}")]

    assert answers == [f"Hello from {model} via app-proxy" for model in (QWEN, GEMMA, QWEN)]


async def test_pieces_come_as_they_are_made_and_not_at_the_end(cluster: Lab) -> None:
    request = Request(id="r", model=GEMMA, messages=(Message(role="user", content="Hi"),))
    came = []
    async with running(cluster.remote()) as made, made.backend(GEMMA).submit(request) as events:
        async for batch in events:
            came += [trio.current_time()] * any(isinstance(event, Chunk) and event.text for event in batch)

    assert len(came) == 5
    assert came[-1] - came[0] > 0.6


async def test_a_token_that_has_expired_is_renewed_and_nobody_knows(cluster: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TOKEN_LIFE_S", 2.0)
    monkeypatch.setattr(service, "RENEW_AT", 1000.0)  # the proxy's refusal is what this is about
    async with running(cluster.remote()) as made:
        before = {each.token for each in made._services.values()}
        await trio.sleep(3.0)
        answer = await ask(made, QWEN)
        after = {each.token for each in made._services.values()}

    assert text(answer)
    assert isinstance(answer[-1], End)
    assert before != after


async def test_a_replica_killed_in_mid_stream_is_an_error_and_no_end(cluster: Lab) -> None:
    async with running(cluster.remote()) as made:
        seen: list[Event] = []

        async def fail() -> None:
            with pytest.raises(RemoteFailed, match="in the middle"):
                await ask(made, GEMMA, seen)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await until(lambda: any(isinstance(event, Chunk) for event in seen))
            await trio.to_thread.run_sync(cluster.lab.stop_replica, 2)
        await until(lambda: GEMMA not in {model.name for model in made.models()})

    assert not any(isinstance(event, End) for event in seen)


async def test_before_the_first_byte_another_service_answers(cluster: Lab) -> None:
    async with running(cluster.remote()) as made:
        await trio.to_thread.run_sync(cluster.lab.stop_replica, 1)
        answers = [text(await ask(made, QWEN)) for _ in range(6)]

    assert answers == [f"Hello from {QWEN} via app-proxy"] * 6


async def test_a_manager_that_is_stopped_takes_nothing_away_and_is_found_again(cluster: Lab) -> None:
    lab, release = cluster.lab, cluster.release
    async with running(cluster.remote()) as made:
        await trio.to_thread.run_sync(lab.stop_manager, release)
        made._asked_at = -1000.0
        made._lose()
        await until(lambda: "manager" in made.facts().reason)
        answer = text(await ask(made, QWEN))
        await trio.to_thread.run_sync(lab.start_manager, release)
        made._asked_at = -1000.0
        made._lose()
        await until(lambda: not made.facts().reason)

    assert answer == f"Hello from {QWEN} via app-proxy"


async def test_the_calls_to_the_manager_at_rest_are_few(cluster: Lab) -> None:
    """One list for each refresh; tokens once an hour."""
    async with running(cluster.remote()) as made:
        calls, began = made.manager.calls, time.monotonic()
        made._asked_at = -1000.0
        made._lose()
        await until(lambda: made.manager.calls > calls)
        await trio.sleep(1.5)
        more = made.manager.calls - calls
        pauses = [made._pause() for _ in range(50)]

    assert more <= 2
    assert min(pauses) >= 15
    assert time.monotonic() - began < 60
