"""What the engine asks its shell to do, in the imperative (pure)."""

from typing import NewType

import msgspec

from meshnode.names import NodeId

LinkId = NewType("LinkId", int)


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """Open a link to `addr` (host:port); report the outcome with `Engine.dial_failed` or `Engine.link_up`."""

    addr: str
    expect: NodeId | None = None
    """Whom we expect there; None for an address that a person typed."""


class Close(msgspec.Struct, frozen=True, kw_only=True):
    """Close `link` with a WebSocket close code and a reason for people."""

    link: LinkId
    code: int
    reason: str


class Notify(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a log or the routing table wants to know: `what` is joined, changed, unroutable, routable or left."""

    what: str
    node: NodeId
    text: str


class Rekey(msgspec.Struct, frozen=True, kw_only=True):
    """Another process has our identity and was there first: take a new key and start anew, for `reason`."""

    reason: str


Effect = Dial | Close | Notify | Rekey
