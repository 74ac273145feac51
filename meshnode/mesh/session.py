"""One live link: a reader, a writer, and the streams between them.

Only the writer sends; it takes all that is pending into one message, so that a token costs 3 us and not 37. The reader hands
frames on and never waits for whoever wants them, or one slow request would stop the heartbeats and every other request. Whichever
ends first calls `end`, which is synchronous: from then on the link is down for everybody, and `run` only says goodbye.

A message of the peer that breaks the protocol ends the link with the code and the reason. Nothing that it sends ends more.
"""

from typing import Protocol

import trio

from meshnode.errors import LinkLost, PeerError
from meshnode.gossip.effects import LinkId
from meshnode.mesh.asked import Asked
from meshnode.mesh.handshake import Proven
from meshnode.mesh.lanes import Lanes
from meshnode.mesh.link import CLOSE_S
from meshnode.mesh.served import Serve, Served
from meshnode.mesh.streams import Streams
from meshnode.wire.codec import decode
from meshnode.wire.messages import (
    Accuse,
    Delta,
    Digest,
    Finding,
    Frame,
    Gossip,
    Hello,
    Leave,
    Loads,
    Ping,
    Pong,
    Probe,
    Pull,
    Sketch,
    StreamEnd,
    StreamError,
    Versions,
)

NORMAL = 1000
LEAVING = 1001


class Node(Protocol):
    """What a link needs of the node that holds it."""

    def next_frame(self, session: "Session", max_bytes: int) -> bytes | None:
        """The gossip engine's next frame for this link."""
        ...

    def receive(self, session: "Session", frame: Gossip) -> None:
        """May raise PeerError."""
        ...

    def heard(self, session: "Session") -> None:
        """A message came, whatever is in it."""
        ...

    def observe_load(self, session: "Session", load: Loads) -> None:
        """The peer's load, as it came with an answer."""
        ...

    def load(self) -> Loads:
        """Ours."""
        ...

    def ended(self, session: "Session") -> None:
        """The link is down, for `session.reason`."""
        ...


class Session:
    """A link that is up. `run` it once; `end` it from anywhere. `local` is the address of this machine that it uses."""

    def __init__(self, link_id: LinkId, proven: Proven, *, local: str, node: Node, serve: Serve) -> None:
        self.link_id = link_id
        self.peer = proven.peer
        self.name = proven.hello.name
        self.local = local
        self.reason = ""
        self.close_code = 0
        """The peer's, if it was the peer who closed."""
        self.lanes = Lanes()
        self.closed = trio.Event()
        self._link = proven.link
        self._node = node
        self._serve = serve
        self._code = NORMAL
        self._ending = trio.Event()
        self._written = trio.Event()
        self._started: list[Served] = []
        """Streams that the reader has found in this message, and that want a task."""
        self._streams = Streams(
            self.lanes, dialled=proven.link.dialled, peer=self.name, start=self._started.append, load=node.load
        )

    @property
    def is_up(self) -> bool:
        return not self._ending.is_set()

    def open(self, body: bytes) -> Asked:
        """Ask the peer to run a request. Raises Overloaded or LinkLost."""
        return self._streams.open(body)

    def close(self, asked: Asked) -> None:
        """Every `open` ends with it."""
        self._streams.close(asked)

    def end(self, code: int, reason: str) -> None:
        """Take the link down, for a reason that the peer is told too. Only the first call counts."""
        if not self.is_up:
            return
        self._code, self.reason = code, reason
        self._ending.set()
        self.lanes.wake()
        self._streams.lose(f"lost the link to {self.name}: {reason}")
        self._node.ended(self)

    async def run(self) -> None:
        """Until the link is down and closed. Bugs of ours come out as exceptions, faults of the peer do not."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, nursery)
                nursery.start_soon(self._write)
                await self._ending.wait()
                with trio.move_on_after(CLOSE_S):
                    await self._written.wait()
                    await self._link.close(self._code, self.reason)
                nursery.cancel_scope.cancel()
        finally:
            self.end(LEAVING, "the node stopped the link")
            await self._link.abort()
            self.closed.set()

    async def _write(self) -> None:
        """What is pending when the link ends is still written, if the peer takes it."""
        try:
            while True:
                if message := self.lanes.drain(self._pull):
                    await self._link.send(message)
                elif self.is_up:
                    await self.lanes.wait_wake()
                else:
                    break
        except (LinkLost, PeerError) as error:
            self.end(NORMAL, error.message)
        self._written.set()

    def _pull(self, max_bytes: int) -> bytes | None:
        return self._node.next_frame(self, max_bytes) if self.is_up else None

    async def _read(self, nursery: trio.Nursery) -> None:
        try:
            while self.is_up:
                self._dispatch(decode(await self._link.receive()), nursery)
        except PeerError as error:
            self.end(error.close_code, error.message)
        except LinkLost as error:
            if self.is_up:
                self.close_code = error.close_code
            self.end(NORMAL, error.message)

    def _dispatch(self, frames: list[Frame], nursery: trio.Nursery) -> None:
        for frame in frames:
            match frame:
                case Hello():
                    raise PeerError("HELLO again")
                case (
                    Ping()
                    | Pong()
                    | Delta()
                    | Leave()
                    | Digest()
                    | Versions()
                    | Pull()
                    | Probe()
                    | Finding()
                    | Accuse()
                    | Sketch()
                ):
                    self._node.receive(self, frame)
                case _:
                    self._streams.receive(frame)
                    if isinstance(frame, StreamEnd | StreamError) and frame.load:
                        self._node.observe_load(self, frame.load)
        self._node.heard(self)
        self.lanes.check()
        for served in self._started:
            nursery.start_soon(self._run, served)
            nursery.start_soon(served.reassure)
        self._started.clear()

    async def _run(self, served: Served) -> None:
        await served.run(self._serve, self.peer)
        self._streams.finished(served)
