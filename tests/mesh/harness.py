"""Two ends of a link without TLS, over memory; and whole nodes with TLS, over loopback: what the tests here share."""

import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from meshnode.backend import Events
from meshnode.gossip.effects import LinkId, Notify
from meshnode.gossip.engine import Engine
from meshnode.gossip.member import Member
from meshnode.identity import Identity, Token, make_identity, new_node_key
from meshnode.inference import Chunk, Event, Message, Request
from meshnode.mesh.handshake import Proven
from meshnode.mesh.link import Link, accept_link, open_link
from meshnode.mesh.listen import local_address, open_mesh_listeners
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.served import Serve
from meshnode.mesh.session import Session
from meshnode.names import MeshId, ModelDigest, NodeId
from meshnode.testing import FakeWorker
from meshnode.wire.codec import decode, encode
from meshnode.wire.messages import Frame, Gossip, Hello, Loads, ModelState

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: mesh\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
"""What a dialler asks for, for tests that go on by hand."""
LOAD: Loads = (ModelState("demo", ModelDigest(b""), "ready", 1, 4),)
Half = Callable[[trio.Nursery, Any], Any]


def request(text: str = "Hello?") -> Request:
    return Request(id="chat-1", model="demo", messages=(Message(role="user", content=text),))


def serve_with(worker: FakeWorker) -> Serve:
    """What a node does with a peer's request, when it has just this worker."""

    def serve(request: Request, _peer: NodeId) -> AbstractAsyncContextManager[Events]:
        return worker.submit(request)

    return serve


async def answer_of(events: Events) -> tuple[Event, ...]:
    return tuple([event async for batch in events for event in batch])


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


class FakeNode:
    """The node around one session, without gossip."""

    def __init__(self) -> None:
        self.gossip: list[Gossip] = []
        self.loads: list[Loads] = []
        self.ends: list[str] = []

    def next_frame(self, session: Session, max_bytes: int) -> bytes | None:
        return None

    def receive(self, session: Session, frame: Gossip) -> None:
        self.gossip.append(frame)

    def observe_load(self, session: Session, load: Loads) -> None:
        self.loads.append(load)

    def load(self) -> Loads:
        return LOAD

    def heard(self, session: Session) -> None:
        pass

    def ended(self, session: Session) -> None:
        self.ends.append(session.reason)


def hello(name: str) -> Hello:
    return Hello(1, 1, MeshId(b"m" * 8), NodeId(name.encode().ljust(16, b"\0")), name, "0", 1, b"instance")


@asynccontextmanager
async def link_pair() -> AsyncIterator[tuple[Link, Link]]:
    """The dialler's end and the acceptor's."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        found: list[Link] = []

        async def run(half: Half, stream: Any) -> None:
            found.append(await half(nursery, stream))

        async with trio.open_nursery() as opening:
            opening.start_soon(run, open_link, near)
            opening.start_soon(run, accept_link, far)
        found.sort(key=lambda link: not link.dialled)
        yield found[0], found[1]
        nursery.cancel_scope.cancel()


def session_over(link: Link, name: str, worker: FakeWorker | None = None) -> tuple[Session, FakeNode]:
    """Our end of `link` to the peer `name`."""
    node = FakeNode()
    proven = Proven(link=link, peer=hello(name).node, hello=hello(name))
    return Session(LinkId(1), proven, local="127.0.0.1", node=node, serve=serve_with(worker or FakeWorker())), node


@dataclass
class Raw:
    """A peer's bare end of a link: it can say anything."""

    link: Link
    got: list[Frame] = field(default_factory=list)

    async def send(self, *frames: Frame) -> None:
        await self.link.send(b"".join(encode(frame) for frame in frames))

    async def receive(self) -> Frame:
        """The next frame."""
        if not self.got:
            self.got += decode(await self.link.receive())
        return self.got.pop(0)

    async def receive_until(self, kind: type[Frame]) -> list[Frame]:
        """All frames up to the first of `kind`."""
        frames = [await self.receive()]
        while not isinstance(frames[-1], kind):
            frames.append(await self.receive())
        return frames


@asynccontextmanager
async def session_pair(worker: FakeWorker) -> AsyncIterator[tuple[Session, Session]]:
    """Sessions of an asker and of a server that has `worker`."""
    async with link_pair() as (dialler, acceptor), trio.open_nursery() as nursery:
        asker, _ = session_over(dialler, "server")
        server, _ = session_over(acceptor, "asker", worker)
        nursery.start_soon(asker.run)
        nursery.start_soon(server.run)
        yield asker, server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def session_and_raw(worker: FakeWorker | None = None) -> AsyncIterator[tuple[Session, FakeNode, Raw]]:
    """A session that accepted a link from a peer that can say anything."""
    async with link_pair() as (dialler, acceptor), trio.open_nursery() as nursery:
        session, node = session_over(acceptor, "peer", worker)
        nursery.start_soon(session.run)
        yield session, node, Raw(dialler)
        nursery.cancel_scope.cancel()


@dataclass
class Node:
    """A node's mesh with nothing else around it."""

    name: str
    token: Token
    identity: Identity
    mesh: Mesh
    addr: str
    changes: list[Notify]
    rekeys: list[str]

    def member(self, name: str) -> Member | None:
        return next((member for member in self.mesh.members() if member.name == name), None)

    def sees(self, name: str) -> bool:
        member = self.member(name)
        return member is not None and member.routable

    async def wait_sees(self, *names: str) -> None:
        await wait_until(lambda: all(self.sees(name) for name in names))


async def wait_until(condition: Callable[[], object], seconds: float = 5) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await trio.sleep(0.005)


async def start_node(
    nursery: trio.Nursery,
    name: str,
    token: Token,
    *,
    seeds: Sequence[str] = (),
    worker: FakeWorker | None = None,
    key: bytes | None = None,
    listen: str = "127.0.0.1:0",
) -> Node:
    identity = make_identity(token, key or new_node_key())
    listeners = await open_mesh_listeners([listen])
    addr = str(local_address(listeners[0]))
    engine = Engine(
        node=identity.node_id,
        mesh=identity.mesh_id,
        name=name,
        version="0",
        epoch=1_700_000_000_000,
        instance=secrets.token_bytes(8),
        listen=(addr,),
        seeds=tuple(seeds),
        remembered={},
        rng=random.Random(1),
        now=trio.current_time(),
    )
    changes: list[Notify] = []
    rekeys: list[str] = []
    mesh = Mesh(
        identity=identity,
        engine=engine,
        listeners=listeners,
        serve=serve_with(worker or FakeWorker()),
        on_change=changes.append,
        on_rekey=rekeys.append,
    )
    await nursery.start(mesh.run)
    return Node(name, token, identity, mesh, addr, changes, rekeys)


@asynccontextmanager
async def mesh_of_two(worker: FakeWorker | None = None) -> AsyncIterator[tuple[Node, Node]]:
    """A server and an asker that are linked."""
    token = Token.new()
    async with trio.open_nursery() as nursery:
        server = await start_node(nursery, "server", token, worker=worker)
        asker = await start_node(nursery, "asker", token, seeds=[server.addr])
        await asker.wait_sees("server")
        await server.wait_sees("asker")
        yield server, asker
        nursery.cancel_scope.cancel()
