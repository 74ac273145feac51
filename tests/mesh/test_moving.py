"""What a change of this machine's addresses does to the links that it has."""

from mesh.harness import mesh_of_two, wait_until


async def test_links_over_loopback_stay_and_so_does_everything_when_the_system_does_not_say() -> None:
    async with mesh_of_two() as (server, asker):
        server.mesh.move((server.addr,), (), ("192.168.1.9",))
        for session in server.mesh._sessions.values():
            session.local = "10.9.9.9"
        server.mesh.move((server.addr,), (), ())

        assert all(session.is_up for session in server.mesh._sessions.values())
        assert server.sees("asker")
        assert asker.sees("server")


async def test_a_link_over_an_address_that_is_gone_is_ended_at_once_and_made_again() -> None:
    async with mesh_of_two() as (server, asker):
        (session,) = server.mesh._sessions.values()
        session.local = "10.9.9.9"
        server.mesh.move((server.addr,), (), ("192.168.1.9",))
        assert session.reason == "this machine has no address 10.9.9.9 any more"

        await wait_until(lambda: server.sees("asker") and asker.sees("server"))
