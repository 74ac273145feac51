"""Whole nodes with TLS over loopback sockets, and what strangers and lying members can do to them."""

import errno
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
from mesh.harness import (
    UPGRADE,
    Node,
    Raw,
    answer_of,
    hello,
    link_pair,
    mesh_of_two,
    request,
    session_over,
    start_node,
    text_of,
    wait_until,
)

from meshnode.errors import ConfigurationError, LinkLost
from meshnode.gossip.effects import Close, Dial
from meshnode.gossip.member import State
from meshnode.identity import Identity, Token, make_identity, new_node_key
from meshnode.inference import Event, Phase, Progress
from meshnode.mesh import mesh as mesh_module
from meshnode.mesh.link import open_link
from meshnode.mesh.listen import accept, local_address, open_mesh_listeners
from meshnode.mesh.peer import PeerBackend
from meshnode.mesh.reasons import HTTP_HERE, WRONG_TOKEN_HERE, WRONG_TOKEN_THERE
from meshnode.names import NodeId, short
from meshnode.testing import FakeWorker
from meshnode.wire.codec import encode
from meshnode.wire.messages import Body, Hello, Leave, ModelState, Open, Ping, StreamChunk, StreamProgress

LOAD = (ModelState("demo", b"", "ready", 3, 4),)  # type: ignore[arg-type]  # bytes are what travels


async def ask(asker: Node, server: Node) -> str:
    async with asker.mesh.backend(server.identity.node_id).submit(request()) as events:
        return text_of(await answer_of(events))


async def connect(node: Node, source: str = "127.0.0.1") -> trio.SocketStream:
    host, _, port = node.addr.rpartition(":")
    return await trio.open_tcp_stream(host, int(port), local_address=source)


async def member_tls(node: Node, token: Token) -> tuple["trio.SSLStream[trio.SocketStream]", Identity]:
    """A TLS stream to `node` of someone who has the token, and may do what he likes with it."""
    mine = make_identity(token, new_node_key())
    tls = trio.SSLStream(await connect(node), mine.client)
    await tls.do_handshake()
    return tls, mine


@asynccontextmanager
async def one_node() -> AsyncIterator[tuple[Node, Token, trio.Nursery]]:
    token = Token.new()
    async with trio.open_nursery() as nursery:
        yield await start_node(nursery, "server", token), token, nursery
        nursery.cancel_scope.cancel()


async def test_two_nodes_link_and_one_answers_for_the_other() -> None:
    async with mesh_of_two() as (server, asker):
        assert await ask(asker, server) == "Hello from a fake worker."
        assert await ask(server, asker) == "Hello from a fake worker."


async def test_what_a_node_advertises_and_its_load_reach_the_other() -> None:
    async with mesh_of_two() as (server, asker):
        server.mesh.set_load(LOAD)
        server.mesh.advertise("model/00", b"\xc0")

        await wait_until(lambda: (member := asker.member("server")) and member.load == LOAD)
        assert any(change.what == "changed" for change in asker.changes)


async def test_the_load_comes_with_the_answer_before_any_heartbeat() -> None:
    async with mesh_of_two() as (server, asker):
        server.mesh._load = LOAD  # not by set_load, which would bring a heartbeat forward
        await ask(asker, server)

        member = asker.member("server")
        assert member is not None
        assert member.load == LOAD


async def test_the_round_trip_is_measured_by_frames_and_not_by_pings() -> None:
    """A WebSocket ping that times out stays in the library's list for ever."""
    async with mesh_of_two() as (_, asker):
        await wait_until(lambda: (member := asker.member("server")) and member.rtt_ms is not None)
        (session,) = asker.mesh._sessions.values()
        assert not session._link._socket._pings


async def test_a_wrong_token_is_refused_with_the_reason_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    async with one_node() as (server, _, nursery):
        stranger = await start_node(nursery, "stranger", Token.new(), seeds=[server.addr])
        await wait_until(lambda: server.mesh.refusals() and stranger.mesh.refusals())
        (here,) = server.mesh.refusals()
        (there,) = stranger.mesh.refusals()

        assert (here.addr, here.reason, here.dialled) == ("127.0.0.1", WRONG_TOKEN_HERE, False)
        assert (there.addr, there.reason, there.dialled) == (server.addr, WRONG_TOKEN_THERE, True)
        assert [member.name for member in server.mesh.members()] == ["server"]
        await wait_until(lambda: server.mesh.refusals()[0].count >= 2)
    assert sum(WRONG_TOKEN_HERE in record.message for record in caplog.records) == 1


