"""Nodes find each other by mDNS: real packets, on loopback only, under a service type that no other test uses."""

import errno
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from threading import Event
from typing import Any

import pytest
import trio
from zeroconf import DNSOutgoing, ServiceInfo  # type: ignore[attr-defined]  # the first is not in its list of exports

from meshnode.mesh.announcement import MAX_ADDRS, Announcement, instance, node_of, read
from meshnode.mesh.discovery import Discovery, Found, State
from meshnode.mesh.interfaces import Interface
from meshnode.mesh.responder import Responder, sockets
from meshnode.names import MeshId, NodeId

LOOPBACK = Interface(name="lo", index=1, networks=(ip_interface("127.0.0.1/8"),))
ME = NodeId(b"\x0a" * 16)
MESH = MeshId(b"\xbc" * 8)
TYPE = "_mntest._tcp.local."
GOOD = {b"mesh": MESH.hex().encode(), b"id": ME.hex().encode(), b"proto": b"1-2"}
SOON_S = 3.0
RESPONSE = 0x8400


def own(*hosts: str, port: int = 4850, node: NodeId | None = None, mesh: MeshId = MESH) -> Announcement:
    return Announcement(
        node=node or NodeId(secrets.token_bytes(16)), mesh=mesh, protocol=(1, 2), port=port, hosts=hosts or ("127.0.0.1",)
    )


def read_txt(txt: dict[bytes, bytes | None], *hosts: str, port: int = 4850) -> Found | None:
    return read(ME, txt, [(ip_address(host), port) for host in hosts or ["192.168.1.5"]], loopback=False)


class Side:
    """One discovery under test, and what it found."""

    def __init__(self, announcement: Announcement, service_type: str, *interfaces: Interface) -> None:
        self.own = announcement
        self.found: list[Found] = []
        self.gone: list[NodeId] = []
        self._news = trio.Event()
        self.discovery = Discovery(
            announcement,
            interfaces,
            on_found=lambda found: self._hear(self.found, found),
            on_gone=lambda node: self._hear(self.gone, node),
            service_type=service_type,
        )

    def _hear(self, heard: list[Any], what: Any) -> None:
        heard.append(what)
        self._news.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(SOON_S):
            while not condition():
                self._news = trio.Event()
                await self._news.wait()

    async def wait_state(self, state: State) -> None:
        with trio.fail_after(SOON_S):
            while self.discovery.report().state is not state:  # noqa: ASYNC110 - only polling sees it
                await trio.sleep(0.005)

    async def wait_found(self, other: Announcement) -> Found:
        await self.wait_until(lambda: any(found.node == other.node for found in self.found))
        return next(found for found in reversed(self.found) if found.node == other.node)


@asynccontextmanager
async def running(*sides: Side) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(side.discovery.run)
        yield nursery
        nursery.cancel_scope.cancel()


def service(announcement: Announcement, service_type: str, *, name: str = "", txt: dict[str, str] | None = None) -> ServiceInfo:
    """As a stranger would announce it."""
    name = name or announcement.node.hex()
    return ServiceInfo(
        service_type,
        f"{name}.{service_type}",
        port=announcement.port,
        properties=announcement.properties() if txt is None else txt,
        parsed_addresses=list(announcement.hosts),
        server=f"{name}.local.",
    )


