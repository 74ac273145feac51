"""What the engine keeps of one peer besides its record: links, load, and how the last link ended (pure)."""

from dataclasses import dataclass, field

from meshnode.gossip.hello import life
from meshnode.gossip.link import Link
from meshnode.names import ModelDigest, NodeId
from meshnode.wire.messages import Hello, ModelState, Sketch

MAX_SKETCHES = 64
"""Of one peer: of as many models as its heartbeat tells of."""
Told = tuple[Sketch, float]


@dataclass
class Peer:
    """One peer. `routable` is the verdict that was last made known."""

    links: list[Link] = field(default_factory=list)
    hello: Hello | None = None
    last_seen: float | None = None
    lost_at: float | None = None
    lost_reason: str = ""
    refused_until: float = 0.0
    refusal: str = ""
    load: tuple[ModelState, ...] = ()
    load_at: float = 0.0
    sketches: dict[tuple[ModelDigest, str], Told] = field(default_factory=dict)
    """What it has cached of each model, and when it said so."""
    routable: bool = False

    def hear(self, sketch: Sketch, now: float) -> bool:
        """It has that cached. Whether this is news."""
        model = (sketch.digest, sketch.name)
        known = self.sketches.get(model)
        if (known and known[0] == sketch) or (known is None and (not sketch.marks or len(self.sketches) >= MAX_SKETCHES)):
            return False
        self.sketches[model] = sketch, now
        return True

    @property
    def link(self) -> Link | None:
        """The one to use: `surplus` has closed the others, or is about to."""
        for link in self.links:
            if not link.closing:
                return link
        return None


def surplus(links: list[Link], *, me: NodeId, peer: NodeId, now: float) -> list[tuple[Link, str]]:
    """Which of several links to one peer to close, and why; `links` in the order in which they came up.

    Both ends must come to the same answer, whatever order they saw, or a pair could close both links. A link of another life
    than the newest link's is left over from an earlier one (`Engine.judge` has seen to it that it is silent). A silent one of the
    same life was mostly given up by the peer, which has another address now and could not tell us. Of two that were dialled from
    both ends, the one dialled by the lower id stays. Of two dialled from the same end only the end with the lower id closes one:
    only one end decides, so one stays.
    """
    live = [link for link in links if not link.closing]
    newest = life(live[-1].hello)
    stale = [(link, "superseded by the peer's new start") for link in live if life(link.hello) != newest]
    lost = [(link, "silent when another came up") for link in live if life(link.hello) == newest and link.is_silent(now)]
    current = [link for link in live if life(link.hello) == newest and not link.is_silent(now)]
    by_lower = [link for link in current if link.dialled == (me < peer)]
    by_higher = [link for link in current if link.dialled != (me < peer)]
    doubled = by_higher if by_lower else []
    same_end = (by_lower or by_higher)[1:] if me < peer else []
    return stale + lost + [(link, "duplicate link") for link in doubled + same_end]