async def test_a_refusal_is_forgotten_when_the_link_comes_about() -> None:
    token = Token.new()
    (placeholder,) = await open_mesh_listeners(["127.0.0.1:0"])
    addr = local_address(placeholder)
    await placeholder.aclose()
    async with trio.open_nursery() as nursery:
        asker = await start_node(nursery, "asker", token, seeds=[str(addr)])
        await wait_until(asker.mesh.refusals)
        (refusal,) = asker.mesh.refusals()
        assert (refusal.addr, refusal.reason) == (str(addr), "connection refused: nothing listens there")

        await start_node(nursery, "server", token, listen=str(addr))
        await asker.wait_sees("server")
        assert not asker.mesh.refusals()
        nursery.cancel_scope.cancel()


async def test_plain_http_at_the_mesh_port_is_told_apart() -> None:
    async with one_node() as (server, _, _):
        stream = await connect(server)
        await stream.send_all(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        await wait_until(server.mesh.refusals)

        assert server.mesh.refusals()[0].reason == HTTP_HERE


async def test_a_dialler_that_expected_another_node_closes() -> None:
    async with mesh_of_two() as (server, asker):
        wrong = NodeId(b"x" * 16)
        asker.mesh._perform(Dial(addr=server.addr, expect=wrong), asker.mesh._tasks)  # type: ignore[arg-type]  # it runs
        await wait_until(asker.mesh.refusals)

        expected = f"another node than expected: {short(server.identity.node_id)}, not {short(wrong)}"
        assert asker.mesh.refusals()[0].reason == expected
        assert asker.sees("server")


async def test_a_member_that_claims_another_id_is_refused() -> None:
    async with one_node() as (server, token, nursery):
        tls, _ = await member_tls(server, token)
        link = await open_link(nursery, tls)
        await link.send(encode(hello("liar")))
        with pytest.raises(LinkLost, match=r"closed with 4403: says that it is .* but proved to be"), trio.fail_after(3):
            await for_ever(link.receive)
        await wait_until(server.mesh.refusals)
        assert "proved to be" in server.mesh.refusals()[0].reason


async def for_ever(receive: Callable[[], Awaitable[Any]]) -> None:
    while True:
        await receive()


async def test_a_node_with_a_copy_of_our_key_is_refused() -> None:
    token, key = Token.new(), new_node_key()
    async with trio.open_nursery() as nursery:
        server = await start_node(nursery, "server", token, key=key)
        copy = await start_node(nursery, "copy", token, key=key, seeds=[server.addr])
        await wait_until(lambda: copy.mesh.refusals() and server.mesh.refusals())

        assert "one of the two runs on a copy of the other's data" in copy.mesh.refusals()[0].reason
        assert len(server.rekeys) + len(copy.rekeys) == 1
        nursery.cancel_scope.cancel()


async def test_half_handshakes_of_a_stranger_do_not_keep_a_member_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of the stranger's are held for as long as they may last; all others are closed at once."""
    monkeypatch.setattr(mesh_module, "HANDSHAKE_S", 0.5)
    async with one_node() as (server, token, nursery):
        stranger = [await connect(server, "127.0.0.9") for _ in range(15)]
        await wait_until(server.mesh.refusals)
        asker = await start_node(nursery, "asker", token, seeds=[server.addr])
        with trio.fail_after(1):
            await asker.wait_sees("server")
        assert [refusal.addr for refusal in server.mesh.refusals()] == ["127.0.0.9"]

        for stream in stranger:
            with trio.fail_after(3):
                assert await is_closed(stream)
        assert not server.mesh._gate._pending
        assert "no handshake within" in server.mesh.refusals()[0].reason


async def is_closed(stream: trio.SocketStream) -> bool:
    try:
        return not await stream.receive_some()
    except trio.BrokenResourceError:
        return True


async def test_known_members_have_slots_of_their_own() -> None:
    async with mesh_of_two() as (server, _):
        server.mesh._let_members_in(trio.current_time() + 1)  # as the next connection would
        assert server.mesh._gate.known == {"127.0.0.1"}


MASK = bytes(4)


def frame(first: int, payload: bytes = b"") -> bytes:
    """A masked client frame (with a mask of zeros), as the standard has it."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([first]) + length + MASK + payload


async def linked_by_hand(server: Node, name: str) -> "trio.SSLStream[trio.SocketStream]":
    """A member's TLS stream to `server` over which the link is up."""
    tls, mine = await member_tls(server, server.token)
    await tls.send_all(UPGRADE)
    await tls.receive_some()
    await tls.send_all(frame(0x82, encode(Hello(1, 1, mine.mesh_id, mine.node_id, name, "0", 1, b"instance"))))
    await wait_until(lambda: server.mesh._sessions)
    return tls


BEFORE_UPGRADE = {
    "garbage": b"\x00\xff" * 50,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "http without upgrade": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "http 1.0": UPGRADE.replace(b"1.1", b"1.0"),
    "upgrade without a key": UPGRADE.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
    "upgrade of another version": UPGRADE.replace(b"Version: 13", b"Version: 99"),
    "a header of 100 kB": b"GET / HTTP/1.1\r\nHost: " + b"x" * 100_000,
    "half a request": UPGRADE[:40],
    "an upgrade by POST": UPGRADE.replace(b"GET", b"POST"),
}
AFTER_UPGRADE = {
    "reserved bits": frame(0xF2, b"x"),
    "an unknown opcode": frame(0x83, b"x"),
    "an unknown control opcode": frame(0x8B),
    "a length of 2^63": b"\x82\xff\x80" + bytes(7) + MASK,
    "a length of 2^62": b"\x82\xff\x40" + bytes(7) + MASK + b"x" * 1000,
    "an overlong length": b"\x82\xfe\x00\x01" + MASK + b"x",
    "no mask": b"\x82\x01x",
    "bad UTF-8": frame(0x81, b"\xff\xfe"),
    "a text message": frame(0x81, b"hi"),
    "a fragment that is never ended": frame(0x02, b"x"),
    "a continuation of nothing": frame(0x80, b"x"),
    "a message within a message": frame(0x02, b"x") + frame(0x82, b"y"),
    "a fragmented ping": frame(0x09, b"x"),
    "a ping of 126 bytes": frame(0x89, b"x" * 126),
    "a close of one byte": frame(0x88, b"x"),
    "a close with a bad code": frame(0x88, b"\x00\x01"),
    "a close with bad UTF-8": frame(0x88, b"\x03\xe8\xff\xfe"),
    "two closes": frame(0x88, b"\x03\xe8") * 2,
    "a message after the close": frame(0x88, b"\x03\xe8") + frame(0x82, b"x"),
    "a close and a ping": frame(0x88, b"\x03\xe8") + frame(0x89),
    "an empty message": frame(0x82),
    "no msgpack": frame(0x82, b"\xc1\xc1\xc1"),
    "msgpack, but no frame": frame(0x82, b"\x93\x01\x02\x03"),
    "deep msgpack": frame(0x82, b"\x91" * 5000),
    "an unknown kind below 64": frame(0x82, b"\x91\x3f"),
    "gossip before HELLO": frame(0x82, encode(Ping(1, False, bytes(8)))),
    "a stream before HELLO": frame(0x82, encode(Open(1, 1)) + encode(Body(1, b"x"))),
    "a message over the limit": b"\x82\xff" + (300 * 1024).to_bytes(8, "big") + MASK + b"x" * (300 * 1024),
    "half a message": frame(0x82, b"x" * 100)[:50],
}


async def test_malformed_input_after_tls_ends_its_link_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mesh_module, "HANDSHAKE_S", 0.8)
    monkeypatch.setattr("meshnode.mesh.link.CLOSE_S", 0.05)
    monkeypatch.setattr("meshnode.mesh.gate.ATTEMPTS_PER_S", 1000)
    monkeypatch.setattr("meshnode.mesh.gate.SLOTS_PER_ADDRESS", 100)
    monkeypatch.setattr("meshnode.mesh.gate.SLOTS_FOR_STRANGERS", 100)
    monkeypatch.setattr("meshnode.mesh.gate.SLOTS", 100)
    async with mesh_of_two() as (server, asker):
        token = server.token

        async def attack(name: str, *parts: bytes) -> None:
            tls, _ = await member_tls(server, token)
            with trio.fail_after(4):
                try:
                    for data in parts:
                        await tls.send_all(data)
                        assert data != UPGRADE or await tls.receive_some()
                    while await tls.receive_some():
                        pass
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            survived.append(name)

        survived: list[str] = []
        async with trio.open_nursery() as nursery:
            for name, data in BEFORE_UPGRADE.items():
                nursery.start_soon(attack, name, data)
            for name, data in AFTER_UPGRADE.items():
                nursery.start_soon(attack, name, UPGRADE, data)

        assert len(survived) == len(BEFORE_UPGRADE) + len(AFTER_UPGRADE) >= 26
        assert await ask(asker, server) == "Hello from a fake worker."
        assert len(server.mesh._sessions) == 1
        assert not server.mesh._gate._pending
    assert "this is a bug" not in caplog.text


