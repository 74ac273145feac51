"""A bridge to an OpenAI-compatible server: what it offers, when, and why not."""

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
from bridges.serving import Asked, Script, Server, scripted

from meshnode import url
from meshnode.bridges import catalogue
from meshnode.bridges.router import Router
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import ConfigurationError, ModelUnavailable, RemoteFailed
from meshnode.inference import Message, Request
from meshnode.remote import Cost, Kind, Remote, checked

ASK = Request(id="r", model="qwen", messages=(Message(role="user", content="Hi"),))
KEY = "sk-very-secret"


def listing(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "max_model_len": 4096} for name in names]}).encode()


def remote_at(server: Server, **fields: object) -> Remote:
    return checked(Remote(kind=Kind.ROUTER, name="far", url=str(server.url), key=KEY, **fields))  # type: ignore[arg-type]  # as given


@asynccontextmanager
async def running(script: Script, **fields: object) -> AsyncIterator[tuple[Router, Callable[[], trio.Event]]]:
    """A router's bridge that runs; the function gives an event for the next change."""
    async with scripted(script) as server, trio.open_nursery() as nursery:
        router = Router(remote_at(server, **fields), rng=random.Random(1))
        changed = trio.Event()

        def on_change() -> None:
            nonlocal changed
            changed.set()
            changed = trio.Event()

        nursery.start_soon(partial(router.run, on_change=on_change))
        await changed.wait()
        yield router, lambda: changed
        nursery.cancel_scope.cancel()


async def list_qwen(asked: Asked) -> None:
    await asked.answer(200, listing("qwen"))


async def test_its_models_are_offered_with_origin_cost_and_a_name_that_pins_them() -> None:
    async with running(list_qwen, alias={"fast": "qwen"}) as (router, _):
        (model,) = router.models()

    assert model.name == "qwen"
    assert model.aliases == ("fast", "far/qwen")
    assert model.digest == b""
    assert model.context_length == 4096
    assert (model.origin, model.cost) == ("far", Cost.LAN)


async def test_an_alias_is_asked_for_by_the_remotes_own_name() -> None:
    asked_for: list[str] = []

    async def serve(asked: Asked) -> None:
        if asked.method == "GET":
            await list_qwen(asked)
        else:
            asked_for.append(json.loads(asked.body)["model"])
            await asked.events(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n')

    async with running(serve, alias={"fast": "qwen"}) as (router, _):
        for name in ("fast", "far/qwen", "qwen"):
            async with router.backend(name).submit(ASK) as events:
                async for _batch in events:
                    pass

    assert asked_for == ["qwen"] * 3
    assert (router.tally.requests, router.tally.tokens, router.tally.errors, router.tally.active) == (3, 3, 0, 0)


async def test_a_lost_answer_takes_the_models_away_at_once_when_the_probe_fails_too() -> None:
    dead = False

    async def die(asked: Asked) -> None:
        nonlocal dead
        if asked.method == "GET" and not dead:
            await list_qwen(asked)
        else:
            dead = True
            await asked.stream.aclose()

    async with running(die) as (router, change):
        wait = change()
        with pytest.raises(RemoteFailed):
            async with router.backend("qwen").submit(ASK) as events:
                await anext(events)
        with trio.fail_after(2):
            await wait.wait()

        assert router.models() == ()
        assert router.facts().state == "down"
        with pytest.raises(ModelUnavailable):
            router.backend("qwen")


async def test_a_remote_that_warms_up_says_so_until_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.bridges.health.WARMING_S", 0.01)
    asks = 0

    async def load(asked: Asked) -> None:
        nonlocal asks
        asks += 1
        await (list_qwen(asked) if asks > 3 else asked.answer(503, b'{"error":{"message":"Loading model"}}'))

    async with running(load) as (router, change):
        wait = change()
        assert router.facts().state == "warming"
        assert "Loading model" in router.facts().reason
        with trio.fail_after(5):
            await wait.wait()

        assert [model.name for model in router.models()] == ["qwen"]


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (401, b'{"error":{"message":"bad key sk-very-secret"}}', Verdict.WRONG_KEY),
        (403, b"", Verdict.WRONG_KEY),
        (404, b"<html>", Verdict.NOT_ONE),
        (200, b"<html>", Verdict.NOT_ONE),
        (200, b'{"models":[]}', Verdict.NOT_ONE),
        (429, b"", Verdict.RATE_LIMITED),
        (500, b"", Verdict.FAILING),
        (302, b"", Verdict.FAILING),
    ],
)
async def test_registration_has_a_verdict_of_its_own_for_each_fault(status: int, body: bytes, verdict: Verdict) -> None:
    async def answer(asked: Asked) -> None:
        await asked.answer(status, body)

    async with scripted(answer) as server:
        with pytest.raises(Unusable) as caught:
            await Router(remote_at(server), rng=random.Random(1)).verify()

    assert caught.value.verdict is verdict
    assert KEY not in str(caught.value)


