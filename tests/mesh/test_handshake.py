"""From TCP to HELLO: who is let in, and what both ends are told when not."""

import ssl
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing
from mesh.harness import hello

from meshnode.errors import LinkLost, MeshnodeError, PeerError
from meshnode.identity import Identity, Token, make_identity, new_node_key
from meshnode.mesh.handshake import Proven, greet
from meshnode.mesh.reasons import HTTP_HERE, NO_WEBSOCKET, NOT_TLS_THERE, WRONG_TOKEN_HERE, WRONG_TOKEN_THERE, explain
from meshnode.names import NodeId
from meshnode.wire.codec import encode
from meshnode.wire.messages import Hello, Ping

TOKEN = Token.new()
Outcome = Proven | MeshnodeError


def identity(token: Token = TOKEN) -> Identity:
    return make_identity(token, new_node_key())


def accept_all(_hello: Hello, _proven: NodeId) -> None:
    pass


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Real sockets: some reasons come from the kernel."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    far = await listener.accept()
    await listener.aclose()
    return near, far


async def outcome_of(
    nursery: trio.Nursery, stream: trio.abc.Stream, mine: Identity, *, dialled: bool, judge: Callable[..., None] = accept_all
) -> Outcome:
    try:
        return await greet(nursery, stream, mine, ours=lambda _: hello("one" if dialled else "two"), judge=judge, dialled=dialled)
    except (LinkLost, PeerError) as error:
        return error


async def meet(dialler: Identity, acceptor: Identity, judge: Callable[..., None] = accept_all) -> tuple[Outcome, Outcome]:
    """What both ends make of each other; `judge` is the acceptor's."""
    near, far = await tcp_pair()
    found: dict[bool, Outcome] = {}

    async def run(stream: trio.abc.Stream, mine: Identity, dialled: bool, judge: Callable[..., None]) -> None:
        found[dialled] = await outcome_of(links, stream, mine, dialled=dialled, judge=judge)

    with trio.fail_after(3):
        async with trio.open_nursery() as links:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, near, dialler, True, accept_all)
                nursery.start_soon(run, far, acceptor, False, judge)
            links.cancel_scope.cancel()
    return found[True], found[False]


async def test_both_ends_prove_who_they_are_and_say_hello() -> None:
    one, two = identity(), identity()
    dialler, acceptor = await meet(one, two)

    assert isinstance(dialler, Proven)
    assert isinstance(acceptor, Proven)
    assert (dialler.peer, dialler.hello.name, dialler.link.dialled) == (two.node_id, "two", True)
    assert (acceptor.peer, acceptor.hello.name, acceptor.link.dialled) == (one.node_id, "one", False)


async def test_a_wrong_token_is_told_to_both_ends() -> None:
    dialler, acceptor = await meet(identity(), identity(Token.new()))

    assert (str(dialler), str(acceptor)) == (WRONG_TOKEN_THERE, WRONG_TOKEN_HERE)


def trusting(mine: Identity) -> Identity:
    """A dialler that takes any certificate: only the acceptor can refuse then, after the dialler's handshake is over."""
    context = make_identity(Token.new(), new_node_key()).client
    context.verify_mode = ssl.CERT_NONE
    return Identity(node_id=mine.node_id, mesh_id=mine.mesh_id, server=mine.server, client=context)


async def test_a_dialler_that_is_refused_after_its_handshake_learns_why() -> None:
    """In TLS 1.3 it sees the refusal on its first read, and trio alone would not even send it."""
    dialler, acceptor = await meet(trusting(identity()), identity())

    assert (str(dialler), str(acceptor)) == (f"refused our token: {WRONG_TOKEN_THERE}", WRONG_TOKEN_HERE)


async def test_who_has_no_certificate_is_refused() -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    mine = identity()
    _, acceptor = await meet(Identity(node_id=mine.node_id, mesh_id=mine.mesh_id, server=mine.server, client=bare), identity())

    assert str(acceptor) == "it speaks TLS but has no certificate of a mesh"


async def test_who_speaks_an_older_tls_is_refused() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    mine = identity()
    dialler, acceptor = await meet(
        Identity(node_id=mine.node_id, mesh_id=mine.mesh_id, server=mine.server, client=old), identity()
    )

    assert "older TLS than 1.3" in str(acceptor)
    assert "older TLS than 1.3" in str(dialler)


