"""What a node tells others of where it can be dialled."""

from ipaddress import ip_address

from meshnode.address import Address, parse
from meshnode.mesh.addresses import advertised
from meshnode.mesh.listen import local_address, open_mesh_listeners


async def test_what_the_operator_gave_is_told_as_it_is() -> None:
    listeners = await open_mesh_listeners(["127.0.0.1:0"])
    async with listeners[0]:
        assert advertised(listeners, (Address("box.example", 99),)) == ("box.example:99",)


async def test_a_bound_address_is_told_with_the_port_that_was_taken() -> None:
    listeners = await open_mesh_listeners(["127.0.0.1:0"])
    async with listeners[0]:
        assert advertised(listeners, ()) == (str(local_address(listeners[0])),)


async def test_a_wildcard_is_told_as_an_address_that_can_be_dialled() -> None:
    listeners = await open_mesh_listeners(["0.0.0.0:0"])
    async with listeners[0]:
        (told,) = advertised(listeners, ())

        assert not ip_address(parse(told, flag="told").host).is_unspecified
        assert parse(told, flag="told").port == local_address(listeners[0]).port
