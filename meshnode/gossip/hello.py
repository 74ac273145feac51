"""Who may be linked with: what a HELLO must say (pure)."""

from meshnode.errors import PeerError
from meshnode.names import MeshId, NodeId, short
from meshnode.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, Hello

WRONG_ID = 4403
WRONG_MESH = 4404
WRONG_VERSION = 4406
OWN_ID = 4409


def check(hello: Hello, *, proven: NodeId, me: NodeId, mesh: MeshId) -> None:
    """Raise PeerError unless the peer that proved to be `proven` in TLS is another node of our mesh that we can talk with."""
    if proven == me:
        text = f"it has this node's own identity {short(me)}: it is this node, or one that runs on a copy of its data directory"
        raise PeerError(text, close_code=OWN_ID)
    if hello.node != proven:
        raise PeerError(f"says that it is {short(hello.node)} but proved to be {short(proven)}", close_code=WRONG_ID)
    if hello.mesh != mesh:
        raise PeerError(f"belongs to mesh {short(hello.mesh)}, not to {short(mesh)}", close_code=WRONG_MESH)
    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        theirs, ours = f"{hello.protocol_min} to {hello.protocol_max}", f"{PROTOCOL_MIN} to {PROTOCOL_MAX}"
        text = f"{hello.name} (meshnode {hello.version}) speaks protocol {theirs}, this node {ours}: no version in common"
        raise PeerError(text, close_code=WRONG_VERSION)