async def test_the_judges_verdict_reaches_the_other_end() -> None:
    def judge(_hello: Hello, _proven: NodeId) -> None:
        raise PeerError("two nodes run on copies of one data directory", close_code=4409)

    dialler, acceptor = await meet(identity(), identity(), judge)
    assert isinstance(acceptor, PeerError)
    assert acceptor.close_code == 4409
    assert isinstance(dialler, Proven), "both say HELLO at once, so its link is up for a moment"
    with pytest.raises(LinkLost, match="closed with 4409: two nodes run on copies"), trio.fail_after(1):
        await dialler.link.receive()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_HERE),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_HERE),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "something that is not TLS"),
        (b"\xff" * 100, "something that is not TLS"),
        (b"", "it closed the connection"),
        (b"\x16\x03\x01", "it closed the connection"),
    ],
)
async def test_a_stranger_at_our_port_is_told_apart(sent: bytes, reason: str) -> None:
    near, far = await tcp_pair()
    async with trio.open_nursery() as nursery:
        if sent:
            await near.send_all(sent)
        await near.send_eof()
        with trio.fail_after(1):
            outcome = await outcome_of(nursery, far, identity(), dialled=False)

    assert str(outcome) == reason


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NOT_TLS_THERE),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NOT_TLS_THERE),
        (b"", "it closed the connection"),
    ],
)
async def test_another_service_at_the_address_is_told_apart(sent: bytes, reason: str) -> None:
    near, far = await tcp_pair()
    async with trio.open_nursery() as nursery:
        if sent:
            await far.send_all(sent)
        await far.send_eof()
        with trio.fail_after(1):
            outcome = await outcome_of(nursery, near, identity(), dialled=True)

    assert str(outcome) == reason


async def test_a_peer_that_stops_after_tls_ends_with_the_deadline() -> None:
    near, far = await tcp_pair()
    one = identity()
    async with trio.open_nursery() as nursery:
        tls = trio.SSLStream(near, one.client)
        nursery.start_soon(tls.do_handshake)
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.2):
            await greet(nursery, far, identity(), ours=lambda _: hello("two"), judge=accept_all, dialled=False)


@pytest.mark.parametrize("politely", [True, False])
async def test_a_member_that_hangs_up_after_tls_is_noticed_at_once(politely: bool) -> None:
    """The library would wait for ever for the rest of the upgrade."""
    near, far = await tcp_pair()
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            tls = trio.SSLStream(near, identity().client)
            await tls.do_handshake()
            if politely:
                await tls.aclose()
            else:
                await trio.aclose_forcefully(tls)

        nursery.start_soon(leave)
        with trio.fail_after(1):
            outcome = await outcome_of(nursery, far, identity(), dialled=False)

    assert str(outcome) == "it closed the connection"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (encode(Ping(1, False, bytes(8))), "first message must be HELLO"),
        (encode(hello("x")) + encode(Ping(1, False, bytes(8))), "HELLO, alone"),
        (b"\xc1", "frame"),
        (b"", "1 to"),
    ],
)
async def test_the_first_message_must_be_hello(first: bytes, reason: str) -> None:
    from meshnode.mesh.link import open_link

    near, far = await tcp_pair()
    async with trio.open_nursery() as nursery:

        async def member() -> None:
            tls = trio.SSLStream(near, identity().client)
            link = await open_link(nursery, tls)
            await link.send(first)
            with pytest.raises(LinkLost, match="closed with 4400"):
                await receive_all(link.receive)

        nursery.start_soon(member)
        with trio.fail_after(3):
            outcome = await outcome_of(nursery, far, identity(), dialled=False)

    assert isinstance(outcome, PeerError)
    assert reason in outcome.message


async def receive_all(receive: Callable[[], object]) -> None:
    while True:
        await receive()  # type: ignore[misc]  # any coroutine function


async def test_tls_without_our_websocket_is_told_apart() -> None:
    near, far = await tcp_pair()
    two = identity()
    async with trio.open_nursery() as nursery:

        async def web_server() -> None:
            tls = trio.SSLStream(far, two.server, server_side=True)
            await tls.receive_some()
            await tls.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        nursery.start_soon(web_server)
        with trio.fail_after(1):
            assert str(await outcome_of(nursery, near, identity(), dialled=True)) == NO_WEBSOCKET


async def failure_of(connect: Callable[[], object]) -> BaseException:
    try:
        await connect()  # type: ignore[misc]  # any coroutine function
    except OSError as error:
        return error
    raise AssertionError("it connected")


async def test_errors_of_the_network_have_plain_words() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()

    refused = await failure_of(partial(trio.open_tcp_stream, "127.0.0.1", port))
    unknown = await failure_of(partial(trio.open_tcp_stream, "no-such-host.invalid", port))

    assert explain(refused, dialled=True) == "connection refused: nothing listens there"
    assert explain(unknown, dialled=True) == "unknown host"
    assert explain(OSError(113, "No route to host"), dialled=True) == "no route to host"
    assert explain(None, dialled=True) == "it closed the connection"
