"""Hosts and processes of the simulation: what faults do to nodes, as far as it is not the engine's doing."""

import os
import subprocess
import sys
from pathlib import Path

from meshnode.simulation.process import Process
from meshnode.simulation.processor import Clock
from meshnode.simulation.run import run
from meshnode.simulation.scenarios import CATALOGUE
from meshnode.simulation.timeline import SECOND
from meshnode.simulation.world import World

ROOT = Path(__file__).parent.parent.parent
NODES = 4


def mesh(nodes: int = NODES, seed: int = 1) -> World:
    """All linked with all, and 5 s old."""
    world = World(seed, nodes)
    for host in range(nodes):
        world.start(host, seeds=() if host == 0 else (0,))
    wait(world, 5.0)
    return world


def wait(world: World, seconds: float) -> None:
    world.timeline.run(world.timeline.now + round(seconds * SECOND))


def process(world: World, host: int) -> Process:
    found = world.hosts[host].process
    assert found is not None
    return found


def routable(world: World, host: int) -> set[str]:
    watching = process(world, host)
    return {member.name for member in watching.engine.members(now=watching.now) if member.routable}


def test_nodes_that_start_with_one_seed_are_all_linked() -> None:
    world = mesh()

    assert all(len(routable(world, host)) == NODES for host in range(NODES))
    assert all(len(process(world, host).links) == NODES - 1 for host in range(NODES))


def test_peers_of_a_killed_process_know_at_once_and_those_of_a_lost_host_do_not() -> None:
    world = mesh()
    world.kill(1)
    world.unplug(2)
    wait(world, 0.02)

    assert routable(world, 0) == {"n00", "n02", "n03"}

    wait(world, 4.0)

    assert routable(world, 0) == {"n00", "n03"}


def test_a_stopped_process_sends_nothing_and_catches_up_in_one_go() -> None:
    world = mesh()
    stopped = process(world, 1)
    stopped.processor.stop()
    wait(world, 0.01)
    sent = stopped.traffic.frames
    wait(world, 5.0)
    while_stopped = stopped.traffic.frames
    waiting = sum(socket.unread for socket in stopped.sockets)
    stopped.processor.resume()
    wait(world, 0.1)

    assert while_stopped == sent
    assert waiting >= 10
    assert sum(socket.unread for socket in stopped.sockets) == 0
    assert stopped.traffic.frames > sent
    assert all(len(routable(world, host)) == NODES for host in range(NODES))


def test_a_slow_process_lags_behind() -> None:
    world = mesh()
    slow = process(world, 1)
    slow.processor.work_us = SECOND
    wait(world, 10.0)

    assert sum(socket.unread for socket in slow.sockets) > 5


def test_a_clock_with_another_rate_and_offset_is_read_back_exactly() -> None:
    clock = Clock(offset=12_345.678, rate=1.02)

    for time in (12_345.678, 12_346.0, 20_000.123456):
        at = clock.when(time)

        assert clock.read(at) >= time > clock.read(at - 1) or at == 0


def test_a_restarted_process_has_a_higher_epoch_and_knows_whom_to_dial() -> None:
    world = mesh()
    before = process(world, 1).epoch
    world.kill(1)
    world.kill(0)
    world.start(1)
    wait(world, 3.0)

    assert process(world, 1).epoch > before
    assert routable(world, 1) == {"n01", "n02", "n03"}


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    one, same, other = (run(CATALOGUE["chaos"], nodes=5, seed=seed) for seed in (7, 7, 8))

    assert one == same
    assert one.trace != other.trace


def test_the_trace_does_not_depend_on_how_python_hashes() -> None:
    code = (
        "from meshnode.simulation.run import run; from meshnode.simulation.scenarios import CATALOGUE;"
        "print(run(CATALOGUE['chaos'], nodes=5, seed=3).trace)"
    )
    traces = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]

    assert traces[0] == traces[1] != ""
