"""Whom we let be linked with us, and what we note of those that we do not (pure)."""

from collections.abc import Callable

from meshnode.errors import PeerError
from meshnode.gossip import hello as greeting
from meshnode.gossip import limits, view
from meshnode.gossip.effects import Effect, Rekey
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.outsiders import Outsiders
from meshnode.gossip.overlay import MAX_NODES
from meshnode.gossip.peer import Peer
from meshnode.gossip.plan import MESH_FULL
from meshnode.names import NodeId
from meshnode.wire.messages import Hello

LEAVING, FULL = 4411, 4412


class Admission:
    """The judgement of a HELLO. `add` takes effects that follow from it."""

    def __init__(
        self, known: Knowledge, peers: dict[NodeId, Peer], outsiders: Outsiders, *, add: Callable[[Effect], None]
    ) -> None:
        self.leaving = False
        self._known = known
        self._peers = peers
        self._outsiders = outsiders
        self._add = add

    def judge(self, hello: Hello, *, ours: Hello, proven: NodeId, addr: str, now: float) -> None:
        """Raise PeerError unless the node at `addr`, which proved to be `proven`, may be linked."""
        try:
            greeting.check(hello, proven=proven, ours=ours)
        except PeerError as error:
            self._note(hello, error, ours=ours, addr=addr, now=now)
            raise
        if self.leaving:
            raise PeerError("this node is leaving the mesh", close_code=LEAVING)
        link = self._peers[proven].link if proven in self._peers else None
        if link and greeting.life(link.hello) != greeting.life(hello) and not link.is_silent(now):
            raise PeerError(f"another process with this identity is linked from {link.addr}", close_code=greeting.OWN_ID)
        linked = sum(bool(peer.links) for node, peer in self._peers.items() if node != proven)
        if linked >= MAX_NODES - 1:
            raise PeerError(MESH_FULL, close_code=FULL)

    def confirm(self, hello: Hello, now: float) -> None:
        """Raise PeerError if time or events since `judge` forbid a link."""
        peer = self._peers.get(hello.node, Peer())
        if self.leaving or self._known.has_left(hello.node, hello.epoch):
            raise PeerError("one of the two has left the mesh", close_code=LEAVING)
        if peer.refused_until > now:
            text = f"refused for {view.span(peer.refused_until - now)} more: {peer.refusal}"
            raise PeerError(text, close_code=limits.TOO_MUCH)

    def _note(self, hello: Hello, error: PeerError, *, ours: Hello, addr: str, now: float) -> None:
        if error.close_code == greeting.WRONG_VERSION:
            self._outsiders.saw(hello, addr=addr, now=now)
        elif error.close_code == greeting.OWN_ID and greeting.gives_way(ours, hello):
            self._add(Rekey(reason=f"{error.message} (the other is at {addr})"))
