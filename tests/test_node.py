"""What the node itself does between its parts."""

import random
from pathlib import Path

import pytest

from meshnode.errors import ModelUnavailable
from meshnode.gossip.engine import Engine
from meshnode.names import MeshId, ModelDigest, NodeId
from meshnode.node import Node
from meshnode.routing.table import Candidate
from meshnode.start import Running
from meshnode.worker.supervisor import Worker

ME = NodeId(b"a" * 16)
RUNNING = Running(name="a", node_id=ME.hex(), mesh_id="", api="", mesh=(), advertised=())


async def test_a_worker_that_the_gossip_still_calls_ready_is_unavailable_and_no_bug(tmp_path: Path) -> None:
    engine = Engine(
        node=ME,
        mesh=MeshId(b"m" * 8),
        name="a",
        version="0",
        epoch=1,
        listen=(),
        seeds=(),
        rng=random.Random(1),
        now=0.0,
    )
    node = Node(RUNNING, ME, engine, (Worker("m", tmp_path / "m.gguf", cache_dir=tmp_path),))
    candidate = Candidate(node=ME, node_name="a", model="m", digest=ModelDigest(b"d" * 32), load=None, rtt_ms=None, local=True)

    with pytest.raises(ModelUnavailable, match="just stopped") as caught, node._dispatcher.reserve(candidate):
        pass

    assert caught.value.retryable
