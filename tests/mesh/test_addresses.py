"""What a node tells others of where it can be dialled."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_interface

import trio

from meshnode.address import Address
from meshnode.mesh.addresses import advertised, announced
from meshnode.mesh.interfaces import Interface
from meshnode.mesh.listen import local_address, open_mesh_listeners

LAN = Interface(name="eth0", index=2, networks=tuple(map(ip_interface, ("192.168.1.5/24", "fd00::5/64", "fe80::1%2/64"))))
VPN = Interface(name="wg0", index=3, networks=(ip_interface("10.9.0.2/24"),))
LOOPBACK = Interface(name="lo", index=1, networks=(ip_interface("127.0.0.1/8"), ip_interface("::1/128")))
MACHINE = (LOOPBACK, VPN, LAN)


@asynccontextmanager
async def listening(*specs: str) -> AsyncIterator[tuple[trio.SocketListener, ...]]:
    listeners = await open_mesh_listeners(specs)
    try:
        yield listeners
    finally:
        for listener in listeners:
            await listener.aclose()


async def test_what_the_operator_gave_is_told_as_it_is() -> None:
    async with listening("127.0.0.1:0") as listeners:
        assert advertised(listeners, (Address("box.example", 99),), MACHINE) == ("box.example:99",)


async def test_a_bound_address_is_told_with_the_port_that_was_taken() -> None:
    async with listening("127.0.0.1:0") as listeners:
        assert advertised(listeners, (), MACHINE) == (str(local_address(listeners[0])),)


async def test_a_wildcard_is_told_as_all_addresses_of_its_family() -> None:
    async with listening("0.0.0.0:0") as listeners:
        port = local_address(listeners[0]).port

        assert advertised(listeners, (), MACHINE) == (f"192.168.1.5:{port}", f"10.9.0.2:{port}")


async def test_both_families_are_told_in_the_order_in_which_they_are_good() -> None:
    async with listening("0.0.0.0:0", "[::]:0") as listeners:
        port = local_address(listeners[0]).port

        assert advertised(listeners, (), MACHINE) == (f"192.168.1.5:{port}", f"[fd00::5]:{port}", f"10.9.0.2:{port}")


async def test_loopback_is_told_only_where_nothing_else_is() -> None:
    async with listening("0.0.0.0:0") as listeners:
        port = local_address(listeners[0]).port

        assert advertised(listeners, (), (LOOPBACK,)) == (f"127.0.0.1:{port}",)
        assert advertised(listeners, (), ()) == (f"127.0.0.1:{port}",)


async def test_mdns_is_told_one_port_and_the_link_local_addresses_as_well() -> None:
    async with listening("0.0.0.0:0", "[::]:0") as listeners:
        port = local_address(listeners[0]).port

        assert announced(listeners, (), MACHINE) == (port, ("192.168.1.5", "fd00::5", "10.9.0.2", "fe80::1"))


async def test_mdns_is_told_what_the_operator_gave_as_far_as_it_is_an_address() -> None:
    async with listening("127.0.0.1:0") as listeners:
        given = (Address("box.example", 99), Address("203.0.113.9", 77), Address("203.0.113.10", 99))

        assert announced(listeners, given, MACHINE) == (77, ("203.0.113.9",))
        assert announced(listeners, given[:1], MACHINE) == (0, ())