FAULTLESS = {"a fragment that is never ended", "half a message", "a length of 2^62", "a stream before HELLO"}
"""As far as they go: on a link that is up, they break no rule yet."""
FAULTS = {name: data for name, data in AFTER_UPGRADE.items() if name not in FAULTLESS}


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS)
async def test_malformed_input_on_a_link_that_is_up_ends_that_link(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a member has proved, it is a peer whose bytes are not trusted."""
    token = Token.new()
    async with trio.open_nursery() as nursery:
        server = await start_node(nursery, "server", token)
        tls = await linked_by_hand(server, "evil")
        if data == AFTER_UPGRADE["gossip before HELLO"]:
            data = frame(0x82, encode(Leave(99)))
        await tls.send_all(data)
        await wait_until(lambda: not server.mesh._sessions)
        member = server.member("evil")

        assert member is not None
        assert not member.routable
        nursery.cancel_scope.cancel()
    assert "this is a bug" not in caplog.text


async def test_a_bug_of_ours_in_a_link_ends_that_link_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise KeyError("oops")

    async with mesh_of_two() as (server, asker):
        with monkeypatch.context() as patch:
            patch.setattr(server.mesh._engine, "receive", broken)
            await wait_until(lambda: "this is a bug" in caplog.text)
        await wait_until(lambda: not server.sees("asker"))
        await asker.wait_sees("server")


@pytest.mark.parametrize("batches", [0, 1, 2])
async def test_a_cancel_crosses_within_100_ms(batches: int) -> None:
    """The best of three: the machine that tests has other work."""
    worker = FakeWorker(["word"] * 1000, delay=0.05)
    took: list[float] = []
    async with mesh_of_two(worker) as (server, asker):
        for _ in range(3):
            worker.requests.clear()
            worker.cancelled = 0
            async with asker.mesh.backend(server.identity.node_id).submit(request()) as events:
                for _ in range(batches):
                    await anext(events)
                await wait_until(lambda: worker.requests)
                left = time.monotonic()
            await wait_until(lambda: worker.cancelled)
            took.append(time.monotonic() - left)
    assert min(took) < 0.1


async def test_a_link_lost_in_mid_stream_is_an_error_with_the_name_of_the_peer() -> None:
    async with mesh_of_two(FakeWorker(["word"] * 1000, delay=0.01)) as (server, asker):
        received: list[Event] = []
        async with asker.mesh.backend(server.identity.node_id).submit(request()) as events:
            while not text_of(received):
                received += await anext(events)
            (session,) = server.mesh._sessions.values()
            await session._link.abort()
            with pytest.raises(LinkLost, match="lost the link to server"), trio.fail_after(1):
                await collect(events, received)
        with pytest.raises(LinkLost, match="no link to server"):
            await ask(asker, server)
        await asker.wait_sees("server")
        assert asker.sees("server"), "it is dialled again"


async def collect(events: Any, into: list[Event]) -> None:
    async for batch in events:
        into += batch


async def test_of_two_links_between_two_nodes_one_stays_and_no_request_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Each end may choose a link that the other is just closing."""
    caplog.set_level("INFO")
    async with mesh_of_two() as (server, asker):
        server.mesh._perform(Dial(addr=asker.addr), server.mesh._tasks)  # type: ignore[arg-type]  # it runs
        with trio.fail_after(5):
            while "duplicate link" not in caplog.text or len(server.mesh._sessions) > 1 or len(asker.mesh._sessions) > 1:
                assert await ask(asker, server) == "Hello from a fake worker."
                assert await ask(server, asker) == "Hello from a fake worker."

        assert len(server.mesh._sessions) == len(asker.mesh._sessions) == 1


async def test_a_request_moves_to_the_peers_other_link_before_its_first_chunk_only() -> None:
    async with link_pair() as (dialler, acceptor), link_pair() as (dialler2, acceptor2), trio.open_nursery() as nursery:
        sessions = [session_over(link, "server")[0] for link in (dialler, dialler2)]
        for session in sessions:
            nursery.start_soon(session.run)
        backend = PeerBackend(lambda: next((session for session in sessions if session.is_up), sessions[0]))
        async with backend.submit(request()) as events:
            await Raw(acceptor).send(StreamProgress(1, Phase.QUEUED, 0, 0))
            assert await anext(events) == (Progress(phase=Phase.QUEUED),)
            sessions[0].end(4410, "duplicate link")
            await Raw(acceptor2).send(StreamChunk(1, 0, "moved", b""))
            assert text_of(await anext(events)) == "moved"
            sessions[1].end(4410, "duplicate link")
            with pytest.raises(LinkLost, match="lost the link to server: duplicate link"):
                await anext(events)
        nursery.cancel_scope.cancel()


async def test_three_nodes_that_know_one_address_are_all_linked() -> None:
    token = Token.new()
    async with trio.open_nursery() as nursery:
        first = await start_node(nursery, "first", token)
        others = [await start_node(nursery, name, token, seeds=[first.addr]) for name in ("second", "third")]
        for node in (first, *others):
            await node.wait_sees(*{"first", "second", "third"} - {node.name})
        assert await ask(others[0], others[1]) == "Hello from a fake worker."
        nursery.cancel_scope.cancel()


async def test_nobody_can_be_asked_without_a_link() -> None:
    async with one_node() as (server, _, _):
        with pytest.raises(LinkLost, match="no link to 78787878"):
            async with server.mesh.backend(NodeId(b"x" * 16)).submit(request()):
                pass


async def test_an_orderly_leave_is_known_at_once_and_closes_the_links() -> None:
    async with mesh_of_two() as (server, asker):
        with trio.fail_after(1.5):
            await server.mesh.leave()
        await wait_until(lambda: (member := asker.member("server")) and member.state is State.LEFT)
        assert not server.mesh._sessions

        stream = await connect(server)
        with trio.fail_after(1):
            assert await is_closed(stream), "nothing is accepted any more"


async def test_leaving_does_not_wait_for_a_peer_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "_FLUSH_S", 0.1)
    monkeypatch.setattr("meshnode.mesh.session.CLOSE_S", 0.1)
    token = Token.new()
    async with trio.open_nursery() as nursery:
        server = await start_node(nursery, "server", token)
        await linked_by_hand(server, "deaf")
        (session,) = server.mesh._sessions.values()
        for _ in range(400):  # more than the buffers of both sockets hold
            session.lanes.data(StreamChunk(1, 0, "x" * 60_000, b""))
        start = time.monotonic()
        await server.mesh.leave()

        assert time.monotonic() - start < 1
        nursery.cancel_scope.cancel()


