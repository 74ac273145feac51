"""The traps of trio_websocket, each as a test: what they did is in the names, what became of them in the asserts."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from mesh.harness import UPGRADE

from meshnode.errors import LinkLost, PeerError
from meshnode.mesh import link as link_module
from meshnode.mesh.link import Link, accept_link, open_link
from meshnode.wire.codec import MAX_MESSAGE

PING = b"\x89\x80\x00\x00\x00\x00"
"""A masked, empty ping."""


async def for_ever(action: Callable[..., Awaitable[Any]], *args: Any) -> None:
    while True:
        await action(*args)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def links(pair: Callable[[], tuple[Any, Any]] = trio.testing.memory_stream_pair) -> AsyncIterator[tuple[Link, Link]]:
    """Two ends of one link: the dialler's and the acceptor's."""
    near, far = pair()
    async with trio.open_nursery() as nursery:
        found: dict[str, Link] = {}

        async def run(name: str, half: Callable[[trio.Nursery, Any], Awaitable[Link]], stream: Any) -> None:
            found[name] = await half(nursery, stream)

        async with trio.open_nursery() as opening:
            opening.start_soon(run, "dialler", open_link, near)
            opening.start_soon(run, "acceptor", accept_link, far)
        yield found["dialler"], found["acceptor"]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[Link, Any]]:
    """Our accepting end, and the bare stream of a peer that has asked for the upgrade and may now send what it likes."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await far.send_all(UPGRADE)
        link = await accept_link(nursery, near)
        assert (await far.receive_some()).startswith(b"HTTP/1.1 101")
        yield link, far
        nursery.cancel_scope.cancel()


async def test_messages_go_both_ways_whole_and_in_order() -> None:
    async with links() as (dialler, acceptor):
        await dialler.send(b"one")
        await dialler.send(b"t" * MAX_MESSAGE)
        await acceptor.send(b"three")

        assert await acceptor.receive() == b"one"
        assert await acceptor.receive() == b"t" * MAX_MESSAGE
        assert await dialler.receive() == b"three"


async def test_a_cancelled_wait_for_a_message_loses_nothing() -> None:
    async with links() as (dialler, acceptor):
        with trio.move_on_after(0):
            await acceptor.receive()
        await dialler.send(b"still there")

        assert await acceptor.receive() == b"still there"


