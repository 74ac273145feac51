"""The connections of the simulation: what a kernel and a network do to bytes."""

import random

import pytest

from meshnode.simulation.network import Network
from meshnode.simulation.tcp import RECEIVE_BUFFER, SEND_BUFFER, Closing, Payload, Socket, pair
from meshnode.simulation.timeline import SECOND, Timeline


class Reader:
    """Holds a socket, and notes what it gets."""

    def __init__(self, timeline: Timeline, *, reads: bool = True) -> None:
        self.timeline = timeline
        self.reads = reads
        self.got: list[Payload] = []
        self.at: list[int] = []
        self.reason = ""
        self.room = 0

    def readable(self, socket: Socket) -> None:
        if self.reads and (payload := socket.take()) is not None:
            self.got.append(payload)
            self.at.append(self.timeline.now)

    def writable(self, socket: Socket) -> None:
        self.room += 1

    def broken(self, socket: Socket, reason: str) -> None:
        self.reason = reason


class Wire:
    """Two hosts with a connection between them."""

    def __init__(self, *, loss: float = 0.0, seed: int = 1, reads: bool = True) -> None:
        self.timeline = Timeline()
        self.network = Network(self.timeline, random.Random(seed))
        self.network.loss = loss
        self.near, self.far = pair(self.timeline, self.network, 0, 1)
        self.sender, self.reader = Reader(self.timeline), Reader(self.timeline, reads=reads)
        self.near.owner, self.far.owner = self.sender, self.reader

    def send(self, *payloads: bytes, every: int = 0) -> None:
        for payload in payloads:
            self.near.send(payload, len(payload))
            self.run(every)

    def run(self, microseconds: int) -> None:
        self.timeline.run(self.timeline.now + microseconds)


def numbered(count: int) -> list[bytes]:
    return [b"piece %d" % number for number in range(count)]


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_lost_all_arrives_once_and_in_order(loss: float, seed: int) -> None:
    wire = Wire(loss=loss, seed=seed)
    wire.send(*numbered(200), every=20_000)
    wire.run(60 * SECOND)

    assert wire.reader.got == numbered(200)
    assert wire.near.is_idle


def test_a_lost_piece_comes_a_retransmission_timeout_later_and_what_is_behind_it_waits() -> None:
    wire = Wire()
    wire.network.loss = 1.0
    wire.send(b"lost")
    wire.network.loss = 0.0
    wire.send(b"behind")
    wire.run(SECOND)

    assert wire.reader.got == [b"lost", b"behind"]
    assert 200_000 < wire.reader.at[0] < 210_000
    assert wire.reader.at[1] == wire.reader.at[0]


def test_retransmissions_come_at_doubling_intervals() -> None:
    wire = Wire()
    wire.network.block([(0, 1)])
    wire.send(b"late")
    wire.run(3_500_000)
    wire.network.unblock([(0, 1)])
    wire.run(5 * SECOND)

    assert 6_200_000 < wire.reader.at[0] < 6_210_000  # 0.2 + 0.4 + 0.8 + 1.6 + 3.2


def test_a_host_that_fell_silent_is_noticed_by_the_user_timeout_of_whoever_sends() -> None:
    wire = Wire()
    wire.network.dead.add(1)
    wire.send(b"into the void")
    wire.run(8 * SECOND - 1)
    before = wire.sender.reason
    wire.run(1)

    assert before == ""
    assert wire.sender.reason == "no acknowledgement for 8 s"
    assert wire.reader.reason == ""


def test_nobody_notices_a_silent_host_who_has_nothing_to_send() -> None:
    wire = Wire()
    wire.network.dead.add(1)
    wire.run(3600 * SECOND)

    assert wire.sender.reason == ""


def test_a_way_that_is_blocked_backwards_soon_stops_what_goes_forwards() -> None:
    """Without acknowledgements the sender may not send anything new."""
    wire = Wire()
    wire.network.block([(1, 0)])
    wire.send(b"one")
    wire.run(SECOND)
    wire.send(b"two")
    wire.run(10 * SECOND)

    assert wire.reader.got == [b"one"]
    assert wire.sender.reason != ""


def test_data_for_a_closed_socket_is_answered_by_a_reset() -> None:
    wire = Wire()
    wire.far.close(0, "it closed the connection", linger=0)
    wire.run(SECOND)
    before = wire.sender.reason
    wire.send(b"did you not hear me?")
    wire.run(SECOND)

    assert before == ""
    assert wire.sender.reason == "connection reset"


def test_a_killed_process_says_goodbye_behind_its_last_words() -> None:
    wire = Wire()
    wire.send(b"last words")
    wire.near.close(0, "it closed the connection", linger=0)
    wire.run(SECOND)

    assert wire.reader.got == [b"last words", Closing(0, "it closed the connection")]


def test_the_kernel_takes_for_a_stopped_process_until_its_buffer_is_full() -> None:
    wire = Wire(reads=False)
    block = bytes(16 * 1024)
    wire.send(*[block] * 64, every=1000)
    wire.run(2 * SECOND)

    assert wire.far.unread * len(block) == RECEIVE_BUFFER
    assert not wire.near.has_room()

    wire.run(8 * SECOND)

    assert wire.sender.reason == "no acknowledgement for 8 s"


def test_a_sender_that_waits_for_room_is_woken_when_there_is_some() -> None:
    wire = Wire()
    wire.send(*[bytes(16 * 1024)] * (SEND_BUFFER // (16 * 1024)))
    full = not wire.near.has_room()
    wire.run(SECOND)

    assert full
    assert wire.sender.room == 1
    assert wire.near.has_room()


def test_a_narrow_cable_takes_its_time() -> None:
    wire = Wire()
    wire.network.slow_down(0, 800_000)
    wire.send(bytes(100_000 - 100))
    wire.run(2 * SECOND)

    assert SECOND < wire.reader.at[0] < 1_100_000
