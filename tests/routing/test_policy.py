import random
from collections import Counter

import msgspec
import pytest

from meshnode.config import ROUTING
from meshnode.gossip.member import Member
from meshnode.inference import Priority
from meshnode.routing.ask import Ask
from meshnode.routing.breaker import Outcome
from meshnode.routing.knowledge import Knowledge, usable
from meshnode.routing.policy import POLICIES, Choice, Policy, estimated, least_connections, power_of_two, round_robin
from meshnode.routing.prefix import Sketch
from meshnode.routing.table import Candidate, route
from meshnode.testing import fake_member

ASK = Ask(prompt_tokens=1000, output_tokens=100)
NOW = 100.0


def candidates(*members: Member, me: int = 0) -> tuple[Candidate, ...]:
    return route("m", members, me=members[me].id).candidates


def node(name: str, *, age: float = 0.5, rtt_ms: float = 1.0, origin: str = "", **load: float | str) -> Member:
    """One that reads 1000 tokens in a second and decodes 100 steps, unless told otherwise, and is not this node."""
    plain = fake_member(name, "m")
    figures = {"prefill_per_s": 1000.0, "step_ms": 10.0, "stream_ms": 2.0, "remaining_ms": 0, **load}
    told = msgspec.structs.replace(plain.load[0], **figures)
    models = tuple(msgspec.structs.replace(model, origin=origin) for model in plain.models)
    return msgspec.structs.replace(plain, load=(told,), models=models, load_at=NOW - age, rtt_ms=rtt_ms)


def choose(
    *members: Member, policy: Policy = estimated, ask: Ask = ASK, known: Knowledge | None = None, me: Member | None = None
) -> Choice:
    everyone = (me or fake_member("me"), *members) if me not in members else members
    found = route("m", everyone, me=(me or everyone[0]).id).candidates
    known = known or Knowledge()
    return policy(usable(found, ask, known, now=NOW), ask, known, now=NOW, rng=random.Random(1))


def drawn(*members: Member, policy: Policy = estimated, ask: Ask = ASK, known: Knowledge | None = None) -> Counter[str]:
    found = route("m", (fake_member("me"), *members), me=fake_member("me").id).candidates
    known, rng = known or Knowledge(), random.Random(1)
    return Counter(policy(found, ask, known, now=NOW, rng=rng).candidate.node_name for _ in range(2000))


def test_the_setting_knows_every_policy() -> None:
    assert tuple(POLICIES) == ROUTING


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_takes_the_only_one_and_one_of_several(policy: Policy) -> None:
    assert choose(node("a"), policy=policy).candidate.node_name == "a"
    assert choose(node("a"), node("b"), node("c"), policy=policy).candidate.node_name in "abc"


def test_the_faster_of_two_idle_nodes_is_chosen_and_a_busy_fast_one_left() -> None:
    slow, fast = node("slow", prefill_per_s=200.0, step_ms=50.0), node("fast")
    busy = node("fast", active=4, queued=8, remaining_ms=60_000)

    assert choose(slow, fast).candidate.node_name == "fast"
    assert choose(slow, busy).candidate.node_name == "slow"
    assert choose(slow, fast).reason == "fastest"


def test_nearly_equal_nodes_share_the_work_by_chance() -> None:
    shares = drawn(node("a"), node("b", step_ms=10.5), node("c", step_ms=40.0))

    assert set(shares) == {"a", "b"}
    assert min(shares.values()) > 900


def test_the_older_the_news_the_more_are_as_good() -> None:
    def others(age: float) -> set[str]:
        return set(drawn(node("a", age=age), node("b", age=age, step_ms=12.0, prefill_per_s=900.0)))

    assert others(0.5) == {"a"}
    assert others(15.0) == {"a", "b"}


def test_of_two_as_good_the_one_that_we_ask_less_is_taken() -> None:
    members = node("a"), node("b")
    known = Knowledge()
    known.bookings.book((members[0].id, "m"), work_s=0.0, now=NOW - 10)

    assert drawn(*members, known=known) == {"b": 2000}


def test_what_we_sent_since_the_news_counts_as_if_it_were_in_the_news() -> None:
    members = node("a", slots=1), node("b", slots=1, step_ms=12.0)
    known = Knowledge()
    booking = known.bookings.book((members[0].id, "m"), work_s=20.0, now=NOW)
    sent = choose(*members, known=known).candidate.node_name
    known.bookings.release((members[0].id, "m"), booking)

    assert sent == "b"
    assert choose(*members, known=known).candidate.node_name == "a"


def test_ourselves_win_when_idle_and_as_good() -> None:
    me = node("me")
    chosen = choose(me, node("b"), node("c"), me=me)

    assert (chosen.candidate.node_name, chosen.reason) == ("me", "local")
    assert choose(node("me", step_ms=100.0), node("b"), me=node("me", step_ms=100.0)).candidate.node_name == "b"


def test_a_cached_prompt_is_worth_what_it_saves_and_no_more() -> None:
    chain = tuple(range(1, 17))
    ask = Ask(prompt_tokens=1024, output_tokens=10, chain=chain)
    cached, other = node("cached", step_ms=11.0), node("other")
    known = Knowledge()
    known.prefixes.tell((cached.id, "m"), Sketch.of([chain], random.Random(1).randbytes(16)), NOW)
    chosen = choose(cached, other, ask=ask, known=known)
    busy = node("cached", active=4, queued=4, remaining_ms=30_000)

    assert (chosen.candidate.node_name, chosen.reason) == ("cached", "prefix")
    assert chosen.estimate is not None
    assert chosen.estimate.cached == 1023
    assert choose(busy, other, ask=ask, known=known).candidate.node_name == "other"


