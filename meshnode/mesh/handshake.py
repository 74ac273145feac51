"""From a TCP stream to a proven peer: TLS, WebSocket, HELLO; the same for both ends.

A link is up only when the other's HELLO has arrived (security rule 5): in TLS 1.3 the dialler's handshake is over before the
acceptor has looked at its certificate, so a refusal comes with the first read.

trio's SSLStream never sends the alert that says why a handshake failed: it raises before it looks at what OpenSSL wants to send.
So we send it, and wait a moment for the other to read it; without it the refused end would see a closed connection and no reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from meshnode.errors import LinkLost, PeerError
from meshnode.identity import Identity, node_id_of
from meshnode.mesh.link import Link, accept_link, open_link
from meshnode.mesh.reasons import explain
from meshnode.names import NodeId
from meshnode.wire.codec import decode, encode
from meshnode.wire.messages import Hello

HANDSHAKE_S = 5.0
"""From the first byte (for a dialler: from the connection attempt) to the other's HELLO."""
_ALERT_S = 1.0


Judge = Callable[[Hello, NodeId], None]
"""Raises PeerError when the peer, which proved that id, is not to be linked with."""


@dataclass(frozen=True, kw_only=True)
class Proven:
    """A link to `peer`, who has proved that id in TLS, and what it says of itself."""

    link: Link
    peer: NodeId
    hello: Hello


async def greet(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    identity: Identity,
    *,
    ours: Callable[[NodeId], Hello],
    judge: Judge,
    dialled: bool,
) -> Proven:
    """Run the whole handshake; wants a deadline around it. Raises LinkLost or PeerError; the stream is closed then."""
    tls = trio.SSLStream(stream, identity.client if dialled else identity.server, server_side=not dialled)
    try:
        await _shake_hands(tls, dialled=dialled)
        peer = node_id_of(tls.getpeercert(binary_form=True))
        link = await (open_link if dialled else accept_link)(nursery, tls)
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    try:
        hello = await _exchange(link, ours(peer))
        judge(hello, peer)
    except PeerError as error:
        await link.close(error.close_code, error.message)
        raise
    except BaseException:
        await link.abort()
        raise
    return Proven(link=link, peer=peer, hello=hello)


async def _shake_hands(tls: "trio.SSLStream[trio.abc.Stream]", *, dialled: bool) -> None:
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as error:
        await _send_alert(tls)
        raise LinkLost(explain(error, dialled=dialled)) from error


async def _send_alert(tls: "trio.SSLStream[trio.abc.Stream]") -> None:
    """Reading until the other closes: else the kernel answers its next bytes by a reset, which could overtake the alert."""
    alert = tls._outgoing.read()  # private; see the top of the file
    with trio.move_on_after(_ALERT_S):
        try:
            if alert:
                await tls.transport_stream.send_all(alert)
                while await tls.transport_stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def _exchange(link: Link, ours: Hello) -> Hello:
    await link.send(encode(ours))
    match decode(await link.receive()):
        case [Hello() as theirs]:
            return theirs
        case _:
            raise PeerError("the first message must be HELLO, alone")
