"""A burst of news must not hold up the loop."""

import os
from time import perf_counter

import trio
from mesh.harness import start_node, wait_until

from meshnode.identity import Token
from meshnode.names import NodeId
from meshnode.wire.codec import encode_value
from meshnode.wire.messages import Delta, Entry, RecordDelta


def news(count: int) -> Delta:
    """Of nodes that nobody can reach."""
    addr = Entry("addr", 1, encode_value(("192.0.2.1:9",)))
    return Delta(tuple(RecordDelta(NodeId(os.urandom(16)), 5, 0, 0, 1, (addr,)) for _ in range(count)))


async def test_a_member_that_tells_of_many_nodes_at_once_does_not_stop_the_node() -> None:
    token = Token.new()
    async with trio.open_nursery() as nursery:
        node = await start_node(nursery, "node", token)
        teller = await start_node(nursery, "teller", token, seeds=[node.addr])
        await node.wait_sees("teller")
        session = next(iter(node.mesh._sessions.values()))

        began = perf_counter()
        node.mesh.receive(session, news(200))

        assert perf_counter() - began < 0.5  # looking at all members for each took 2.5 s
        assert len(node.mesh.members()) == 202
        assert teller.sees("node")
        await wait_until(lambda: sum(change.what == "joined" for change in node.changes) >= 201)
        nursery.cancel_scope.cancel()
