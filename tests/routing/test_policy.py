import random
from collections import Counter

import msgspec

from meshnode.gossip.member import Member
from meshnode.routing.policy import least_connections
from meshnode.routing.table import Candidate, route
from meshnode.testing import fake_member


def candidates(*members: Member, me: int = 0) -> tuple[Candidate, ...]:
    return route("m", members, me=members[me].id).candidates


def test_nobody_gives_nobody() -> None:
    assert least_connections((), {}, random.Random(1)) is None


def test_the_only_holder_is_chosen_however_busy() -> None:
    chosen = least_connections(candidates(fake_member("a", "m", active=9)), {}, random.Random(1))

    assert chosen is not None
    assert (chosen[0].node_name, chosen[1]) == ("a", "only-holder")


def test_ourselves_win_a_tie() -> None:
    chosen = least_connections(candidates(fake_member("a", "m"), fake_member("b", "m"), me=1), {}, random.Random(1))

    assert chosen is not None
    assert (chosen[0].node_name, chosen[1]) == ("b", "local")


def test_a_busier_self_gives_way_by_slots_and_not_by_count() -> None:
    members = fake_member("a", "m", active=2, slots=2), fake_member("b", "m", active=3, slots=8)
    chosen = least_connections(candidates(*members), {}, random.Random(1))

    assert chosen is not None
    assert (chosen[0].node_name, chosen[1]) == ("b", "least-busy")


def test_who_would_have_to_load_it_is_asked_only_where_nobody_has_it_loaded() -> None:
    busy, cold = fake_member("a", "m", active=4), fake_member("b", "m")
    cold = msgspec.structs.replace(cold, load=tuple(msgspec.structs.replace(load, state="available") for load in cold.load))
    both = candidates(busy, cold, me=1)
    chosen = least_connections(both, {}, random.Random(1))
    left = least_connections([each for each in both if not each.loaded], {}, random.Random(1))

    assert chosen is not None
    assert chosen[0].node_name == "a"
    assert left is not None
    assert left[0].node_name == "b"


def test_what_we_sent_since_the_last_gossip_counts_and_is_not_counted_twice() -> None:
    members = fake_member("a"), fake_member("b", "m"), fake_member("c", "m", active=1)
    sent = Counter({members[1].id: 2, members[2].id: 1})
    chosen = least_connections(candidates(*members), sent, random.Random(1))

    assert chosen is not None
    assert chosen[0].node_name == "c"


def test_equal_peers_share_the_work_by_chance() -> None:
    found = candidates(fake_member("a"), fake_member("b", "m"), fake_member("c", "m"))
    rng = random.Random(1)
    drawn = Counter(chosen[0].node_name for _ in range(200) if (chosen := least_connections(found, {}, rng)))

    assert set(drawn) == {"b", "c"}
    assert min(drawn.values()) > 60
