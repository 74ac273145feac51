"""One simulated node: the production engine in a shell that does what `mesh/mesh.py` and `mesh/session.py` do (pure).

Effects are performed at once; links that are ready are written as long as the socket has room, many frames to one message of at
most 64 KiB; the engine is ticked when its next deadline has come, at most every 10 ms. Frames are really encoded and decoded.
The engine's `now` is the node's own monotonic clock, which has an offset and a rate of its own.

What can be wrong with a process is mostly its processor's: stopped or slow. Or it does not *read*, and still writes.

Not modelled: inference traffic, the gate against floods of connections.
"""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, assert_never

from meshnode.errors import PeerError
from meshnode.gossip.effects import Close, Dial, Effect, LinkId, Notify, Rekey
from meshnode.gossip.engine import Engine
from meshnode.names import MeshId, NodeId, short
from meshnode.simulation.processor import REST_US, Clock, Processor
from meshnode.simulation.tcp import Closing, Greeting, Payload, Socket
from meshnode.simulation.timeline import SECOND, Timeline
from meshnode.simulation.traffic import Traffic
from meshnode.wire.codec import decode, encode
from meshnode.wire.messages import Gossip, Hello

MESH = MeshId(b"one-mesh")
HANDSHAKE_US = 5 * SECOND
MAX_DIALS = 16
MAX_WRITTEN = 64 * 1024
FLUSH_US = SECOND
GREETING_WORK = 20
"""A flight of the handshake takes as long as so many frames: it is mostly cryptography. A guess."""
NORMAL, LEAVING, WRONG_ID = 1000, 1001, 4403

CLIENT_HELLO, SERVER_HELLO, UPGRADE, ACCEPTED, GREETED = range(5)
FLIGHT_BYTES = {CLIENT_HELLO: 520, SERVER_HELLO: 1100, UPGRADE: 1250, ACCEPTED: 420, GREETED: 160}
"""TLS 1.3 with certificates at both ends, then the upgrade, then HELLO. About what the wire shows; the sizes hardly matter."""


@dataclass(eq=False)
class End:
    """Our end of a link, from the dial or the accept on."""

    socket: Socket
    dialled: bool
    addr: str
    expect: NodeId | None = None
    proven: NodeId | None = None
    link: LinkId | None = None
    """While it is up: after both HELLOs."""
    is_over: bool = False


class World(Protocol):
    """What a process needs of the world around it."""

    timeline: Timeline

    def connect(self, process: "Process", dial: Dial) -> None:
        """Answers by `connected` or `unconnected`."""
        ...

    def noticed(self, process: "Process", what: Notify) -> None: ...

    def rekeyed(self, process: "Process", reason: str) -> None: ...


