"""Our worker, behind a node's API, against llama-server on the same machine, models and settings.

    .venv/bin/python scripts/bench/engine.py                 everything, five rounds: about an hour on two cores
    .venv/bin/python scripts/bench/engine.py rate-1 gap      these alone; --list names them
    .venv/bin/python scripts/bench/engine.py --rounds 9 rate-8

llama-server is built once, from the source of llama-cpp-python, into the user's cache; so is a model of 200 M random weights. The
servers are asked in turns by one client, greedy and with an ignored end; a figure is the median of the rounds, and the ratio that
of the medians. Where the rounds spread by more than 5 %, processor time for each token is the better figure: it stands beside.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

from bench_model import DEMO, WORDS, bench_model
from llama_server import python_with_server
from servers import Running, busy_core, llama, llama_cpp_python, meshnode
from streams import Answer, gather

THREADS = 2
SHORT, LONG, JOINING = 20, 700, 1500
"""Words of a prompt; each is one token of the large model."""


@dataclass(frozen=True)
class Figure:
    """One round of one server."""

    value: float
    cpu_ms: float = 0.0
    """Of processor time for each token; 0 where no tokens were counted."""


Round = Callable[[Running, Random], Figure]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured. `must` bounds the ratio ours / theirs, from below where more is better."""

    about: str
    round: Round
    must: float
    more: bool = True
    slots: int = 4
    unified: bool = True
    demo: bool = False
    foreign: bool = False
    python: bool = False


def rate(streams: int, tokens: int) -> Round:
    """Tokens a second of all streams together, from the first request to the end of the last answer."""

    def measure(running: Running, rng: Random) -> Figure:
        cpu, begun = running.cpu_s(), time.perf_counter()
        answers = gather([running.server.ask(prompt(rng, SHORT), tokens) for _ in range(streams)])
        count = sum(answer.tokens for answer in answers)
        return Figure(count / (max(answer.ended for answer in answers) - begun), (running.cpu_s() - cpu) * 1000 / count)

    return measure


def cold(running: Running, rng: Random) -> Figure:
    """Milliseconds to the first text of a prompt that nothing is known of."""
    (answer,) = gather([running.server.ask(prompt(rng, LONG), 8)])
    return Figure(answer.first_s * 1000)


def hit(running: Running, rng: Random) -> Figure:
    """The same, where all but the end of the prompt was asked before."""
    text = prompt(rng, LONG * 2)
    gather([running.server.ask(text, 8)])
    (answer,) = gather([running.server.ask(f"{text} {prompt(rng, 4)}", 8)])
    return Figure(answer.first_s * 1000)


def gap(running: Running, rng: Random) -> Figure:
    """Milliseconds of the longest silence of four running answers while a long prompt joins them."""
    four = [running.server.ask(prompt(rng, SHORT), 160) for _ in range(4)]
    time.sleep(1.5)
    joining = running.server.ask(prompt(rng, JOINING), 8)
    gather([*four, joining])
    return Figure(max(longest(answer, joining) for answer in four) * 1000)


def longest(answer: Answer, joining: Answer) -> float:
    times = [at for at in answer.at if joining.asked - 0.5 <= at <= joining.at[0] + 0.5]
    return max(later - earlier for earlier, later in pairwise(times))


