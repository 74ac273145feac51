"""The one suite of the Backend interface, run over every kind: a fake, a local worker, a router, a peer over either."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
import trio
from api.serving import app_of, served

from meshnode import identity, remote
from meshnode.backend import Backend
from meshnode.bridges.router import Router
from meshnode.errors import LinkLost, MeshnodeError, RequestError, Unsupported
from meshnode.gossip.effects import Notify
from meshnode.gossip.engine import Engine
from meshnode.inference import MAX_CHOICES, Chunk, End, Event, Finish, Message, Request, Sampling
from meshnode.mesh.listen import local_address, open_mesh_listeners
from meshnode.mesh.mesh import Mesh
from meshnode.names import NodeId
from meshnode.remote import Remote, checked
from meshnode.testing import FakeWorker
from meshnode.worker.supervisor import State, Worker

ASK = Request(
    id="r1",
    model="demo",
    messages=(Message(role="user", content="Tell me a story about a fox."),),
    sampling=Sampling(temperature=0.0, max_tokens=40),
)


class Kind(msgspec.Struct, frozen=True):
    """A backend under test. `busy` tells how many requests its worker is at."""

    backend: Backend
    busy: Callable[[], int]
    has_ids: bool = True
    """Other servers tell no token ids."""


@asynccontextmanager
async def fake(_: Path) -> AsyncIterator[Kind]:
    worker = FakeWorker([f"word{index} " for index in range(60)], delay=0.002)
    yield Kind(worker, lambda: len(worker.requests) - worker.cancelled - worker.finished)


@asynccontextmanager
async def local(directory: Path) -> AsyncIterator[Kind]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; scripts/test installs it")
    worker = Worker("demo", Path(str(files("meshnode") / "data" / "demo.gguf")), cache_dir=directory)
    changed = trio.Event()

    def on_change() -> None:
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(worker.run, on_change=on_change))
        with trio.fail_after(30):
            while worker.state is not State.READY:
                changed = trio.Event()
                await changed.wait()
        yield Kind(worker, lambda: worker.load().active)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def router_of(kind: Callable[[Path], AbstractAsyncContextManager[Kind]], directory: Path) -> AsyncIterator[Kind]:
    """A bridge to an OpenAI-compatible server, which is our own API, over a backend of `kind`."""
    async with kind(directory) as within, served(app_of(within.backend)) as serving:
        registered = checked(Remote(kind=remote.Kind.ROUTER, name="far", url=f"http://127.0.0.1:{serving.port}"))
        router = Router(registered, rng=random.Random(1))
        async with trio.open_nursery() as nursery:
            changed = trio.Event()
            nursery.start_soon(partial(router.run, on_change=changed.set))
            await changed.wait()
            yield Kind(router.backend("m"), within.busy, has_ids=False)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def peer_of(kind: Callable[[Path], AbstractAsyncContextManager[Kind]], directory: Path) -> AsyncIterator[Kind]:
    """A peer over a real link that serves with a backend of `kind`."""
    async with kind(directory) as within, mesh_pair(within.backend) as (asking, node):
        yield Kind(asking.backend(node), within.busy, has_ids=within.has_ids)


@asynccontextmanager
async def mesh_pair(backend: Backend) -> AsyncIterator[tuple[Mesh, NodeId]]:
    """Two linked nodes: the one that asks, and the id of the one that serves with `backend`."""
    token = identity.Token.new()
    async with trio.open_nursery() as nursery:
        _, serving_id, address = await start_mesh(nursery, token, backend)
        asking, _, _ = await start_mesh(nursery, token, backend, seeds=(address,))
        with trio.fail_after(10):
            while not any(m.routable and m.id == serving_id for m in asking.members()):  # noqa: ASYNC110 - real links tell no event
                await trio.sleep(0.01)
        yield asking, serving_id
        nursery.cancel_scope.cancel()


async def start_mesh(
    nursery: trio.Nursery, token: identity.Token, backend: Backend, seeds: tuple[str, ...] = ()
) -> tuple[Mesh, NodeId, str]:
    own = identity.make_identity(token, identity.new_node_key())
    listeners = await open_mesh_listeners(["127.0.0.1:0"])
    address = str(local_address(listeners[0]))
    engine = Engine(
        node=own.node_id, mesh=own.mesh_id, name="node", version="1", epoch=1, instance=bytes(8), listen=(address,), seeds=seeds,
        remembered={}, rng=random.Random(1), now=trio.current_time(),
    )  # fmt: skip
    mesh = Mesh(
        identity=own,
        engine=engine,
        listeners=listeners,
        serve=lambda request, _: backend.submit(request),
        on_change=ignore,
        on_rekey=ignore,
    )
    await nursery.start(mesh.run)
    return mesh, own.node_id, address


def ignore(_: Notify | str) -> None:
    pass


KINDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Kind]]] = {
    "fake": fake,
    "local": local,
    "peer-of-fake": partial(peer_of, fake),
    "peer-of-local": partial(peer_of, local),
    "router-of-fake": partial(router_of, fake),
    "router-of-local": partial(router_of, local),
    "peer-of-router": partial(peer_of, partial(router_of, fake)),
}


@pytest.fixture(params=KINDS)
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kind]:
    async with KINDS[request.param](tmp_path) as made:
        yield made


async def ask(kind: Kind, request: Request = ASK) -> list[Event]:
    async with kind.backend.submit(request) as events:
        return [event async for batch in events for event in batch]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


async def test_an_answer_is_chunks_then_one_end_and_then_nothing(kind: Kind) -> None:
    batches = []
    async with kind.backend.submit(ASK) as events:
        async for batch in events:
            batches.append(batch)
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    every = [event for batch in batches for event in batch]

    assert all(batches)
    assert [isinstance(event, End) for event in every].count(True) == 1
    assert isinstance(every[-1], End)
    assert [event.finish for event in every if isinstance(event, Chunk)][-1] is Finish.LENGTH
    assert len([event for event in every if isinstance(event, Chunk) and event.finish]) == 1


async def test_usage_counts_the_tokens_that_came(kind: Kind) -> None:
    events = await ask(kind)
    end = events[-1]

    assert isinstance(end, End)
    assert end.usage.completion_tokens == 40
    assert sum(len(event.token_ids) for event in events if isinstance(event, Chunk)) == (40 if kind.has_ids else 0)
    assert end.usage.prompt_tokens > 0


async def test_a_cancelled_wait_loses_nothing(kind: Kind) -> None:
    whole = text_of(await ask(kind))
    came: list[Event] = []
    async with kind.backend.submit(ASK) as events:
        while not came or not isinstance(came[-1], End):
            with trio.move_on_after(0.003):
                came += await anext(events)

    assert text_of(came) == whole


async def test_leaving_early_stops_the_work_at_once(kind: Kind) -> None:
    """Before the first event, and after the first chunk."""
    endless = msgspec.structs.replace(ASK, sampling=Sampling(temperature=1.5, max_tokens=900, seed=1))
    for chunks in (0, 1):
        async with kind.backend.submit(endless) as events:
            seen = 0
            while seen < chunks:
                seen += sum(isinstance(event, Chunk) for event in await anext(events))
        with trio.fail_after(5):
            while kind.busy():  # noqa: ASYNC110 - a real worker tells no event
                await trio.sleep(0.005)


async def test_several_answers_at_once_do_not_mix(kind: Kind) -> None:
    """Real models answer alike alone and in company only within a tie of the logits, so the questions decide, not the bits."""
    answers: dict[int, list[Event]] = {}

    async def one(index: int) -> None:
        answers[index] = await ask(kind, msgspec.structs.replace(ASK, id=f"r{index}"))

    async with trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(one, index)

    assert all(isinstance(events[-1], End) for events in answers.values())
    assert all(len([event for event in events if isinstance(event, End)]) == 1 for events in answers.values())
    assert len({text_of(events)[:20] for events in answers.values()}) == 1


async def test_what_it_cannot_do_is_refused_by_name(kind: Kind) -> None:
    with pytest.raises(RequestError) as caught:
        await ask(kind, msgspec.structs.replace(ASK, n=MAX_CHOICES + 1))

    assert caught.value.param == "n"
    assert not kind.busy()


async def test_it_may_be_entered_under_one_deadline_and_left_under_another(kind: Kind) -> None:
    with trio.fail_after(5):
        block = kind.backend.submit(ASK)
        events = await block.__aenter__()
    with trio.fail_after(20):
        async for _ in events:
            pass
        await block.__aexit__(None, None, None)
        while kind.busy():  # noqa: ASYNC110 - a remote server takes a moment to notice, and tells no event
            await trio.sleep(0.005)


async def test_a_failure_crosses_the_mesh_as_what_it_is() -> None:
    failing = FakeWorker(["a", "b"], fail_after=1, failure=lambda: Unsupported("no such thing", param="seed"))
    async with mesh_pair(failing) as (asking, node):
        seen: list[Event] = []

        async def collect() -> None:
            async with asking.backend(node).submit(ASK) as events:
                async for batch in events:
                    seen.extend(batch)

        with pytest.raises(Unsupported, match="no such thing") as caught:
            await collect()

    assert text_of(seen) == "a"
    assert caught.value.param == "seed"


async def test_a_peer_without_a_link_is_lost_and_not_waited_for() -> None:
    async with mesh_pair(FakeWorker()) as (asking, _):
        with pytest.raises(LinkLost) as caught:
            await ask(Kind(asking.backend(NodeId(bytes(16))), int))

    assert isinstance(caught.value, MeshnodeError)