def shout(*infos: ServiceInfo) -> None:
    """Announce them to all on loopback, once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for info in infos:
            out = DNSOutgoing(RESPONSE)
            for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
                out.add_answer_at_time(record, 0)
            for packet in out.packets():
                sock.sendto(packet, ("224.0.0.251", 5353))


def fresh_type() -> str:
    return f"_mn{secrets.token_hex(4)}._tcp.local."


# What is read of a stranger's announcement.


def test_a_good_announcement_is_read() -> None:
    expected = Found(node=ME, mesh=MESH, protocol_min=1, protocol_max=2, addrs=("192.168.1.5:4850", "[fe80::1%3]:4850"))

    assert read_txt({**GOOD, b"future": b"x"}, "fe80::1%3", "192.168.1.5") == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {b"mesh": b"bc" * 7},
        {b"mesh": b"BC" * 8},
        {b"mesh": b"bc" * 8 + b"\n"},
        {b"mesh": None},
        {b"id": b"0b" * 16},
        {b"id": b""},
        {b"proto": b"1"},
        {b"proto": b"2-1"},
        {b"proto": b"-1-2"},
        {b"proto": "\u0661-\u0662".encode()},
        {b"proto": b"1-" + b"2" * 70},
        {b"proto": b"\xff\xfe"},
    ],
)
def test_a_malformed_announcement_is_ignored(wrong: dict[bytes, bytes | None]) -> None:
    assert read_txt({**GOOD, **wrong}) is None


def test_an_announcement_without_a_port_or_a_usable_address_is_ignored() -> None:
    assert read_txt(dict(GOOD), port=0) is None
    for host in ("127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "fe80::1"):
        assert read_txt(dict(GOOD), host) is None, host


def test_no_more_than_a_few_addresses_are_taken_of_an_announcement() -> None:
    found = read_txt(dict(GOOD), *(f"10.0.0.{number}" for number in range(1, 100)))

    assert found
    assert len(found.addrs) == MAX_ADDRS


def test_only_services_named_by_an_id_are_looked_at() -> None:
    assert node_of(instance(ME, TYPE), TYPE) == ME
    for name in (
        TYPE,
        f"printer.{TYPE}",
        ME.hex(),
        f"{ME.hex()}-2.{TYPE}",
        f"x.{ME.hex()}.{TYPE}",
        f"{ME.hex()}._other._tcp.local.",
    ):
        assert node_of(name, TYPE) is None, name


def test_it_listens_at_one_address_of_each_family_of_an_interface() -> None:
    networks = tuple(map(ip_interface, ("192.168.1.5/24", "192.168.2.5/24", "fd00::5/64", "fe80::1%2/64")))

    assert sockets([LOOPBACK, Interface(name="eth0", index=2, networks=networks)]) == ["127.0.0.1", "192.168.1.5", 2]


# What goes over the wire.


@pytest.mark.slow
async def test_two_find_each_other_and_see_each_other_go() -> None:
    service_type = fresh_type()
    one, two = Side(own(port=1001), service_type, LOOPBACK), Side(own(port=1002), service_type, LOOPBACK)
    async with running(one):
        await one.wait_state(State.ON)
        async with running(two):
            assert (await one.wait_found(two.own)).addrs == ("127.0.0.1:1002",)
            assert (await two.wait_found(one.own)).addrs == ("127.0.0.1:1001",)
        await one.wait_until(lambda: two.own.node in one.gone)

        report = one.discovery.report()
        assert (report.interfaces, report.echo, report.heard) == (("lo 127.0.0.1",), True, 1)
    assert one.found[0].mesh == MESH
    assert (one.found[0].protocol_min, one.found[0].protocol_max) == (1, 2)
    assert not any(found.node == one.own.node for found in one.found)


@pytest.mark.slow
async def test_another_mesh_and_a_copy_of_this_node_are_told_of() -> None:
    service_type = fresh_type()
    me = Side(own(port=1001, node=ME), service_type, LOOPBACK)
    copy = Side(own(port=1002, node=ME), service_type, LOOPBACK)
    foreign = Side(own(port=1003, mesh=MeshId(b"\xee" * 8)), service_type, LOOPBACK)
    async with running(me, copy, foreign):
        assert (await me.wait_found(foreign.own)).mesh == foreign.own.mesh
        assert (await me.wait_found(copy.own)).addrs == ("127.0.0.1:1002",)
        assert (await copy.wait_found(me.own)).addrs == ("127.0.0.1:1001",)


@pytest.mark.slow
async def test_a_node_that_moves_is_found_at_its_new_address_and_is_never_gone() -> None:
    service_type = fresh_type()
    one, two = Side(own(port=1001), service_type, LOOPBACK), Side(own(port=1002), service_type, LOOPBACK)
    async with running(one, two):
        await one.wait_found(two.own)
        second = replace(LOOPBACK, networks=(ip_interface("127.0.0.1/8"), ip_interface("127.0.0.2/8")))
        two.discovery.move(replace(two.own, hosts=("127.0.0.2",)), [second])
        await one.wait_until(lambda: any("127.0.0.2:1002" in found.addrs for found in one.found))

        assert one.gone == []
        assert one.discovery.report().state is State.ON


@pytest.mark.slow
async def test_a_strangers_nonsense_is_not_told() -> None:
    service_type = fresh_type()
    one = Side(own(), service_type, LOOPBACK)
    good = own(port=1002)
    async with running(one):
        await one.wait_state(State.ON)
        for name, txt in ((secrets.token_hex(16), {"id": "0" * 200}), ("printer", {}), (good.node.hex(), good.properties())):
            shout(service(good, service_type, name=name, txt=txt))
        await one.wait_found(good)

    assert {found.node for found in one.found} == {good.node}


async def test_without_an_interface_it_is_off_and_says_so_and_goes_on_when_one_comes() -> None:
    side = Side(own("192.168.1.5"), fresh_type())
    async with running(side):
        await side.wait_state(State.OFF)
        assert "no network interface" in side.discovery.report().reason

        side.discovery.move(own(node=side.own.node), [LOOPBACK])
        await side.wait_state(State.ON)


async def test_a_port_that_is_taken_or_an_address_that_has_gone_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Side(own("192.0.2.77"), fresh_type(), Interface(name="gone0", index=77, networks=(ip_interface("192.0.2.77/24"),)))
    async with running(gone):
        await gone.wait_state(State.OFF)
        assert gone.discovery.report().reason == "no interface takes part in multicast"

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr("meshnode.mesh.responder.AsyncZeroconf", refuse)
    taken = Side(own(), fresh_type(), LOOPBACK)
    async with running(taken):
        await taken.wait_state(State.OFF)
        assert taken.discovery.report().reason == "UDP port 5353 is taken by another program: Address already in use"


def test_one_that_was_stopped_before_it_ran_does_not_start() -> None:
    responder = Responder(own(), [LOOPBACK], service_type=TYPE, tell=lambda _node, _found: None, heard=set())
    on_air = Event()

    responder.stop(goodbye=True)

    assert responder.run(on_air.set) == ""
    assert not on_air.is_set()


@pytest.mark.slow
async def test_a_flood_of_forged_names_is_told_in_portions_and_a_host_with_a_hundred_addresses_not_at_all() -> None:
    service_type = fresh_type()
    one = Side(own(), service_type, LOOPBACK)
    forged = [own(port=1 + number) for number in range(200)]
    bloated = own(*(f"10.0.0.{number}" for number in range(100)))
    async with running(one):
        await one.wait_state(State.ON)
        start = trio.current_time()
        shout(*(service(announcement, service_type) for announcement in (bloated, *forged)))
        await one.wait_until(lambda: len(one.found) >= 128)

        assert len(one.found) <= 32 * (2 + (trio.current_time() - start) / 0.1)
        assert bloated.node not in {found.node for found in one.found}