def prompt(rng: Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


CASES: dict[str, Case] = {
    "rate-1": Case(about="tokens/s, 1 stream", round=rate(1, 128), must=0.93),
    "rate-1-split": Case(about="tokens/s, 1 stream, split KV", round=rate(1, 128), must=0.93, unified=False),
    "rate-4": Case(about="tokens/s, 4 streams", round=rate(4, 64), must=0.95),
    "rate-4-split": Case(about="tokens/s, 4 streams, split KV", round=rate(4, 64), must=0.95, unified=False),
    "rate-8": Case(about="tokens/s, 8 streams", round=rate(8, 64), must=0.95, slots=8),
    "rate-8-split": Case(about="tokens/s, 8 streams, split KV", round=rate(8, 64), must=0.95, slots=8, unified=False),
    "rate-16": Case(about="tokens/s, 16 streams", round=rate(16, 64), must=0.95, slots=16),
    "rate-16-split": Case(about="tokens/s, 16 streams, split KV", round=rate(16, 64), must=0.95, slots=16, unified=False),
    "demo-1": Case(about="tokens/s, demo model, 1 stream", round=rate(1, 400), must=1.0, demo=True),
    "demo-4": Case(about="tokens/s, demo model, 4 streams", round=rate(4, 200), must=1.0, demo=True),
    "demo-16": Case(about="tokens/s, demo model, 16 streams", round=rate(16, 200), must=1.0, demo=True, slots=16),
    "first-cold": Case(about="first token, cold, ms", round=cold, must=1.05, more=False),
    "first-hit": Case(about="first token, prefix hit, ms", round=hit, must=1.0, more=False),
    "gap": Case(about="longest gap of 4 when 1500 tokens join, ms", round=gap, must=0.6, more=False, slots=5),
    "foreign-1": Case(about="tokens/s, 1 stream, one foreign busy core", round=rate(1, 96), must=1.2, foreign=True),
    "foreign-8": Case(about="tokens/s, 8 streams, one foreign busy core", round=rate(8, 48), must=1.2, foreign=True, slots=8),
    "python-8": Case(about="tokens/s, 8 streams, against llama_cpp.server", round=rate(8, 48), must=2.5, slots=8, python=True),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    name: str
    about: str
    ours: float
    theirs: float
    ratio: float
    must: float
    kept: bool
    spread: float
    """Of the rounds of both, as a share of the median; the larger."""
    cpu_ratio: float
    """Of processor time for each token, ours / theirs; 0 where none was counted."""


def run(name: str, case: Case, rounds: int, folder: Path) -> Result:
    model = DEMO if case.demo else bench_model()
    threads = 1 if case.demo else THREADS
    with ExitStack() as stack:
        ours = stack.enter_context(meshnode(model, folder / name, slots=case.slots, unified=case.unified))
        theirs = (
            stack.enter_context(llama_cpp_python(model, python_with_server(), threads=threads))
            if case.python
            else stack.enter_context(llama(model, slots=case.slots, unified=case.unified, threads=threads))
        )
        for running in (ours, theirs):
            case.round(running, Random(0))
        if case.foreign:
            stack.enter_context(busy_core())
        figures: list[tuple[Figure, Figure]] = []
        for number in range(rounds):
            figures.append((case.round(ours, Random(number + 1)), case.round(theirs, Random(number + 1))))
            print(f"{name} round {number + 1}: {figures[-1][0].value:.1f} / {figures[-1][1].value:.1f}", file=sys.stderr)
    return judged(name, case, [pair[0] for pair in figures], [pair[1] for pair in figures])


def judged(name: str, case: Case, ours: list[Figure], theirs: list[Figure]) -> Result:
    mine, other = (statistics.median(figure.value for figure in figures) for figures in (ours, theirs))
    my_cpu, other_cpu = (statistics.median(figure.cpu_ms for figure in figures) for figures in (ours, theirs))
    ratio = mine / other
    return Result(
        name=name,
        about=case.about,
        ours=mine,
        theirs=other,
        ratio=ratio,
        must=case.must,
        kept=ratio >= case.must if case.more else ratio <= case.must,
        spread=max(
            (max(f.value for f in found) - min(f.value for f in found)) / m for found, m in ((ours, mine), (theirs, other))
        ),
        cpu_ratio=my_cpu / other_cpu if other_cpu else 0.0,
    )


def lateness(folder: Path) -> float:
    """The 99th percentile of how late the node's event loop is while 8 streams decode, in ms."""
    file = folder / "lateness.txt"
    with meshnode(bench_model(), folder / "lateness", slots=8, unified=True, watch=file) as running:
        before = len(file.read_text().splitlines())
        rate(8, 128)(running, Random(1))
        late = sorted(map(float, file.read_text().splitlines()[before:-1]))
    return late[int(len(late) * 0.99)] * 1000


def equal(folder: Path) -> list[str]:
    """On which models the greedy answers of one stream differ from llama-server's (split KV, the same size of batch)."""
    different = []
    for name, model, threads in (("demo", DEMO, 1), ("large", bench_model(), THREADS)):
        with (
            meshnode(model, folder / f"equal-{name}", slots=1, unified=False) as ours,
            llama(model, slots=1, unified=False, threads=threads) as theirs,
        ):
            for number in range(5):
                text = prompt(Random(number), 50)
                mine, other = (gather([running.server.ask(text, 200)])[0].text() for running in (ours, theirs))
                if mine != other:
                    same = next(
                        (i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), min(len(mine), len(other))
                    )
                    different.append(f"{name}, prompt {number}: alike for {same} of {len(other)} characters")
    return different


def show(results: list[Result]) -> None:
    print(f"{'':44} {'ours':>9} {'theirs':>9} {'ratio':>6} {'must':>5} {'spread':>7} {'CPU/token':>9}")
    for result in results:
        cpu = f"{result.cpu_ratio:9.2f}" if result.cpu_ratio else " " * 9
        verdict = "" if result.kept else "  MISSED"
        print(
            f"{result.about:44} {result.ours:9.1f} {result.theirs:9.1f} {result.ratio:6.2f} {result.must:5.2f} "
            f"{result.spread:6.0%} {cpu}{verdict}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure (default: everything)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    every = [*CASES, "lateness", "equal"]
    if arguments.list:
        print("\n".join([*(f"{name:14} {case.about}" for name, case in CASES.items()), "lateness", "equal"]))
        return 0
    if unknown := set(arguments.cases).difference(every):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; --list names them")
    chosen = arguments.cases or every
    with tempfile.TemporaryDirectory(prefix="meshnode-bench-") as directory:
        folder = Path(directory)
        results = [run(name, CASES[name], arguments.rounds, folder) for name in chosen if name in CASES]
        late = lateness(folder) if "lateness" in chosen else None
        different = equal(folder) if "equal" in chosen else None
    if arguments.json:
        facts = {"results": [vars(result) for result in results], "lateness_ms": late, "different": different}
        print(json.dumps(facts))
        return 0
    show(results)
    if late is not None:
        print(f"event loop, 99th percentile of lateness while 8 streams decode: {late:.1f} ms (at most 5)")
    if different is not None:
        print("\n".join(different) or "greedy answers are llama-server's, character by character, on both models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
