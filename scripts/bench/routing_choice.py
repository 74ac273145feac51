"""How long one choice among 64 candidates takes, and its parts, in microseconds: scripts/bench/routing_choice.py [CANDIDATES]

The least of several rounds, as is right for a bound that other work on the machine can only raise.
"""

import random
import sys
import time
from collections.abc import Callable

import msgspec

from meshnode.gossip.member import Member
from meshnode.routing.ask import Ask
from meshnode.routing.knowledge import Knowledge, usable
from meshnode.routing.policy import POLICIES, Policy
from meshnode.routing.prefix import Sketch
from meshnode.routing.table import Candidate, route
from meshnode.testing import fake_member
from meshnode.wire.messages import ModelState

ROUNDS, CHOICES = 200, 5


def member(number: int, rng: random.Random) -> Member:
    """A busy node, whose speeds are known."""
    plain = fake_member(f"node-{number:02}", "m")
    load = ModelState(
        "m", plain.models[0].digest, "ready", rng.randrange(5), 4, rng.randrange(3), rng.randrange(20_000), 8000, 40.0,
        rng.uniform(200, 4000), 10.0, rng.uniform(10, 60), 4.0, 2000,
    )  # fmt: skip
    return msgspec.structs.replace(plain, load=(load,), load_at=99.0 + rng.random(), rtt_ms=1.5)


def microseconds(action: Callable[[], object]) -> float:
    def round_s() -> float:
        start = time.perf_counter()
        for _ in range(CHOICES):
            action()
        return time.perf_counter() - start

    return min(round_s() for _ in range(ROUNDS)) / CHOICES * 1e6


def knowledge(candidates: tuple[Candidate, ...], chain: tuple[int, ...], rng: random.Random) -> Knowledge:
    """Four requests under way at each, and a cache at each that has a part of the chain."""
    known = Knowledge()
    for candidate in candidates:
        for _ in range(4):
            known.bookings.book(candidate.holder, work_s=2.0, now=98.0 + 2 * rng.random())
        known.prefixes.tell(candidate.holder, Sketch.of([chain[: rng.randrange(1, len(chain))]], rng.randbytes(16)), 99.0)
        known.prefixes.place(candidate.holder, chain[:3], 98.5)  # what is older than the sketch, as most is
    return known


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    rng = random.Random(1)
    members = [member(number, rng) for number in range(count)]
    candidates = route("m", members, me=members[0].id).candidates
    chain = tuple(rng.getrandbits(64) for _ in range(64))
    known, fresh = knowledge(candidates, chain, rng), Knowledge()
    cold, warm = Ask(prompt_tokens=800, output_tokens=200), Ask(prompt_tokens=4000, output_tokens=200, chain=chain)

    def choice(policy: Policy, ask: Ask, known: Knowledge) -> Callable[[], object]:
        return lambda: policy(usable(candidates, ask, known, now=100.0), ask, known, now=100.0, rng=rng)

    print(f"us for a choice among {count} candidates")
    for name, policy in POLICIES.items():
        print(f"{name:36} {microseconds(choice(policy, cold, fresh)):8.1f}")
    print(f"{'estimate, with bookings':36} {microseconds(choice(POLICIES['estimate'], cold, known)):8.1f}")
    print(f"{'estimate, with bookings and prefixes':36} {microseconds(choice(POLICIES['estimate'], warm, known)):8.1f}")
    print(f"{'candidates from the members':36} {microseconds(lambda: route('m', members, me=members[0].id)):8.1f}")


if __name__ == "__main__":
    main()