async def test_the_engine_can_close_a_link_and_the_peer_is_told() -> None:
    async with mesh_of_two() as (server, asker):
        (link,) = server.mesh._sessions
        server.mesh._perform(Close(link=link, code=4410, reason="duplicate link"), server.mesh._tasks)  # type: ignore[arg-type]
        await wait_until(lambda: (member := asker.member("server")) and "duplicate link" in member.reason)


async def test_a_port_in_use_names_the_flag_and_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--mesh 127.0.0.1:{port}: the port is in use") as caught:
            await open_mesh_listeners([f"127.0.0.1:{port}"])

    assert f"--mesh 127.0.0.1:{port + 1}" in caught.value.hint


async def test_an_address_of_another_machine_names_the_flag() -> None:
    with pytest.raises(ConfigurationError, match=r"--mesh 192\.0\.2\.1:0"):
        await open_mesh_listeners(["192.0.2.1:0"])


async def test_both_families_share_a_port_that_the_system_chose() -> None:
    listeners = await open_mesh_listeners(["0.0.0.0:0", "[::]:0"])
    try:
        ports = {local_address(listener).port for listener in listeners}
        assert len(ports) == 1
        for listener in listeners:
            host = "::1" if listener.socket.family == socket.AF_INET6 else "127.0.0.1"
            await (await trio.open_tcp_stream(host, ports.copy().pop())).aclose()
    finally:
        for listener in listeners:
            await listener.aclose()


