"""The catalogue of scenarios (pure).

Bounds are the protocol's promises (`protocol/README.md`) and, for what it does not promise, guesses from the research note's
formulas.
"""

from meshnode.simulation.faults import Kill, Leave, Pause, Resume, Unplug
from meshnode.simulation.happenings import (
    asymmetric,
    bridge,
    changes,
    chaos,
    chaos_of_epochs,
    copied,
    flip_flop,
    forgotten,
    frozen_reader,
    half_leave,
    half_vanish,
    halves,
    join_at_once,
    joined_only,
    joining_late,
    lossy,
    mass_restart,
    moved,
    narrow,
    one,
    pair,
    power_in_loss,
    restart,
    rolling,
    slow,
    spike,
    stalls,
)
from meshnode.simulation.scenario import Bounds, Scenario, after_joining

HEALED = Bounds(settle=40.0, down=None)
CHAOS = Bounds(settle=40.0, transitions=None, urgent=None)
DISTURBED = Bounds(transitions=None, urgent=None)

CATALOGUE: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="idle",
            about="nothing happens but changing load",
            duration=60.0,
            plan=joined_only,
            load=True,
            bounds=Bounds(bytes_per_s=4096.0),
        ),
        Scenario(name="join-burst", about="all but one join by its address at once", duration=30.0, plan=join_at_once),
        Scenario(
            name="change-spread",
            about="records change, one every 2 s",
            duration=60.0,
            plan=after_joining(changes),
            bounds=Bounds(spread=0.1),
        ),
        Scenario(
            name="kill",
            about="kill -9 of one node; its host refuses",
            duration=40.0,
            plan=one((0.0, Kill)),
            bounds=Bounds(unroutable=0.1, down=1.5),
            least=2,
        ),
        Scenario(
            name="power-loss",
            about="one host falls silent",
            duration=45.0,
            plan=one((0.0, Unplug)),
            bounds=Bounds(unroutable=4.0, down=10.0),
            least=2,
        ),
        Scenario(
            name="power-loss-30",
            about="one host falls silent while 30 % of all packets are lost",
            duration=80.0,
            plan=power_in_loss(0.3),
            bounds=Bounds(unroutable=4.0, down=10.0, transitions=None, urgent=None, quiet=False),
            least=2,
        ),
        Scenario(
            name="half-vanishes",
            about="half of the hosts fall silent at once",
            duration=60.0,
            plan=after_joining(half_vanish),
            bounds=Bounds(unroutable=4.0, down=14.0, urgent=None),  # of four, one is left to agree: 15 s - 8.6 s * log 2 / log 3
            least=4,
        ),
        Scenario(
            name="pause-8",
            about="one process is stopped for 8 s",
            duration=50.0,
            plan=one((0.0, Pause), (8.0, Resume)),
            bounds=Bounds(unroutable=4.0, unwell_down=0, settle=2.0),
        ),
        Scenario(
            name="pause-12",
            about="one process is stopped for 12 s",
            duration=60.0,
            plan=one((0.0, Pause), (12.0, Resume)),
            bounds=Bounds(unroutable=4.0, settle=10.0),
        ),
        Scenario(
            name="leave",
            about="one node says goodbye",
            duration=40.0,
            plan=one((0.0, Leave)),
            bounds=Bounds(unroutable=0.1, down=0.5),
        ),
        Scenario(
            name="restart-at-once",
            about="killed, and started again 0.1 s later",
            duration=40.0,
            plan=restart(0.1),
            bounds=Bounds(unroutable=0.1, settle=2.0, unwell_down=0),
        ),
        Scenario(
            name="lost-epoch",
            about="killed, and back in 2 s with an epoch lower than before",
            duration=60.0,
            plan=restart(2.0, lost_epoch=True),
            bounds=Bounds(unroutable=0.1, settle=5.0),
        ),
        *(
            Scenario(
                name=f"partition-heal-{name}",
                about=f"two halves cannot hear each other for {name}",
                duration=70.0 + seconds,
                plan=halves(seconds),
                bounds=HEALED,
                least=4,
            )
            for name, seconds in (("5s", 5.0), ("60s", 60.0), ("10min", 600.0))
        ),
        Scenario(
            name="bridge-partition",
            about="two halves cannot hear each other, and one node hears both",
            duration=100.0,
            plan=after_joining(bridge),
            bounds=Bounds(urgent=None, equal=False),  # the two sides suspect each other again and again, and the bridge answers
            least=5,
        ),
        Scenario(
            name="one-way-pair",
            about="for a minute one node's packets do not reach one other",
            duration=110.0,
            plan=pair(both=False),
            bounds=HEALED,
        ),
        Scenario(
            name="two-way-pair",
            about="for a minute two nodes do not reach each other",
            duration=110.0,
            plan=pair(both=True),
            bounds=HEALED,
        ),
        Scenario(
            name="asymmetric-partition",
            about="a third of the nodes hears all, and reaches nobody else",
            duration=110.0,
            plan=after_joining(asymmetric),
            bounds=HEALED,
        ),
        Scenario(
            name="loss-10",
            about="10 % of all packets are lost for 10 minutes",
            duration=610.0,
            plan=lossy(0.1),
            bounds=Bounds(transitions=None, urgent=None, quiet=False),
        ),
        Scenario(
            name="loss-30",
            about="30 % of all packets are lost for 10 minutes",
            duration=610.0,
            plan=lossy(0.3),
            bounds=Bounds(transitions=None, urgent=None, quiet=False),
        ),
        Scenario(
            name="stall",
            about="a fifth of the nodes is stopped for 8.19 s, runs for 64 ms, and so on (Lifeguard)",
            duration=110.0,
            plan=after_joining(stalls),
            bounds=Bounds(transitions=None, settle=20.0),
            nodes=20,
            least=5,
        ),
        Scenario(
            name="slow-cpu", about="one node is 20 times too slow", duration=110.0, plan=after_joining(slow), bounds=DISTURBED
        ),
        Scenario(
            name="frozen-reader",
            about="one node writes and does not read for 30 s",
            duration=90.0,
            plan=after_joining(frozen_reader),
            load=True,
            bounds=DISTURBED,
        ),
        Scenario(name="narrow", about="one cable carries 100 kB/s", duration=40.0, plan=after_joining(narrow), load=True),
        Scenario(
            name="latency-spike",
            about="for 20 s packets take 0.5 to 2 s",
            duration=70.0,
            plan=after_joining(spike),
            bounds=DISTURBED,
        ),
        Scenario(
            name="clock-skew",
            about="clocks run up to 2 % wrong, and one host falls silent",
            duration=60.0,
            plan=one((0.0, Unplug)),
            bounds=Bounds(unroutable=4.1, down=10.2),
            skew=0.02,
        ),
        Scenario(
            name="flash-leave",
            about="half of the nodes say goodbye at once",
            duration=40.0,
            plan=after_joining(half_leave),
            bounds=Bounds(unroutable=0.1, down=1.0),
        ),
        Scenario(
            name="mass-restart",
            about="all are killed within half a second, and are back in 3 s",
            duration=60.0,
            plan=after_joining(mass_restart),
            bounds=Bounds(settle=10.0, transitions=None),
        ),
        Scenario(
            name="rolling-restart",
            about="one after the other leaves and starts again",
            duration=200.0,
            plan=after_joining(rolling),
            bounds=Bounds(settle=5.0, transitions=None),
        ),
        Scenario(
            name="flip-flop",
            about="one node is cut off for 20 s, and back for 20 s, three times (Rapid)",
            duration=170.0,
            plan=after_joining(flip_flop),
            bounds=HEALED,
        ),
        Scenario(
            name="address-change",
            about="one host gets another address",
            duration=50.0,
            plan=after_joining(moved),
            bounds=Bounds(settle=5.0),
        ),
        Scenario(
            name="join-late",
            about="one is killed, one joins at that moment and one much later",
            duration=90.0,
            plan=joining_late,
            bounds=Bounds(converge=None, unroutable=0.1, transitions=None),
            least=5,
        ),
        Scenario(
            name="forgotten",
            about="one leaves while the halves cannot hear each other, and is forgotten before they can",
            duration=3900.0,
            plan=after_joining(forgotten),
            bounds=HEALED,
            nodes=4,
            least=4,
        ),
        Scenario(
            name="copied-identity",
            about="another host starts on a copy of one node's data",
            duration=60.0,
            plan=after_joining(copied),
            bounds=Bounds(settle=20.0, transitions=None),
        ),
        Scenario(
            name="chaos",
            about="some of everything, chosen by the seed",
            duration=150.0,
            plan=after_joining(chaos),
            bounds=CHAOS,
        ),
        Scenario(
            name="chaos-lost-epochs",
            about="the same, and some nodes come back with an epoch lower than before",
            duration=150.0,
            plan=after_joining(chaos_of_epochs),
            bounds=CHAOS,
        ),
    )
}