class Process:
    """One life of a node at `host`."""

    def __init__(  # noqa: PLR0913 - the facts of one process's life, as the engine wants them
        self,
        world: World,
        *,
        host: int,
        node: NodeId,
        name: str,
        epoch: int,
        instance: bytes,
        listen: tuple[str, ...],
        seeds: tuple[str, ...],
        remembered: Mapping[NodeId, tuple[str, ...]],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.world, self.host, self.node, self.name, self.epoch, self.clock = world, host, node, name, epoch, clock
        self.instance, self.listen = instance, listen
        self.is_alive, self.is_leaving, self.reads = True, False, True
        self.processor = Processor(world.timeline, rng, self._work)
        self.traffic = Traffic()
        self.sockets: dict[Socket, End] = {}
        self.links: dict[LinkId, End] = {}
        self._timeline = world.timeline
        self._ids = 0
        self._dials = 0
        self._waiting_dials: deque[Dial] = deque()
        self.engine = Engine(
            node=node,
            mesh=MESH,
            name=name,
            version="0.1",
            epoch=epoch,
            instance=instance,
            listen=listen,
            seeds=seeds,
            remembered=remembered,
            rng=rng,
            now=self.now,
        )
        self.touch()

    @property
    def now(self) -> float:
        """By its own clock."""
        return self.clock.read(self._timeline.now)

    @property
    def is_healthy(self) -> bool:
        """Whether others should believe that it is there."""
        return self.is_alive and not self.processor.is_stopped and not self.is_leaving and self.reads

    # What is done to it

    def read(self, reads: bool) -> None:
        """Whether it reads its sockets. It still writes."""
        self.reads = reads
        for socket in list(self.sockets) if reads else ():
            self.processor.read(socket, socket.unread)

    def kill(self) -> None:
        """kill -9: the kernel closes its sockets; those with something unread are reset."""
        self._end_life()
        for socket in list(self.sockets):
            if socket.unread:
                socket.abort()
            else:
                socket.close(0, "it closed the connection", linger=0)
        self.sockets.clear()

    def lose_power(self) -> None:
        self._end_life()
        for socket in self.sockets:
            socket.die()
        self.sockets.clear()

    def leave(self) -> None:
        """SIGTERM: say goodbye, wait until it is written, and end."""
        if self.is_healthy:
            self.is_leaving = True
            self.engine.leave(now=self.now)
            self.touch()
            self.processor.after(
                FLUSH_US if any(not end.socket.has_room() for end in self.links.values()) else REST_US, self._part
            )

    def move(self, listen: tuple[str, ...]) -> None:
        """Its host has another address: links over the old one are closed, as `mesh/mesh.py` does it."""
        self.listen = listen
        for end in list(self.links.values()):
            self._end(end, NORMAL, "this machine has no such address any more")
        self.engine.move(listen, (), now=self.now)
        self.touch()

    # What the world reports

    def accept(self, socket: Socket, addr: str) -> None:
        """A connection came in; its handshake begins when the process reads."""
        socket.owner = self
        end = self.sockets[socket] = End(socket, False, addr)
        self.processor.after(HANDSHAKE_US, self._too_slow, end)

    def connected(self, socket: Socket, dial: Dial) -> None:
        socket.owner = self
        self.processor.do(self._begin, socket, dial)

    def _begin(self, socket: Socket, dial: Dial) -> None:
        end = self.sockets[socket] = End(socket, True, dial.addr, dial.expect)
        self.processor.after(HANDSHAKE_US, self._too_slow, end)
        self._greet(end, CLIENT_HELLO)

    def unconnected(self, dial: Dial, reason: str, refused: bool) -> None:
        self.processor.do(self._dial_failed, dial.addr, reason, refused)

    def readable(self, socket: Socket) -> None:
        if self.is_alive and self.reads:
            self.processor.read(socket)

    def writable(self, socket: Socket) -> None:
        end = self.sockets.get(socket)
        if end is not None and end.link is not None and self.is_alive and not self.processor.is_stopped:
            self._write(end)

    def broken(self, socket: Socket, reason: str) -> None:
        end = self.sockets.pop(socket, None)
        if end is not None and self.is_alive:
            self.processor.do(self._lost, end, reason, 0)

    # What the shell does

    def touch(self) -> None:
        """After every call of the engine."""
        for effect in self.engine.effects():
            self._perform(effect)
        for link in self.engine.ready():
            end = self.links.get(link)
            if end is not None:
                self._write(end)
        deadline = self.engine.next_deadline()
        if deadline == float("inf") or self.is_leaving:
            return
        self.processor.tick(self.clock.when(deadline))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Dial():
                if self._dials < MAX_DIALS:
                    self._dial(effect)
                else:
                    self._waiting_dials.append(effect)
            case Close():
                if end := self.links.get(effect.link):
                    self._end(end, effect.code, effect.reason)
            case Notify():
                self.world.noticed(self, effect)
            case Rekey():
                self.world.rekeyed(self, effect.reason)
            case _:
                assert_never(effect)

    def _dial(self, dial: Dial) -> None:
        if not self.is_leaving:
            self._dials += 1
            self.world.connect(self, dial)

    def _dialled(self) -> None:
        """A dial has ended, one way or the other: the next that waits may go."""
        self._dials -= 1
        if self._waiting_dials:
            self._dial(self._waiting_dials.popleft())

    def _dial_failed(self, addr: str, reason: str, refused: bool) -> None:
        self._dialled()
        self.engine.dial_failed(addr, reason, refused=refused, now=self.now)
        self.touch()

    def _write(self, end: End) -> None:
        """Pull while there is room."""
        while end.link is not None and end.socket.has_room():
            frames, room, now = [], MAX_WRITTEN, self.now
            while room > 0 and (frame := self.engine.next_frame(end.link, now, room)) is not None:
                frames.append(frame)
                room -= len(frame)
            if not frames:
                return
            self.traffic.sent(frames)
            message = b"".join(frames)
            end.socket.send(message, len(message))

    def _work(self, item: Socket | None) -> int:
        if item is None:
            self.engine.tick(now=self.now)
            self.touch()
            return 1
        end, payload = self.sockets.get(item), item.take()
        if end is not None and payload is not None:
            self._read(end, payload)
        return GREETING_WORK if isinstance(payload, Greeting) else 1

    def _read(self, end: End, payload: Payload) -> None:
        match payload:
            case Greeting():
                self._greeted(end, payload)
            case Closing():
                self.sockets.pop(end.socket, None)
                end.socket.close(NORMAL, "")
                self._lost(end, payload.reason, payload.code)
            case _:
                self._receive(end, payload)

    def _receive(self, end: End, message: bytes) -> None:
        self._timeline.note(self.host, message)
        frames = decode(message)
        for frame in frames:
            if end.link is None:
                return
            assert isinstance(frame, Gossip)
            size = len(message) if len(frames) == 1 else len(encode(frame))
            try:
                self.engine.receive(end.link, frame, now=self.now, size=size)
            except PeerError as error:
                self._end(end, error.close_code, error.message)
            self.touch()
        if end.link is not None and self.engine.heard(end.link, now=self.now):
            self.touch()

    # Handshakes (mesh/handshake.py)

    def _greet(self, end: End, step: int, hello: Hello | None = None) -> None:
        end.socket.send(Greeting(step, encode(hello) if hello else b""), FLIGHT_BYTES[step])

    def _greeted(self, end: End, flight: Greeting) -> None:
        """Each flight is answered by the next; the dialled end sends its HELLO with the upgrade, the dialling one after it."""
        if end.proven is None and flight.step in (SERVER_HELLO, UPGRADE):
            other = end.socket.peer.owner
            end.proven = other.node if isinstance(other, Process) else None
        match flight.step:
            case 0:
                self._greet(end, SERVER_HELLO)
            case 1:
                self._greet(end, UPGRADE)
            case 2:
                if end.proven is not None:
                    self._greet(end, ACCEPTED, self.engine.hello(end.proven))
            case _:
                if flight.step == ACCEPTED and end.proven is not None:
                    self._greet(end, GREETED, self.engine.hello(end.proven))
                self._meet(end, flight.hello)

    def _meet(self, end: End, raw: bytes) -> None:
        (hello,) = decode(raw)
        assert isinstance(hello, Hello)
        proven = end.proven or hello.node
        try:
            self._judge(end, hello, proven)
        except PeerError as error:
            self.sockets.pop(end.socket, None)
            end.socket.close(error.close_code, error.message)
            if end.dialled:
                self._dial_failed(end.addr, error.message, False)
            return
        if self.is_leaving:
            self.sockets.pop(end.socket, None)
            end.socket.abort()
            return
        self._ids += 1
        end.link = LinkId(self._ids)
        self.links[end.link] = end
        if end.dialled:
            self._dialled()
        self.engine.link_up(end.link, hello, addr=end.addr, dialled=end.dialled, now=self.now)
        self.touch()

    def _judge(self, end: End, hello: Hello, proven: NodeId) -> None:
        try:
            self.engine.judge(hello, proven=proven, addr=end.addr, now=self.now)
        finally:
            self.touch()
        if end.expect is not None and proven != end.expect:
            raise PeerError(f"another node than expected: {short(proven)}, not {short(end.expect)}", close_code=WRONG_ID)

    def _too_slow(self, end: End) -> None:
        if end.link is None and self.sockets.pop(end.socket, None) is not None:
            end.socket.abort()
            self._lost(end, "no handshake within 5 s", 0)

    # Ends

    def _end(self, end: End, code: int, reason: str) -> None:
        """Take a link down, and say why to the other end."""
        self.sockets.pop(end.socket, None)
        end.socket.close(code, reason)
        self._lost(end, reason, 0)

    def _lost(self, end: End, reason: str, code: int) -> None:
        link, end.link = end.link, None
        if link is not None:
            del self.links[link]
            self.engine.link_down(link, reason, code=code, now=self.now)
            self.touch()
        elif end.dialled and not end.is_over:
            self._dial_failed(end.addr, reason, False)
        end.is_over = True

    def _part(self) -> None:
        """The last of leaving."""
        for end in list(self.links.values()):
            self._end(end, LEAVING, "the node leaves")
        self._end_life()
        for socket in list(self.sockets):
            socket.abort()
        self.sockets.clear()

    def _end_life(self) -> None:
        self.is_alive = False
        self.processor.end()
