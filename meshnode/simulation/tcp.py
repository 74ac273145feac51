"""TCP as the engine feels it: bytes in order, late when packets are lost, silent when a host is gone (pure).

One `Socket` is one end of a connection. What its owner sends is one piece each time, delivered whole and in order.

What is modelled, after Linux: a lost piece is sent again after 0.2 s, then 0.4 s, doubling (RFC 6298, with Linux's minimum), and
everything behind it waits for it (head-of-line blocking). After the first such timeout nothing new is sent until the other end
acknowledges (the congestion window is one segment then), so a way that is blocked in one direction soon stops both. Once
it has, all that is missing is sent again at once. A piece that is not acknowledged for 8 s ends the connection at this end
(TCP_USER_TIMEOUT, as `mesh/listen.py` sets it), also when the other end's window is closed. The kernel acknowledges and keeps
what a stopped process does not read, up to its buffer; beyond that the window is closed. Data for a socket that is closed is
answered by a reset, if its host has power; a reset that is lost is not repeated. A close is a piece like any other.

What is not modelled: fast retransmission and tail-loss probes (so loss hurts more here than on Linux), congestion control of bulk
transfers, the loss of single acknowledgements (the next one covers it). Buffer sizes are guesses.
"""

from collections import deque
from typing import NamedTuple, Protocol

from meshnode.simulation.network import Network
from meshnode.simulation.timeline import SECOND, Timeline

RTO_US = SECOND // 5
USER_TIMEOUT_US = 8 * SECOND
SEND_BUFFER = 256 * 1024
RECEIVE_BUFFER = 128 * 1024
RESET_BYTES = 40
CLOSE_BYTES = 60
LINGER_US = SECOND
"""How long a WebSocket waits for the answer to its close frame."""


class Closing(NamedTuple):
    """The end of what the other end sends. `code` is a WebSocket close code, 0 when the process was killed."""

    code: int
    reason: str


class Greeting(NamedTuple):
    """One flight of the handshake: TCP is over by then, so TLS, the upgrade to WebSocket, HELLO."""

    step: int
    hello: bytes = b""


Payload = bytes | Greeting | Closing


class Piece(NamedTuple):
    sequence: int
    size: int
    payload: Payload
    first_sent: int


class Owner(Protocol):
    """The process that holds a socket."""

    def readable(self, socket: "Socket") -> None:
        """A piece came; `take` it some time."""
        ...

    def writable(self, socket: "Socket") -> None:
        """There is room again."""
        ...

    def broken(self, socket: "Socket", reason: str) -> None:
        """The connection is gone, without the other end's goodbye."""
        ...


