"""The invariants bite: each is shown a belief that breaks it."""

import msgspec
import pytest

from meshnode.gossip.effects import Notify
from meshnode.gossip.member import State
from meshnode.simulation.faults import Kill, apply
from meshnode.simulation.process import Process
from meshnode.simulation.timeline import SECOND
from meshnode.simulation.watcher import Watcher
from meshnode.simulation.world import World


class Watched:
    """Four nodes, 20 s old, so that whoever is well has been so for long."""

    def __init__(self) -> None:
        self.world = World(1, 4)
        self.watcher = Watcher(self.world, transitions=2)
        for host in range(4):
            self.world.start(host, seeds=() if host == 0 else (0,))
            self.watcher.reach.changed()
        self.wait(20.0)

    def wait(self, seconds: float) -> None:
        self.world.timeline.run(self.world.timeline.now + round(seconds * SECOND))

    def process(self, host: int) -> Process:
        process = self.world.hosts[host].process
        assert process is not None
        return process

    def kill(self, host: int) -> None:
        apply(self.world, Kill(host=host))
        self.watcher.fault(Kill(host=host))


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_mesh_at_rest_breaks_nothing(watched: Watched) -> None:
    watched.watcher.finish(quiet=True, equal=True)

    assert watched.watcher.is_complete()
    assert watched.watcher.failures == []


def test_a_verdict_of_down_on_a_node_that_is_well_is_false(watched: Watched) -> None:
    victim = watched.process(2)
    watched.watcher.noticed(watched.process(0), Notify(what="down", node=victim.node, text="n02: says the test"))

    assert len(watched.watcher.false_down) == 1


def test_such_a_verdict_is_not_false_when_nothing_reaches_the_node(watched: Watched) -> None:
    watched.world.network.block([(host, 2) for host in (0, 1, 3)])
    watched.watcher.reach.changed()
    watched.watcher.noticed(watched.process(0), Notify(what="down", node=watched.process(2).node, text="n02: says the test"))

    assert watched.watcher.false_down == []


def test_while_one_node_reaches_it_it_is_in_reach_of_all(watched: Watched) -> None:
    watched.world.network.block([(host, 2) for host in (0, 3)])
    watched.watcher.reach.changed()

    assert watched.watcher.reach.together(0, 2)
    assert not watched.watcher.reach.linkable(0, 2)


def test_a_life_that_was_known_to_be_over_must_not_come_back(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.kill(2)
    watched.wait(15.0)
    observer = watched.process(0)
    members = observer.engine.members(now=observer.now)
    ghosts = tuple(msgspec.structs.replace(member, state=State.ALIVE) for member in members)
    watched.watcher._inspect(observer)
    fine = list(watched.watcher.failures)
    monkeypatch.setattr(observer.engine, "members", lambda *, now: ghosts)
    watched.watcher._inspect(observer)

    assert fine == []
    assert "again, a life that it knew to be over" in watched.watcher.failures[0]


def test_whoever_is_gone_must_not_be_alive_for_anyone_at_the_end(watched: Watched) -> None:
    watched.kill(2)
    watched.watcher.finish(quiet=True, equal=True)

    assert any("n02 as alive, which is gone" in failure for failure in watched.watcher.failures)


def test_a_verdict_that_changes_too_often_is_a_failure(watched: Watched) -> None:
    observer, node = watched.process(0), watched.process(1).node
    for _ in range(3):
        watched.watcher.noticed(observer, Notify(what="unroutable", node=node, text=""))
        watched.watcher.noticed(observer, Notify(what="routable", node=node, text=""))
    watched.watcher.finish(quiet=False, equal=False)

    assert "n00 changed its verdict on host 1" in watched.watcher.failures[0]