async def test_the_peer_learns_code_and_reason_of_a_close() -> None:
    async with links() as (dialler, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(dialler.close, 4403, "another\x1b[31m id")
        with pytest.raises(LinkLost, match=r"closed with 4403: another \[31m id"):
            await acceptor.receive()


async def test_a_long_reason_is_cut_to_what_a_close_frame_holds() -> None:
    async with links() as (dialler, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(dialler.close, 4400, "ä" * 200)
        with pytest.raises(LinkLost, match=r"closed with 4400: ä{61}$"):
            await acceptor.receive()


async def test_a_cancelled_send_drops_the_stream_because_half_a_frame_may_be_out() -> None:
    """The library goes on as if nothing had happened: later messages raise nothing and never arrive."""
    async with links(trio.testing.lockstep_stream_pair) as (dialler, acceptor):
        async with trio.open_nursery() as sending:
            sending.start_soon(for_ever, dialler.send, b"x" * 200_000)
            for _ in range(100):  # many more than the other end takes before it waits to be read
                await trio.testing.wait_all_tasks_blocked()
            sending.cancel_scope.cancel()

        with pytest.raises(LinkLost), trio.fail_after(1):
            await dialler.send(b"after")
        with pytest.raises((LinkLost, PeerError)), trio.fail_after(1):
            await for_ever(acceptor.receive)


async def test_a_peer_that_takes_nothing_is_gone_after_20_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with links(trio.testing.lockstep_stream_pair) as (dialler, _):
        start = trio.current_time()
        with pytest.raises(LinkLost, match="took nothing for 20 s"):
            await for_ever(dialler.send, b"x" * 200_000)
        assert 20 <= trio.current_time() - start < 21


async def test_a_ping_while_we_are_closing_ends_this_link_and_nothing_else(autojump_clock: trio.testing.MockClock) -> None:
    """trio-websocket issue 184: LocalProtocolError came out of the reader task and cancelled its nursery."""
    async with accepted() as (link, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.close, 1001, "leaving")
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(PING)
        await trio.testing.wait_all_tasks_blocked()

        with pytest.raises(LinkLost):
            await link.receive()


async def test_the_library_still_has_the_ping_bug_that_the_barrier_is_for() -> None:
    """When this fails the library was mended, and `_Barrier` may go."""
    from trio_websocket import wrap_server_stream
    from wsproto.utilities import LocalProtocolError

    near, far = trio.testing.memory_stream_pair()
    await far.send_all(UPGRADE)
    with pytest.RaisesGroup(LocalProtocolError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, near)).accept()
            nursery.start_soon(socket.aclose)
            await trio.testing.wait_all_tasks_blocked()
            await far.send_all(PING)


@pytest.mark.parametrize("half", [open_link, accept_link])
async def test_a_peer_that_hangs_up_during_the_opening_is_noticed_at_once(
    half: Callable[[trio.Nursery, Any], Awaitable[Link]],
) -> None:
    """The library would wait for ever."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.aclose)
        with pytest.raises(LinkLost, match="it closed the connection"), trio.fail_after(1):
            await half(nursery, near)


async def test_an_answer_that_is_no_upgrade_is_told_apart() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await far.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(LinkLost, match="not our WebSocket protocol"), trio.fail_after(1):
            await open_link(nursery, near)


async def test_closing_does_not_wait_for_a_peer_that_does_not_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with accepted() as (link, peer):
        start = trio.current_time()
        await link.close(1001, "leaving")

        assert trio.current_time() - start <= 1.01
        assert b"leaving" in await peer.receive_some()
        assert await peer.receive_some() == b""


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(autojump_clock: trio.testing.MockClock) -> None:
    async with links(trio.testing.lockstep_stream_pair) as (dialler, _):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(LinkLost):
                    await for_ever(dialler.send, b"x" * 200_000)

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
            await dialler.close(1001, "leaving")
        assert trio.current_time() - start <= 1.01


async def test_pings_are_answered_while_nobody_takes_the_messages() -> None:
    """As long as the queue has room; a session always takes them at once."""
    async with accepted() as (_, peer):
        await peer.send_all(b"\x82\x81\x00\x00\x00\x00x" + PING)

        assert await peer.receive_some() == b"\x8a\x00"


async def test_a_link_ends_though_nobody_takes_its_messages(autojump_clock: trio.testing.MockClock) -> None:
    """The library's reader waits for room in its queue, and would wait for ever."""
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(1.5):
        async with trio.open_nursery() as nursery:
            await far.send_all(UPGRADE)
            link = await accept_link(nursery, near)
            await far.send_all(b"\x82\x81\x00\x00\x00\x00x" * 40)
            await trio.testing.wait_all_tasks_blocked()
            await link.close(1001, "leaving")


async def test_a_text_message_is_against_the_protocol() -> None:
    async with accepted() as (link, peer):
        await peer.send_all(b"\x81\x82\x00\x00\x00\x00hi")
        with pytest.raises(PeerError, match="text"):
            await link.receive()


async def test_a_message_over_the_limit_ends_the_link() -> None:
    async with links() as (dialler, acceptor):
        await dialler.send(b"x" * (MAX_MESSAGE + 1))
        with pytest.raises(LinkLost, match="1009"):
            await acceptor.receive()


@pytest.mark.parametrize("frame", [PING, b"\x00\x80\x00\x00\x00\x00"], ids=["pings", "empty fragments"])
async def test_what_never_becomes_a_message_is_bounded(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library bounds the bytes of a message only: empty fragments would pile up without end."""
    monkeypatch.setattr(link_module, "_MAX_SILENT_BYTES", 20_000)
    async with accepted() as (link, peer):
        if frame[0] == 0:
            await peer.send_all(b"\x02\x80\x00\x00\x00\x00")

        async def flood() -> None:
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await for_ever(peer.send_all, frame * 200)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with pytest.raises(PeerError, match=r"without a (complete )?message") as caught:
                await link.receive()
            await link.abort()
        assert caught.value.close_code == 4429


async def test_a_broken_websocket_frame_ends_the_link(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with accepted() as (link, peer):
        await peer.send_all(b"\xf2\x80\x00\x00\x00\x00")
        with pytest.raises((LinkLost, PeerError)), trio.fail_after(1):
            await link.receive()
    assert not caplog.records


def test_the_receive_buffer_is_not_the_librarys() -> None:
    assert link_module._LIMITS["receive_buffer_size"] == 65536
    assert link_module._LIMITS["max_message_size"] == MAX_MESSAGE
