"""The router's bridge at real servers: llama-cpp-python's bundled one, and another mesh of our own."""

import importlib.util
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
import trio
from processes import mesh_of

from meshnode.bridges.health import State
from meshnode.bridges.router import Router
from meshnode.errors import RemoteFailed
from meshnode.inference import Chunk, End, Event, Finish, Message, Request, Sampling
from meshnode.remote import Kind, Remote, checked

pytestmark = pytest.mark.slow
DEMO = Path(str(files("meshnode") / "data" / "demo.gguf"))
ASK = Request(
    id="r1",
    model="demo",
    messages=(Message(role="user", content="Tell me a story about a fox."),),
    sampling=Sampling(temperature=0.0, max_tokens=24),
)


@contextmanager
def llama_cpp_server() -> Iterator[str]:
    """The URL of a server that has just been started, and is perhaps not ready."""
    for module in ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'llama-cpp-python[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(DEMO), "--model_alias", "demo", "--n_ctx", "512"]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@asynccontextmanager
async def bridged(address: str, **fields: str) -> AsyncIterator[Router]:
    """A bridge to it, once it is ready."""
    router = Router(checked(Remote(kind=Kind.ROUTER, name="far", url=address, **fields)), rng=random.Random(1))  # type: ignore[arg-type]  # as given
    changed = trio.Event()

    def on_change() -> None:
        nonlocal changed
        changed.set()
        changed = trio.Event()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(router.run, on_change=on_change))
        with trio.fail_after(60):
            while not router.models():
                await changed.wait()
        yield router
        nursery.cancel_scope.cancel()


async def ask(router: Router, request: Request = ASK) -> list[Event]:
    with trio.fail_after(60):
        async with router.backend(request.model).submit(request) as events:
            return [event async for batch in events for event in batch]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


async def test_llama_cpp_pythons_own_server_answers_through_a_bridge() -> None:
    with llama_cpp_server() as address:
        async with bridged(address) as router:
            events = await ask(router)
            with pytest.raises(RemoteFailed, match="in the middle"):  # it says 200 first, and finds the prompt too long then
                await ask(router, Request(id="r2", model="demo", messages=(Message(role="user", content="fox " * 3000),)))

    assert text(events)
    assert isinstance(events[-1], End)
    assert [event.finish for event in events if isinstance(event, Chunk) and event.finish] == [Finish.LENGTH]


async def test_another_mesh_answers_through_a_bridge_and_counts_its_tokens(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; scripts/test installs it")
    with mesh_of(tmp_path) as start:
        holder = start("holder")
        entry = start("entry", "--no-worker", peer=holder)
        await trio.to_thread.run_sync(partial(entry.wait_for_model, "demo"))
        async with bridged(f"http://{entry.api_address}") as router:
            events = await ask(router)
            assert router.facts().state == State.READY

    assert text(events).startswith("Once upon a time")
    end = events[-1]
    assert isinstance(end, End)
    assert end.usage.completion_tokens == 24
    assert end.usage.prompt_tokens > 0