async def test_a_machine_without_ipv6_listens_on_ipv4_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trio.socket.socket

    def no_ipv6(family: int, kind: int) -> Any:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr(trio.socket, "socket", no_ipv6)
    (listener,) = await open_mesh_listeners(["0.0.0.0:0", "[::]:0"])
    assert local_address(listener).host == "0.0.0.0"
    await listener.aclose()
    with pytest.raises(ConfigurationError, match="not supported"):
        await open_mesh_listeners(["[::]:0"])


async def test_out_of_descriptors_pauses_accepting_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Exhausted:
        """A listener that has no descriptor three times, and then a connection."""

        def __init__(self) -> None:
            self.failures = 3

        async def accept(self) -> str:
            await trio.lowlevel.checkpoint()
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return "a stream"

    async def handle(stream: object) -> None:
        assert stream == "a stream"
        nursery.cancel_scope.cancel()

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, Exhausted(), handle, nursery)  # type: ignore[arg-type]  # a double
    assert sum("Too many open files" in record.message for record in caplog.records) == 1


async def test_sockets_of_links_do_not_wait_for_the_dead() -> None:
    async with mesh_of_two() as (server, _):
        (session,) = server.mesh._sessions.values()
        stream = session._link._stream._stream.transport_stream  # type: ignore[attr-defined]  # TLS over TCP

        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