class Socket:
    """One end. `owner` is None once the process has closed it, or is dead."""

    peer: "Socket"

    def __init__(self, timeline: Timeline, network: Network, host: int) -> None:
        self.host = host
        self.owner: Owner | None = None
        self.is_open = True
        """False after a reset or a timeout: the kernel has forgotten it."""
        self._timeline = timeline
        self._network = network
        self._sent = 0
        self._unacknowledged: deque[Piece] = deque()
        self._unacknowledged_bytes = 0
        self._back_off = 0
        self._timer = 0
        """Which one counts; 0 for none."""
        self._timers = 0
        self._watched = False
        self._lingers_until = 0
        self._wants_room = False
        self._expected = 0
        self._early: dict[int, Piece] = {}
        self._unread: deque[Payload] = deque()
        self._unread_bytes = 0

    # What the process does

    def send(self, payload: Payload, size: int) -> None:
        piece = Piece(self._sent, size, payload, self._timeline.now)
        self._sent += 1
        self._unacknowledged.append(piece)
        self._unacknowledged_bytes += size
        if not self._back_off:
            self._transmit(piece)
        if not self._watched:
            self._watched = True
            self._timeline.after(USER_TIMEOUT_US, self._give_up)

    def has_room(self) -> bool:
        """Whether to send more now. If not, `writable` will be called."""
        self._wants_room = self._unacknowledged_bytes >= SEND_BUFFER
        return not self._wants_room

    def take(self) -> Payload | None:
        """The next piece that came."""
        if not self._unread:
            return None
        payload = self._unread.popleft()
        self._unread_bytes -= len(payload) if isinstance(payload, bytes) else 0
        return payload

    @property
    def unread(self) -> int:
        return len(self._unread)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way or unread, in either direction."""
        return all(not end._unacknowledged and not end._unread for end in (self, self.peer))

    def close(self, code: int, reason: str, *, linger: int = LINGER_US) -> None:
        """Say goodbye, and take what still comes for the time `linger`; the kernel goes on sending what waits."""
        if self.is_open and self.owner is not None:
            self.send(Closing(code, reason), CLOSE_BYTES)
        self.owner = None
        self._lingers_until = self._timeline.now + linger

    def abort(self) -> None:
        """Reset it: what was not sent is lost, and the other end is told, if the packet gets there."""
        if self.is_open:
            self._forget()
            self._refuse()
        self.owner = None

    def die(self) -> None:
        """The host lost its power."""
        self._forget()
        self.owner = None

    # What the kernel does

    def _transmit(self, piece: Piece) -> None:
        delay = self._network.delay(self.host, self.peer.host, piece.size)
        if delay is None:
            self._start_timer()
        else:
            self._timeline.after(delay, self.peer._arrive, piece)

    def _start_timer(self) -> None:
        if not self._timer:
            self._timers += 1
            self._timer = self._timers
            self._timeline.after(RTO_US << self._back_off, self._timed_out, self._timer)

    def _timed_out(self, timer: int) -> None:
        if timer != self._timer or not self.is_open:
            return
        self._timer = 0
        if not self._unacknowledged:
            return
        head = self._unacknowledged[0]
        if not self._back_off and head.first_sent + RTO_US > self._timeline.now:
            self._timers += 1
            self._timer = self._timers
            self._timeline.at(head.first_sent + RTO_US, self._timed_out, self._timer)
            return
        self._back_off += 1
        self._transmit(head)
        self._start_timer()

    def _give_up(self) -> None:
        self._watched = False
        if not self._unacknowledged or not self.is_open:
            return
        due = self._unacknowledged[0].first_sent + USER_TIMEOUT_US
        if due > self._timeline.now:
            self._watched = True
            self._timeline.at(due, self._give_up)
            return
        self._break("no acknowledgement for 8 s")

    def _arrive(self, piece: Piece) -> None:
        if self.host in self._network.dead:
            return
        if not self.is_open:
            self._refuse()
            return
        if self.owner is None and self._timeline.now >= self._lingers_until and not isinstance(piece.payload, Closing):
            self._forget()
            self._refuse()
            return
        if self._unread_bytes + piece.size > RECEIVE_BUFFER and piece.sequence >= self._expected:
            self.peer._start_timer()  # the window is closed: the other end asks again
            return
        if piece.sequence >= self._expected:
            self._early[piece.sequence] = piece
            self._release()
        self._acknowledge()

    def _release(self) -> None:
        while piece := self._early.pop(self._expected, None):
            self._expected += 1
            if self.owner is None:
                continue
            self._unread.append(piece.payload)
            self._unread_bytes += piece.size if isinstance(piece.payload, bytes) else 0
            self.owner.readable(self)

    def _acknowledge(self) -> None:
        if self._network.passes(self.host, self.peer.host):
            self.peer._acknowledged(self._expected)
        else:
            self.peer._start_timer()

    def _acknowledged(self, upto: int) -> None:
        """Known at once, though it takes a latency: nothing but the room in the buffer depends on it."""
        pieces = self._unacknowledged
        if not pieces or pieces[0].sequence >= upto:
            return
        while pieces and pieces[0].sequence < upto:
            self._unacknowledged_bytes -= pieces.popleft().size
        if self._back_off:
            self._back_off = self._timer = 0
            self._timeline.after(self._network.latency, self._resend)
        if self._wants_room and self._unacknowledged_bytes < SEND_BUFFER:
            self._wants_room = False
            self._timeline.after(self._network.latency, self._room)

    def _resend(self) -> None:
        if self.is_open and not self._back_off:
            for piece in self._unacknowledged:
                if piece.sequence not in self.peer._early:
                    self._transmit(piece)

    def _room(self) -> None:
        if self.owner is not None:
            self.owner.writable(self)

    def _refuse(self) -> None:
        delay = self._network.delay(self.host, self.peer.host, RESET_BYTES)
        if delay is not None:
            self._timeline.after(delay, self.peer._reset)

    def _reset(self) -> None:
        if self.is_open and self.host not in self._network.dead:
            self._break("connection reset")

    def _break(self, reason: str) -> None:
        owner, self.owner = self.owner, None
        self._forget()
        if owner is not None:
            owner.broken(self, reason)

    def _forget(self) -> None:
        self.is_open = False
        self._unacknowledged.clear()
        self._unacknowledged_bytes = 0
        self._early.clear()


def pair(timeline: Timeline, network: Network, near: int, far: int) -> tuple[Socket, Socket]:
    """Both ends of a new connection."""
    one, other = Socket(timeline, network, near), Socket(timeline, network, far)
    one.peer, other.peer = other, one
    return one, other
