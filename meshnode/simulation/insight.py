"""The one place that looks behind the engine's face: what only somebody who sees every node at once can check (pure).

Everything else in the simulation uses what a shell can use. If the engine's insides change, this file has to follow.
"""

from collections.abc import Iterator

from meshnode.gossip.record import Record
from meshnode.names import NodeId
from meshnode.simulation.process import Process


def record(process: Process, node: NodeId) -> Record | None:
    return process.engine._known.record(node)


def records(process: Process) -> Iterator[Record]:
    return process.engine._known.records()


def state_hash(process: Process) -> bytes:
    """As its heartbeats carry it."""
    return process.engine._known.hashes.state


def claims_too_much(process: Process, other: Process) -> str:
    """What `process` takes `other` to have, by their link, that it has not. They must have nothing under way to each other.

    What was told of a third node that the other hears itself is kept aside by it (D8), and counts as had.
    """
    for link in process.engine._links.values():
        if link.peer != other.node or link.closing:
            continue
        for origin, stamp in link._has.items():
            belief = other.engine._known.beliefs.get(origin)
            if belief is None or origin == other.node:
                continue
            held = max(belief.record.stamp, belief.heard.stamp if belief.heard else belief.record.stamp)
            if stamp > held and not stamp.down and not stamp.left:
                return f"{process.name} takes {other.name} to have {stamp} of {origin.hex()[:8]}, and it has {held}"
    return ""
