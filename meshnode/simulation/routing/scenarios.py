"""The catalogue. Its bounds hold over the seeds of the tests together (pure)."""

from collections.abc import Mapping
from types import MappingProxyType

from meshnode.simulation.routing.mesh import Way
from meshnode.simulation.routing.scenario import Bounds, Scenario, Trouble
from meshnode.simulation.routing.server import Machine

FAST = Machine(read=4000, write=90, slots=4)
MIDDLE = Machine(read=2000, write=45, slots=4)
SLOW = Machine(read=800, write=20, slots=2)
UNEQUAL = (FAST, FAST, MIDDLE, MIDDLE, MIDDLE, SLOW, SLOW, SLOW)
"""A room of machines as people have them: two workstations, three desktops, three laptops."""
COLD = tuple(
    Machine(read=each.read, write=each.write, slots=each.slots, load_s=20.0 if place % 2 else 0.0)
    for place, each in enumerate(UNEQUAL)
)


def unequal(nodes: int) -> tuple[Machine, ...]:
    """Machines like those of `UNEQUAL`, of each kind by turns."""
    order = (FAST, SLOW, MIDDLE, MIDDLE, SLOW, FAST, MIDDLE, SLOW)
    return tuple(order[place % len(order)] for place in range(nodes))


_ALL = (
    Scenario(
        name="ages",
        doc="the conversation trace at 80 % of what eight unequal nodes can do, the older the news the worse",
        machines=UNEQUAL,
        bounds=Bounds(finish_mean=1.10, finish_p99=1.15, bounced=0.6),
    ),
    Scenario(
        name="chat",
        doc="conversations that grow, beside the same without the term of the prefix: the first token comes a fifth sooner",
        machines=UNEQUAL,
        workload="chat",
        load=0.6,
        ages=(1.0,),
        reference=Way(affinity=False),
        bounds=Bounds(first_mean=0.80),
    ),
    Scenario(
        name="code",
        doc="the code trace: short answers, long prompts, in bursts of a second or two",
        machines=UNEQUAL,
        workload="code",
        load=0.5,
        ages=(1.0, 15.0),
        bounds=Bounds(finish_mean=1.05, finish_p99=1.05),
    ),
    Scenario(
        name="errors",
        doc="every node's measured speeds are wrong by up to 30 %",
        machines=UNEQUAL,
        error=0.3,
        ages=(1.0,),
        bounds=Bounds(finish_mean=1.10, finish_p99=1.15),
    ),
    Scenario(
        name="slow-down",
        doc="the fastest node is at a fifth of its speed for 60 s",
        machines=UNEQUAL,
        load=0.6,
        troubles=(Trouble(node=0, at=0.5, for_s=60.0, pace=0.2),),
        ages=(1.0,),
        bounds=Bounds(finish_mean=1.10, finish_p99=1.25),
    ),
    Scenario(
        name="freeze",
        doc="a node stands still for 60 s, and is noticed after 3",
        machines=UNEQUAL,
        load=0.6,
        troubles=(Trouble(node=0, at=0.5, for_s=60.0, pace=0.0),),
        ages=(1.0,),
        calm_reference=True,
        bounds=Bounds(finish_mean=1.15, finish_p99=1.35),
    ),
    Scenario(
        name="crash",
        doc="two nodes crash one after the other and come back after 60 s: no request is lost",
        machines=UNEQUAL,
        load=0.6,
        troubles=(Trouble(node=0, at=0.4, for_s=60.0, pace=None), Trouble(node=3, at=0.6, for_s=60.0, pace=None)),
        ages=(1.0,),
        calm_reference=True,
        bounds=Bounds(finish_mean=1.15, finish_p99=1.35),
    ),
    Scenario(
        name="cold",
        doc="half of the nodes have the model on disk, and take 20 s to load it",
        machines=COLD,
        ages=(1.0,),
        bounds=Bounds(finish_mean=1.10, finish_p99=1.15),
    ),
    *(
        Scenario(
            name=f"nodes-{nodes}",
            doc=f"{nodes} unequal nodes",
            machines=unequal(nodes),
            ages=(1.0,),
            bounds=Bounds(finish_mean=1.10, finish_p99=1.25 if nodes < 64 else 1.45),
        )
        for nodes in (2, 4, 16, 64)
    ),
    Scenario(
        name="equal",
        doc="eight equal nodes: each gets its share",
        machines=(MIDDLE,) * 8,
        ages=(1.0, 15.0),
        bounds=Bounds(finish_mean=1.10, finish_p99=1.15, most=1.2),
    ),
)

CATALOGUE: Mapping[str, Scenario] = MappingProxyType({scenario.name: scenario for scenario in _ALL})