async def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(Unusable) as caught:
        await Router(checked(Remote(kind=Kind.ROUTER, name="far", url="http://127.0.0.1:1")), rng=random.Random(1)).verify()

    assert caught.value.verdict is Verdict.UNREACHABLE


async def test_registration_tells_how_many_models_there_are() -> None:
    async with scripted(list_qwen) as server:
        said = await Router(remote_at(server), rng=random.Random(1)).verify()

    assert said == "1 models: qwen"
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def offer_of(*names: str, **fields: object) -> catalogue.Offer:
    remote = Remote(kind=Kind.ROUTER, name="far", url="http://h", **fields)  # type: ignore[arg-type]  # as given
    return catalogue.offer(remote, [catalogue.Found(name) for name in names], prefixes=("far",))


def test_models_can_be_chosen_and_the_others_have_a_reason() -> None:
    offer = offer_of("qwen-7b", "qwen-70b", "gpt", models=("qwen-*",))

    assert offer.ids == ("qwen-7b", "qwen-70b")
    assert offer.left_out == (("gpt", "not among the models that were chosen"),)


def test_a_name_that_is_none_is_left_out_or_goes_by_its_alias() -> None:
    hostile = "qwen\x1b[2J" + "x" * 500

    assert offer_of(hostile).models == ()
    assert "--alias" in offer_of(hostile).left_out[0][1]
    assert "\x1b" not in offer_of(hostile).left_out[0][0]
    named = offer_of(hostile, alias={"fine": hostile})
    assert [model.name for model in named.models] == ["fine"]
    assert named.ids == (hostile,)


def test_more_models_than_a_record_holds_are_cut_with_a_reason() -> None:
    offer = offer_of(*(f"m{index}" for index in range(100)))

    assert len(offer.models) == catalogue.MAX_MODELS
    assert len(offer.left_out) == 100 - catalogue.MAX_MODELS


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"data":[1]}', b"", b"{}", b"\xff"])
def test_a_list_that_is_none_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        catalogue.read(body)


def test_context_lengths_are_found_where_servers_put_them() -> None:
    said = [{"id": "a", "meta": {"n_ctx": 512}}, {"id": "b", "context_length": 9}, {"id": "c", "max_model_len": -1}, {"id": 7}]

    assert catalogue.read(json.dumps({"data": said}).encode()) == (
        catalogue.Found("a", 512),
        catalogue.Found("b", 9),
        catalogue.Found("c", 0),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a/b"},
        {"name": ""},
        {"url": "http://10.0.0.3"},
        {"key": "two words"},
        {"key": "line\nbreak"},
        {"access_key": "AK"},
        {"kind": Kind.CLUSTER, "key": ""},
        {"rewrite": {"a b": "c"}},
        {"alias": {"a b": "c"}},
        {"ca": "x" * 100_000},
    ],
)
def test_what_cannot_be_registered_is_refused_without_its_key(fields: dict[str, object]) -> None:
    remote = Remote(kind=Kind.ROUTER, name="far", url="https://example.com", key=KEY)
    with pytest.raises(ConfigurationError) as caught:
        checked(msgspec.structs.replace(remote, **fields))

    assert KEY not in str(caught.value)


def test_a_registered_remote_shows_no_secret() -> None:
    remote = Remote(kind=Kind.CLUSTER, name="far", url="https://example.com", key=KEY, access_key="AK")

    assert KEY not in repr(remote)
    assert KEY not in f"{remote}"


@pytest.mark.parametrize(
    ("address", "kind", "cost"),
    [
        ("http://127.0.0.1:11434", Kind.ROUTER, Cost.LAN),
        ("https://box.local", Kind.ROUTER, Cost.LAN),
        ("https://api.example.com", Kind.ROUTER, Cost.METERED),
        ("https://10.0.0.3", Kind.CLUSTER, Cost.CLUSTER),
    ],
)
def test_the_cost_class_follows_from_where_it_is_unless_it_is_given(address: str, kind: Kind, cost: Cost) -> None:
    remote = Remote(kind=kind, name="far", url=address)

    assert remote.cost_class is cost
    assert msgspec.structs.replace(remote, cost=Cost.METERED).cost_class is Cost.METERED


def test_a_services_address_is_rewritten_by_host_or_by_host_and_port() -> None:
    remote = Remote(kind=Kind.CLUSTER, name="c", url="https://m", rewrite={"in:80": "out:8080", "proxy": "gate"})
    at = partial(url.parse, flag="URL")

    assert remote.dialled(at("http://in")) == ("out", 8080)
    assert remote.dialled(at("http://proxy:10200")) == ("gate", 10200)
    assert remote.dialled(at("http://in:81")) is None
