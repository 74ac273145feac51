"""The committed scenarios hold, with fixed seeds. `scripts/simulate all --seeds 1..100` is the same for whoever has the time."""

import pytest

from meshnode.simulation.run import run
from meshnode.simulation.scenarios import CATALOGUE

LONG = ("loss-10", "loss-30", "partition-heal-10min", "forgotten", "stall", "rolling-restart")
SHORT = sorted(CATALOGUE.keys() - set(LONG))


def hold(name: str, nodes: int, *seeds: int) -> None:
    scenario = CATALOGUE[name]
    for seed in seeds:
        result = run(scenario, nodes=max(nodes, scenario.least), seed=seed)

        assert result.failures == (), f"scripts/simulate {name} --nodes {result.nodes} --seeds {seed}"


@pytest.mark.parametrize("name", SHORT)
def test_a_scenario_holds_in_a_small_mesh(name: str) -> None:
    hold(name, 6, 1, 2)


@pytest.mark.parametrize("name", ["kill", "power-loss", "leave", "restart-at-once"])
@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_a_scenario_holds_in_the_smallest_meshes(name: str, nodes: int) -> None:
    hold(name, nodes, 1, 2)


@pytest.mark.parametrize("name", ["idle", "kill", "power-loss", "change-spread"])
def test_a_scenario_holds_in_a_mesh_of_twenty(name: str) -> None:
    hold(name, 20, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_long_scenario_holds(name: str) -> None:
    hold(name, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lost-epoch", "chaos-lost-epochs"])
def test_a_node_whose_epoch_fell_back_is_understood(name: str) -> None:
    hold(name, 8, *range(1, 9), 28, 38)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 31))
def test_chaos_ends_well(seed: int) -> None:
    hold("chaos", 6, seed)