def test_a_model_on_disk_waits_until_the_others_are_busier_than_its_loading_takes() -> None:
    cold = node("cold", state="available", load_ms=5000)

    assert choose(cold, node("warm", active=4, queued=1, remaining_ms=4000)).candidate.node_name == "warm"
    assert choose(cold, node("warm", active=4, queued=9, remaining_ms=60_000)).candidate.node_name == "cold"


def test_a_bridge_gets_what_the_mesh_would_take_much_longer_for() -> None:
    bridge = node("bridge", origin="cloud")

    assert choose(bridge, node("a", step_ms=15.0)).candidate.node_name == "a"
    assert choose(bridge, node("a", active=4, queued=9, remaining_ms=90_000)).candidate.node_name == "bridge"


def test_a_node_that_fails_fast_attracts_nothing() -> None:
    failing, other = node("failing"), node("other", step_ms=14.0)
    known = Knowledge()
    known.end((failing.id, "m"), Outcome.FAILED, NOW)
    penalised = choose(failing, other, known=known)
    for _ in range(2):
        known.end((failing.id, "m"), Outcome.FAILED, NOW)

    assert penalised.candidate.node_name == "other"
    assert usable(candidates(fake_member("me"), failing, other), ASK, known, now=NOW) == list(
        candidates(fake_member("me"), other)
    )


def test_where_everybody_is_barred_somebody_is_asked_all_the_same() -> None:
    lone = node("lone")
    known = Knowledge()
    for _ in range(3):
        known.end((lone.id, "m"), Outcome.FAILED, NOW)

    assert choose(lone, known=known).candidate.node_name == "lone"


def test_whoever_never_measured_is_taken_to_be_as_fast_as_the_fastest() -> None:
    fresh = node("fresh", prefill_per_s=0.0, step_ms=0.0, stream_ms=0.0)

    assert set(drawn(fresh, node("fast"), node("slow", step_ms=50.0))) == {"fresh", "fast"}


def test_a_slow_node_is_never_asked_for_curiosity_and_one_that_failed_seldom() -> None:
    fast, slow = node("fast"), node("slow", step_ms=50.0)
    known = Knowledge()
    known.end((slow.id, "m"), Outcome.FAILED, NOW)

    assert drawn(fast, slow) == {"fast": 2000}
    assert 5 <= drawn(fast, slow, known=known)["slow"] <= 40


def test_a_prompt_goes_where_it_fits() -> None:
    small = msgspec.structs.replace(node("small"), models=(msgspec.structs.replace(node("small").models[0], context_length=512),))

    assert choose(small, node("large", step_ms=50.0)).candidate.node_name == "large"
    assert choose(small).candidate.node_name == "small"  # which answers with the figures


def test_whoever_watches_is_served_by_the_first_token_too() -> None:
    reads_fast, writes_fast = node("reads", step_ms=20.0), node("writes", prefill_per_s=700.0)
    interactive = msgspec.structs.replace(ASK, output_tokens=50.0, priority=Priority.INTERACTIVE)
    batch = msgspec.structs.replace(interactive, priority=Priority.BATCH, output_tokens=200.0)

    assert choose(reads_fast, writes_fast, ask=batch).candidate.node_name == "writes"
    assert (
        choose(node("reads", step_ms=20.0), node("writes", prefill_per_s=500.0), ask=interactive).candidate.node_name == "reads"
    )


def test_round_robin_takes_turns() -> None:
    members = node("a"), node("b"), node("c")
    known = Knowledge()
    names = []
    for known.turn in range(6):
        names.append(choose(*members, policy=round_robin, known=known).candidate.node_name)

    assert names == ["a", "b", "c", "a", "b", "c"]


def test_least_connections_goes_by_slots_and_counts_nothing_twice() -> None:
    members = fake_member("a", "m", active=2, slots=2), fake_member("b", "m", active=3, slots=8)
    known = Knowledge()
    for _ in range(7):
        known.bookings.book((members[1].id, "m"), work_s=1.0, now=NOW)

    assert choose(*members, policy=least_connections).candidate.node_name == "b"
    assert choose(*members, policy=least_connections, known=known).candidate.node_name == "b"
    known.bookings.book((members[1].id, "m"), work_s=1.0, now=NOW)
    known.bookings.book((members[1].id, "m"), work_s=1.0, now=NOW)
    assert choose(*members, policy=least_connections, known=known).candidate.node_name == "a"


def test_power_of_two_never_takes_the_busiest_of_three() -> None:
    members = node("a", active=1), node("b"), node("c", active=3)

    assert set(drawn(*members, policy=power_of_two)) == {"a", "b"}


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"estimate"}))
def test_without_estimates_a_model_is_loaded_only_where_nobody_has_it_loaded(name: str) -> None:
    busy, cold = node("busy", active=4), node("cold", state="available")

    assert set(drawn(busy, cold, policy=POLICIES[name])) == {"busy"}
    assert set(drawn(cold, policy=POLICIES[name])) == {"cold"}
