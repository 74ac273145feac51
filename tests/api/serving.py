"""A node of fakes behind the real API, over real sockets or memory streams."""

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import msgspec
import trio
from trio.testing import memory_stream_pair

from meshnode.api.app import App
from meshnode.api.connection import Application, Connection, Idle
from meshnode.api.exchange import Answer
from meshnode.api.limits import Limits
from meshnode.api.server import serve
from meshnode.backend import Backend
from meshnode.dispatch import Dispatcher
from meshnode.gossip.member import Member
from meshnode.inference import Request
from meshnode.remote import Remote
from meshnode.routing.explain import Explanation
from meshnode.routing.scope import Scope
from meshnode.routing.table import Listing, listings
from meshnode.status import Drained
from meshnode.testing import fake_member
from meshnode.wire.messages import ModelState

SECRET = "open-sesame"
CHAT = b'{"model":"m","messages":[{"role":"user","content":"Say something."}]}'
STREAMED = CHAT[:-1] + b',"stream":true}'


class Report(msgspec.Struct, frozen=True):
    schema: int = 1


class Joined(msgspec.Struct, frozen=True):
    peer: str | None


class FakeNode:
    """The Node of the API over a real dispatcher: `workers` by the name of the node that has them, all with the model `m`."""

    name = "entry"

    def __init__(self, workers: Mapping[str, Backend], *, why_not: str = "", model: str = "m") -> None:
        self.everyone = (fake_member(self.name), *(fake_member(name, model) for name in workers))
        self.why_not = why_not
        self.remotes: list[Remote] = []
        self.drained: list[tuple[bool, bool]] = []
        self._dispatcher = Dispatcher(
            me=self.everyone[0].id,
            members=self.members,
            backend_of=lambda candidate: workers[candidate.node_name],
            on_change=lambda: None,
            rng=random.Random(1),
        )

    def submit(self, request: Request, scope: Scope = Scope.ANY) -> AbstractAsyncContextManager[Answer]:
        return self._dispatcher.submit(request, scope)

    def models(self, scope: Scope = Scope.ANY) -> tuple[Listing, ...]:
        return listings(self.everyone, me=self.everyone[0].id, scope=scope)

    def members(self) -> tuple[Member, ...]:
        return self.everyone

    def load(self) -> tuple[ModelState, ...]:
        return self.everyone[-1].load

    def report(self) -> Report:
        return Report()

    async def join(self, peer: str | None) -> Joined:
        return Joined(peer=peer)

    async def add_remote(self, remote: Remote) -> Joined:
        self.remotes.append(remote)
        return Joined(peer=remote.name)

    async def remove_remote(self, name: str) -> Joined:
        return Joined(peer=name)

    def drain(self, on: bool, *, hand_over: bool = False) -> Drained:
        self.drained.append((on, hand_over))
        return Drained(draining=on, running=len(self.drained))

    def explain(self, request: Request, *, prompt_tokens: int | None) -> Explanation:
        return self._dispatcher.explain(request, prompt_tokens=prompt_tokens)

    def ready(self) -> str:
        return self.why_not


def app_of(worker: Backend) -> App:
    return App(FakeNode({"holder": worker}), admin_secret=SECRET, hosts=frozenset({"box.example"}))


@dataclass
class Serving:
    """A server under test. Set `stopping` to stop it; `stopped` tells when it has."""

    port: int
    stopping: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, sent: bytes) -> bytes:
        """All that comes back before the server ends the connection."""
        async with await self.connect() as stream:
            await stream.send_all(sent)
            return await read_all(stream)


@asynccontextmanager
async def served(app: Application, limits: Limits | None = None) -> AsyncIterator[Serving]:
    """`app` on a real port. The whole test fails when it takes longer than 20 s."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            serving = Serving(port=listeners[0].socket.getsockname()[1])

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await serve(app, listeners, stopping=serving.stopping, limits=limits, task_status=task_status)
                serving.stopped.set()

            await nursery.start(run)
            yield serving
            nursery.cancel_scope.cancel()


@contextmanager
def in_memory(app: Application, nursery: trio.Nursery, limits: Limits | None = None) -> Iterator[trio.abc.HalfCloseableStream]:
    """The client's end of one connection, for tests on a mock clock."""
    ours, theirs = memory_stream_pair()

    async def run() -> None:
        async with theirs:
            await Connection(theirs, app, limits=limits or Limits(), idle=Idle(), peer="127.0.0.1").run()

    nursery.start_soon(run)
    yield ours


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = b""
    while data := await stream.receive_some(65536):
        received += data
    return received


async def read_until(stream: trio.abc.ReceiveStream, mark: bytes, count: int = 1) -> bytes:
    received = b""
    while received.count(mark) < count:
        data = await stream.receive_some(65536)
        assert data, received
        received += data
    return received


async def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Fails when `condition` does not hold within `seconds`."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  # what is awaited is a counter of a fake
            await trio.sleep(0.005)


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions", host: bytes = b"localhost") -> bytes:
    lines = (b"POST %b HTTP/1.1" % path, b"Host: %b" % host, b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(path: bytes, *headers: bytes, method: bytes = b"GET", host: bytes = b"localhost") -> bytes:
    return b"\r\n".join((b"%b %b HTTP/1.1" % (method, path), b"Host: %b" % host, *headers)) + b"\r\n\r\n"


CLOSE = b"Connection: close"
