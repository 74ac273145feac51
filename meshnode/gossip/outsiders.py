"""Members that we cannot talk with: they proved that they hold the token, and speak no version of the protocol that we do (pure).

They are shown, not hidden: a mesh that is half updated must not look like two halves that never meet.
"""

from collections import OrderedDict
from dataclasses import dataclass

from meshnode.gossip.hello import skew
from meshnode.gossip.member import Member, State
from meshnode.names import NodeId
from meshnode.wire.messages import Hello

SHOWN_S = 120.0
"""After the last contact. Both ends dial each other every half minute, so a node that is still there is seen before that."""
MAX_OUTSIDERS = 64


@dataclass(frozen=True, kw_only=True)
class _Outsider:
    hello: Hello
    addr: str
    at: float


class Outsiders:
    """The last HELLO of each."""

    def __init__(self) -> None:
        self._seen: OrderedDict[NodeId, _Outsider] = OrderedDict()

    def saw(self, hello: Hello, *, addr: str, now: float) -> None:
        """`hello` came on a connection with `addr`, whose other end has proved to be `hello.node`."""
        self._seen.pop(hello.node, None)
        self._seen[hello.node] = _Outsider(hello=hello, addr=addr, at=now)
        if len(self._seen) > MAX_OUTSIDERS:
            self._seen.popitem(last=False)

    def forget(self, node: NodeId) -> None:
        """It was updated, and is linked now."""
        self._seen.pop(node, None)

    def members(self, *, now: float) -> dict[NodeId, Member]:
        for node in [node for node, outsider in self._seen.items() if outsider.at + SHOWN_S <= now]:
            del self._seen[node]
        return {node: _member(outsider) for node, outsider in self._seen.items()}


def _member(outsider: _Outsider) -> Member:
    hello = outsider.hello
    return Member(
        id=hello.node,
        name=hello.name,
        state=State.ALIVE,
        routable=False,
        reason=skew(hello),
        last_seen=outsider.at,
        addr=hello.listen[0] if hello.listen else outsider.addr,
        addrs=hello.listen,
        version=hello.version,
        epoch=hello.epoch,
    )
