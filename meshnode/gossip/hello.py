"""Who may be linked with: what a HELLO must say, and which of two processes with one identity gives it up (pure)."""

from meshnode.errors import PeerError
from meshnode.names import NodeId, short
from meshnode.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, Hello

WRONG_ID = 4403
WRONG_MESH = 4404
WRONG_VERSION = 4406
OWN_ID = 4409

Life = tuple[int, bytes]


def life(hello: Hello) -> Life:
    """Which process's HELLO it is: one identity has many lives, one after the other."""
    return hello.epoch, hello.instance


def check(hello: Hello, *, proven: NodeId, ours: Hello) -> None:
    """Raise PeerError unless the peer that proved to be `proven` in TLS is another node of our mesh that we can talk with."""
    if proven == ours.node:
        raise PeerError(_own(hello, ours), close_code=OWN_ID)
    if hello.node != proven:
        raise PeerError(f"says that it is {short(hello.node)} but proved to be {short(proven)}", close_code=WRONG_ID)
    if hello.mesh != ours.mesh:
        raise PeerError(f"belongs to mesh {short(hello.mesh)}, not to {short(ours.mesh)}", close_code=WRONG_MESH)
    if not is_compatible(hello):
        raise PeerError(f"{hello.name} (meshnode {hello.version}) {skew(hello)}", close_code=WRONG_VERSION)


def is_compatible(hello: Hello) -> bool:
    return hello.protocol_min <= PROTOCOL_MAX and hello.protocol_max >= PROTOCOL_MIN


def skew(hello: Hello) -> str:
    theirs, ours = f"{hello.protocol_min} to {hello.protocol_max}", f"{PROTOCOL_MIN} to {PROTOCOL_MAX}"
    return f"speaks protocol {theirs}, this node {ours}: no version in common"


def gives_way(ours: Hello, theirs: Hello) -> bool:
    """Whether we, of two processes with one key, take a new one: the later start does, or both ends would."""
    return ours.instance != theirs.instance and life(ours) > life(theirs)


def _own(hello: Hello, ours: Hello) -> str:
    if hello.instance == ours.instance:
        return "it is this node itself"
    return f"{hello.name} has the identity {short(ours.node)} of this node: one of the two runs on a copy of the other's data"
