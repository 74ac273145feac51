"""What the engine wants its shell to do or to know, collected until it asks (pure)."""

from meshnode.gossip.effects import Close, Effect, Notify
from meshnode.gossip.link import Link
from meshnode.gossip.peer import Peer
from meshnode.gossip.roster import Roster
from meshnode.names import NodeId


class Notices:
    """Effects in the order in which they came up."""

    def __init__(self, peers: dict[NodeId, Peer], roster: Roster) -> None:
        self._peers = peers
        self._roster = roster
        self._effects: list[Effect] = []

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)

    def drain(self) -> list[Effect]:
        """What came up since the last call."""
        drained, self._effects = self._effects, []
        return drained

    def notify(self, what: str, node: NodeId, text: str) -> None:
        self.add(Notify(what=what, node=node, text=text))

    def close(self, link: Link, code: int, reason: str) -> None:
        """Once."""
        if not link.closing:
            link.begin_close()
            self.add(Close(link=link.id, code=code, reason=reason))

    def verdict(self, node: NodeId, now: float) -> None:
        """Make known whether `node` is routable, if that is not what was made known last."""
        peer = self._peers.get(node)
        if peer is None:
            return
        why_not = self._roster.why_not(node, peer, now)
        if peer.routable == (not why_not):
            return
        peer.routable = not why_not
        name = self._roster.name(node)
        self.notify(*(("unroutable", node, f"{name}: {why_not}") if why_not else ("routable", node, name)))
