"""Meshes under faults, simulated with the production engine.

    scripts/simulate list                        the scenarios, with what they ask for
    scripts/simulate SCENARIO|all                run, print a table, exit 1 if a bound or an invariant fails
    scripts/simulate kill --nodes 3,8,20,64 --seeds 1..20 --picture kill.svg

Every figure is the median and the greatest over the seeds, in seconds unless the heading says otherwise. A failing seed is
shrunk, and the command that replays it is printed. The same arguments give the same runs, on any machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
from simulate_picture import picture

from meshnode.simulation.run import Reduced, Result, run
from meshnode.simulation.scenario import Scenario
from meshnode.simulation.scenarios import CATALOGUE
from meshnode.simulation.shrink import fails_like, remaining, shrink

COLUMNS: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "converge": ("joined", lambda result: result.converge),
    "unroutable": ("unroutable", lambda result: result.unroutable),
    "down": ("down", lambda result: result.down),
    "spread": ("spread", lambda result: result.spread),
    "settle": ("settled", lambda result: result.settle),
    "false": ("false", lambda result: float(result.false_down)),
    "unwell": ("unwell", lambda result: float(result.unwell_down)),
    "detours": ("detours", lambda result: float(result.detours)),
    "refuted": ("refuted", lambda result: float(result.refuted)),
    "bytes": ("B/s", lambda result: result.socket_bytes_per_s),
    "quiet": ("quiet B/s", lambda result: result.quiet_bytes_per_s),
    "frames": ("frames/s", lambda result: result.frames_per_s),
}
SHOWN = 3
"""Failures of one run that are printed."""


class Timing(msgspec.Struct, frozen=True):
    result: Result
    wall: float


def _range(text: str) -> list[int]:
    first, _, last = text.partition("..")
    return list(range(int(first), int(last or first) + 1))


def _list(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", help="a name, several with commas, all, or list")
    parser.add_argument("--nodes", type=_list, help="sizes of the mesh, with commas (default: the scenario's)")
    parser.add_argument("--seeds", type=_range, default=[1], metavar="A..B", help="default: 1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once (default: one for each processor)")
    parser.add_argument("--json", action="store_true", help="one line for each run instead of the table")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="the figures over the number of nodes")
    parser.add_argument("--without", type=_list, default=[], metavar="HOSTS", help="hosts that never start (replay)")
    parser.add_argument("--skip", type=_list, default=[], metavar="FAULTS", help="faults to leave out, by their places (replay)")
    parser.add_argument("--story", action="store_true", help="print what happens in the run")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for a smaller run that fails as well")
    return parser.parse_args()


def _print_list() -> None:
    for scenario in CATALOGUE.values():
        bounds = {name: bound for name, bound in msgspec.structs.asdict(scenario.bounds).items() if bound is not None}
        print(f"{scenario.name:22} {scenario.about} ({scenario.duration:.0f} s)")
        print(f"{'':22} {', '.join(f'{name} {bound:g}' for name, bound in bounds.items() if name not in ('quiet', 'equal'))}")


def _scenarios(names: str) -> list[Scenario]:
    if names == "all":
        return list(CATALOGUE.values())
    unknown = [name for name in names.split(",") if name not in CATALOGUE]
    if unknown:
        sys.exit(f"no scenario {', '.join(unknown)}: scripts/simulate list")
    return [CATALOGUE[name] for name in names.split(",")]


def _timed(name: str, nodes: int, seed: int, reduced: Reduced) -> Timing:
    begun = time.perf_counter()
    return Timing(run(CATALOGUE[name], nodes=nodes, seed=seed, reduced=reduced), time.perf_counter() - begun)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _cell(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    middle, most = _number(statistics.median(found)), _number(max(found))
    return middle if middle == most else f"{middle} {most}"


def _print_row(scenario: Scenario, nodes: int, timings: Sequence[Timing]) -> None:
    cells = [_cell(value(timing.result) for timing in timings) for _, value in COLUMNS.values()]
    cells.append(_cell(timing.wall for timing in timings))
    failed = sum(bool(timing.result.failures) for timing in timings)
    verdict = f"{failed} of {len(timings)} FAIL" if failed else "ok"
    print(f"{scenario.name:20} {nodes:5} " + " ".join(f"{cell:>13}" for cell in cells) + f"  {verdict}", flush=True)


def _command(result: Result, reduced: Reduced) -> str:
    parts = ["scripts/simulate", result.scenario, f"--nodes {result.nodes}", f"--seeds {result.seed}"]
    if reduced.hosts:
        parts.append(f"--without {','.join(map(str, sorted(reduced.hosts)))}")
    if reduced.faults:
        parts.append(f"--skip {','.join(map(str, sorted(reduced.faults)))}")
    return " ".join(parts)


def _explain(scenario: Scenario, result: Result, *, given: Reduced, smaller: bool) -> None:
    print(f"\n{result.scenario} with {result.nodes} nodes and seed {result.seed} fails:")
    for failure in result.failures[:SHOWN]:
        print(f"  {failure}")
    print(f"  replay: {_command(result, given)}")
    if not smaller:
        return
    nodes, seed = result.nodes, result.seed
    reduced = shrink(scenario, nodes=nodes, seed=seed, fails=fails_like(scenario, result))
    print(f"  smaller: {_command(result, reduced)} --story")
    for timed in remaining(scenario, nodes=nodes, seed=seed, reduced=reduced):
        print(f"    {timed.at:8.3f} s  {timed.fault}")
    for failure in run(scenario, nodes=nodes, seed=seed, reduced=reduced).failures[:SHOWN]:
        print(f"    fails: {failure}")


def _tell(scenario: Scenario, nodes: int, seed: int, reduced: Reduced) -> None:
    def line(at: float, who: str, what: str) -> None:
        print(f"{at:10.4f} {who:4} {what}")

    run(scenario, nodes=nodes, seed=seed, reduced=reduced, tell=line)


def main() -> int:
    arguments = _arguments()
    if arguments.scenario == "list":
        _print_list()
        return 0
    given = Reduced(faults=frozenset(arguments.skip), hosts=frozenset(arguments.without))
    found: list[Timing] = []
    if not arguments.json:
        headings = [heading for heading, _ in COLUMNS.values()]
        print(f"{'scenario':20} {'nodes':>5} " + " ".join(f"{heading:>13}" for heading in [*headings, "wall s"]))
    with ProcessPoolExecutor(max_workers=arguments.jobs) as pool:
        for scenario in _scenarios(arguments.scenario):
            for nodes in arguments.nodes or [scenario.nodes]:
                size = max(nodes, scenario.least)
                runs = [pool.submit(_timed, scenario.name, size, seed, given) for seed in arguments.seeds]
                timings = [future.result() for future in runs]
                found += timings
                if arguments.json:
                    for timing in timings:
                        print(json.dumps({**msgspec.structs.asdict(timing.result), "wall": timing.wall}), flush=True)
                else:
                    _print_row(scenario, size, timings)
    if arguments.story:
        for timing in found:
            _tell(CATALOGUE[timing.result.scenario], timing.result.nodes, timing.result.seed, given)
    if arguments.picture:
        arguments.picture.write_text(picture([timing.result for timing in found], COLUMNS))
    failing = [timing.result for timing in reversed(found) if timing.result.failures]
    failed = {(result.scenario, result.nodes): result for result in failing}
    if not arguments.json:
        for (name, _), result in reversed(failed.items()):
            smaller = not arguments.no_shrink and not given.hosts and not given.faults
            _explain(CATALOGUE[name], result, given=given, smaller=smaller)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
