"""Requests and where they go, simulated with the production policies.

    scripts/simulate-routing list                      the scenarios
    scripts/simulate-routing SCENARIO|all              the production policy beside full information; exit 1 if a bound fails
    scripts/simulate-routing ages --policies all --picture ages.svg

Times are in seconds, over all seeds together. `x mean` and `x p99` are the times to the end in relation to the reference, which
is the first row. Other policies than `estimate` have no bounds. The same arguments give the same figures, on any machine.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
from simulate_picture import Point, drawing

from meshnode.simulation.routing.measure import Outcome
from meshnode.simulation.routing.mesh import Way
from meshnode.simulation.routing.rivals import EVERY, ORACLES
from meshnode.simulation.routing.scenario import Run, Scenario, judged, reference, run
from meshnode.simulation.routing.scenarios import CATALOGUE

FIGURES: dict[str, Callable[[Outcome, Outcome], float]] = {
    "first mean": lambda outcome, _: outcome.first_mean,
    "first p99": lambda outcome, _: outcome.first_p99,
    "end mean": lambda outcome, _: outcome.finish_mean,
    "end p99": lambda outcome, _: outcome.finish_p99,
    "x mean": lambda outcome, reference: outcome.finish_mean / reference.finish_mean,
    "x p99": lambda outcome, reference: outcome.finish_p99 / reference.finish_p99,
    "cached": lambda outcome, _: outcome.hit,
    "true/est.": lambda outcome, _: outcome.error,
    "bounces": lambda outcome, _: outcome.bounced,
    "moved": lambda outcome, _: float(outcome.failed_over),
    "most used": lambda outcome, _: outcome.most,
}
DRAWN = ("first mean", "first p99", "end mean", "end p99", "x mean", "x p99")
HOPELESS = 100.0
"""Seconds of mean time to the end beyond which a policy is left out of the picture: it cannot carry the load at all."""


def _range(text: str) -> list[int]:
    first, _, last = text.partition("..")
    return list(range(int(first), int(last or first) + 1))


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", help=f"list, all, or one of: {', '.join(CATALOGUE)}")
    parser.add_argument("--seeds", type=_range, default=[1, 2], metavar="N|A..B", help="default: 1..2")
    parser.add_argument("--gossip", type=_floats, metavar="S,S", help="seconds between two tellings of the news")
    parser.add_argument("--policies", default="estimate", metavar="NAME,NAME|all", help=f"of: {', '.join([*EVERY, *ORACLES])}")
    parser.add_argument("--load", type=float, metavar="SHARE", help="of what the nodes can do")
    parser.add_argument("--requests", type=int, metavar="N", help="of each seed")
    parser.add_argument("--no-bounces", action="store_true", help="nodes give no request back")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="processes")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write an SVG of the figures over the age of the news")
    parser.add_argument("--json", action="store_true", help="a line for each run")
    arguments = parser.parse_args()
    if arguments.scenario not in {"list", "all", *CATALOGUE}:
        parser.error(f"there is no scenario {arguments.scenario!r}; see: scripts/simulate-routing list")
    names = [*EVERY, *ORACLES] if arguments.policies == "all" else arguments.policies.split(",")
    if unknown := set(names) - {*EVERY, *ORACLES}:
        parser.error(f"there is no policy {unknown.pop()!r}")
    arguments.policies = names
    return arguments


def _scenarios(arguments: argparse.Namespace) -> Iterator[Scenario]:
    for scenario in CATALOGUE.values() if arguments.scenario == "all" else [CATALOGUE[arguments.scenario]]:
        changes = {"load": arguments.load, "requests": arguments.requests}
        yield msgspec.structs.replace(scenario, **{name: value for name, value in changes.items() if value is not None})


def _ways(scenario: Scenario, arguments: argparse.Namespace) -> list[Way]:
    ages = arguments.gossip or scenario.ages
    return [
        Way(policy=policy, gossip_s=age, bouncing=not arguments.no_bounces)
        for policy in arguments.policies
        for age in ([1.0] if policy in ORACLES else ages)  # who sees everything needs no news
    ]


def _label(way: Way) -> str:
    return way.policy + ("" if way.affinity else ", no prefix") + ("" if way.bouncing else ", no bounces")


def _print_row(row: Run, against: Outcome) -> None:
    cells = " ".join(f"{figure(row.outcome, against):>10.3f}" for figure in FIGURES.values())
    age = "-" if row.way.policy in ORACLES else f"{row.way.gossip_s:g}"
    print(f"{row.scenario:10} {_label(row.way):28} {age:>6} {cells}  {'FAIL' if row.failures else 'ok'}", flush=True)
    for failure in row.failures:
        print(f"    {failure}")


def _picture(rows: list[tuple[Run, Outcome]]) -> str:
    shown = [(row, against) for row, against in rows if row.outcome.finish_mean < HOPELESS]
    points = {
        name: [
            Point(f"{row.scenario}: {_label(row.way)}", row.way.gossip_s, FIGURES[name](row.outcome, against))
            for row, against in shown
        ]
        for name in DRAWN
    }
    return drawing(points, axis="seconds between two tellings")


def main() -> int:
    arguments = _arguments()
    if arguments.scenario == "list":
        for scenario in CATALOGUE.values():
            print(f"{scenario.name:10} {scenario.doc}")
        return 0
    rows: list[tuple[Run, Outcome]] = []
    if not arguments.json:
        print(f"{'scenario':10} {'policy':28} {'gossip':>6} " + " ".join(f"{name:>10}" for name in FIGURES))
    with ProcessPoolExecutor(max_workers=arguments.jobs) as pool:
        for scenario in _scenarios(arguments):
            ways = _ways(scenario, arguments)
            first = pool.submit(reference, scenario, seeds=arguments.seeds)
            pending = [pool.submit(run, scenario, way, seeds=arguments.seeds) for way in ways]
            against = first.result()
            outcomes = [against, *(future.result() for future in pending)]
            for row in judged(scenario, [scenario.reference, *ways], outcomes):
                rows.append((row, against))
                if arguments.json:
                    print(json.dumps(msgspec.to_builtins(row)), flush=True)
                else:
                    _print_row(row, against)
    if arguments.picture:
        arguments.picture.write_text(_picture(rows))
    return 1 if any(row.failures for row, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
