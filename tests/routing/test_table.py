import msgspec
import pytest

from meshnode.errors import ModelNotFound, ModelUnavailable
from meshnode.gossip.member import Bridged, Member, Model, State
from meshnode.names import ModelDigest, short
from meshnode.routing.scope import Scope, narrower
from meshnode.routing.table import Route, listings, route
from meshnode.testing import fake_member


def resolve(wanted: str, *members: Member, only_local: bool = False) -> Route:
    return route(wanted, members, me=members[0].id, only_local=only_local)


def nodes(found: Route) -> list[str]:
    return [candidate.node_name for candidate in found.candidates]


def test_every_routable_holder_is_a_candidate() -> None:
    found = resolve("m", fake_member("a"), fake_member("b", "m"), fake_member("c", "m"))

    assert nodes(found) == ["b", "c"]


def test_an_unroutable_holder_is_left_out() -> None:
    found = resolve("m", fake_member("a", "m"), fake_member("b", "m", routable=False, reason="link lost"))

    assert nodes(found) == ["a"]


def test_a_model_known_but_nowhere_up_is_unavailable_with_the_reason_and_a_time_to_come_back() -> None:
    with pytest.raises(ModelUnavailable, match=r"b: link lost 3 s ago") as caught:
        resolve("m", fake_member("a"), fake_member("b", "m", routable=False, reason="link lost 3 s ago"))

    assert caught.value.retry_after is not None


def test_a_model_whose_only_holder_left_is_unavailable_and_says_so() -> None:
    gone = msgspec.structs.replace(fake_member("b", "m", routable=False), state=State.LEFT)

    with pytest.raises(ModelUnavailable, match="b: left the mesh"):
        resolve("m", fake_member("a"), gone)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match="Nearest: llama-3-8b") as caught:
        resolve("lama-3-8b", fake_member("a", "llama-3-8b", "qwen"))

    assert caught.value.param == "model"


def test_a_model_that_is_still_loading_is_no_404() -> None:
    member = fake_member("a", "m")
    loading = msgspec.structs.replace(
        member, models=(), load=tuple(msgspec.structs.replace(load, state="loading") for load in member.load)
    )

    with pytest.raises(ModelUnavailable, match="a: loading"):
        resolve("m", loading)


def test_a_failed_worker_is_not_a_candidate() -> None:
    member = fake_member("a", "m")
    failed = msgspec.structs.replace(member, load=tuple(msgspec.structs.replace(load, state="failed") for load in member.load))

    with pytest.raises(ModelUnavailable, match="a: failed"):
        resolve("m", failed)


def test_a_pin_by_name_or_by_the_beginning_of_the_id_leaves_one_candidate() -> None:
    members = fake_member("a", "m"), fake_member("b", "m")

    assert nodes(resolve("m@b", *members)) == ["b"]
    assert nodes(resolve(f"m@{short(members[1].id)}", *members)) == ["b"]


def test_a_pin_on_an_unknown_node_names_the_nodes() -> None:
    with pytest.raises(ModelNotFound, match="The mesh has: a, b"):
        resolve("m@c", fake_member("a", "m"), fake_member("b", "m"))


def test_a_pin_on_a_node_without_the_model_says_where_it_is() -> None:
    with pytest.raises(ModelNotFound, match="It is on: a"):
        resolve("m@b", fake_member("a", "m"), fake_member("b"))


def test_a_name_with_an_at_sign_is_tried_as_a_name_first() -> None:
    assert nodes(resolve("m@b", fake_member("a", "m@b"), fake_member("b", "m"))) == ["a"]


def test_one_digest_under_two_names_is_one_model() -> None:
    members = fake_member("a", "m", weights="w"), fake_member("b", "alias", weights="w")

    assert nodes(resolve("m", *members)) == ["a", "b"]
    assert [candidate.model for candidate in resolve("m", *members).candidates] == ["m", "alias"]
    (listed,) = listings(members)
    assert {listed.id, *listed.aliases} == {"m", "alias"}


def test_one_name_with_two_digests_means_what_most_nodes_hold_and_the_other_has_its_digest_in_the_name() -> None:
    members = fake_member("a", "m", weights="q4"), fake_member("b", "m", weights="q8"), fake_member("c", "m", weights="q8")
    other = short(members[0].models[0].digest)

    assert nodes(resolve("m", *members)) == ["b", "c"]
    assert nodes(resolve(f"m#{other}", *members)) == ["a"]
    assert [listed.id for listed in listings(members)] == ["m", f"m#{other}"]


def test_equal_counts_mean_the_larger_file() -> None:
    members = fake_member("a", "m", weights="q4", size=10), fake_member("b", "m", weights="q8", size=20)

    assert nodes(resolve("m", *members)) == ["b"]


def test_models_without_a_digest_are_equal_by_name_only() -> None:
    bridged = [
        msgspec.structs.replace(member, models=tuple(msgspec.structs.replace(m, digest=b"") for m in member.models), load=())
        for member in (fake_member("a", "m"), fake_member("b", "n"))
    ]

    assert nodes(resolve("m", *bridged)) == ["a"]
    assert [listed.id for listed in listings(bridged)] == ["m", "n"]


def test_a_forwarded_request_is_served_by_ourselves_only() -> None:
    members = fake_member("a", "m"), fake_member("b", "m")

    assert nodes(resolve("m", *members, only_local=True)) == ["a"]


def test_only_routable_models_are_listed_once_each() -> None:
    members = fake_member("a", "m"), fake_member("b", "m", "n"), fake_member("c", "gone", routable=False)

    assert [(listed.id, listed.nodes) for listed in listings(members)] == [("m", ("a", "b")), ("n", ("b",))]


@pytest.mark.parametrize(("state", "listed"), [("ready", True), ("available", True), ("loading", True), ("failed", False)])
def test_a_model_that_would_be_loaded_for_whoever_asks_is_listed_and_a_candidate(state: str, listed: bool) -> None:
    member = in_state(fake_member("a", "m"), state)

    assert [(each.id, each.loaded_on) for each in listings((member,))] == [("m", ("a",) if state == "ready" else ())] * listed
    if listed:
        assert [candidate.loaded for candidate in resolve("m", member).candidates] == [state == "ready"]


def in_state(member: Member, state: str) -> Member:
    return msgspec.structs.replace(member, load=tuple(msgspec.structs.replace(load, state=state) for load in member.load))


def bridged(member: Member, *models: Model) -> Member:
    """`member` with models of remotes beside its own."""
    return msgspec.structs.replace(member, models=(*member.models, *models))


def of_remote(name: str, origin: str = "lab") -> Model:
    return Model(name=name, aliases=(f"{origin}/{name}",), digest=ModelDigest(b""), origin=origin)


def test_own_weights_stand_for_a_name_before_any_number_of_remotes() -> None:
    members = (fake_member("a", "qwen"), *(bridged(fake_member(name), of_remote("qwen")) for name in "bcd"))

    assert [candidate.node_name for candidate in route("qwen", members, me=members[0].id).candidates] == ["a"]
    assert [candidate.node_name for candidate in route("lab/qwen", members, me=members[0].id).candidates] == ["b", "c", "d"]


def test_two_bridges_to_one_model_are_two_routes_and_its_pinned_name_goes_on_as_it_is() -> None:
    members = tuple(bridged(fake_member(name), of_remote("qwen")) for name in "ab")

    assert {candidate.model for candidate in route("qwen", members, me=members[0].id).candidates} == {"qwen"}
    assert {candidate.model for candidate in route("lab/qwen", members, me=members[0].id).candidates} == {"lab/qwen"}


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [(Scope.ANY, {"own", "peers", "far"}), (Scope.LAN, {"own", "peers"}), (Scope.NODE, {"own"})],
)
def test_a_scope_keeps_a_request_at_home(scope: Scope, allowed: set[str]) -> None:
    members = (fake_member("me", "own"), bridged(fake_member("b", "peers"), of_remote("far")))
    for name in allowed:
        assert route(name, members, me=members[0].id, scope=scope).candidates
    for name in {"own", "peers", "far"} - allowed:
        with pytest.raises(ModelNotFound, match=f"beyond the scope `{scope}`"):
            route(name, members, me=members[0].id, scope=scope)

    assert {listing.id for listing in listings(members, me=members[0].id, scope=scope)} == allowed


def test_a_remote_model_behind_a_name_of_our_own_is_listed_by_the_name_that_reaches_it() -> None:
    members = (fake_member("a", "qwen"), bridged(fake_member("b"), of_remote("qwen")))
    listed = {listing.id: listing for listing in listings(members)}

    assert set(listed) == {"qwen", "lab/qwen"}
    assert listed["lab/qwen"].origins == ("lab",)
    assert listed["qwen"].origins == ()


def test_the_narrower_of_two_scopes_counts() -> None:
    assert narrower(Scope.ANY, Scope.LAN) is narrower(Scope.LAN, Scope.ANY) is Scope.LAN
    assert narrower(Scope.NODE, Scope.LAN) is Scope.NODE


def helping(member: Member, *models: Model, spill_over: bool = True) -> Member:
    remote = Bridged(name="lab", kind="cluster", spill_over=spill_over)
    return msgspec.structs.replace(bridged(member, *models), remotes=(remote,))


@pytest.mark.parametrize(
    ("active", "spill_over", "asked"),
    [(3, True, {"qwen"}), (4, True, {"qwen", "lab/qwen"}), (4, False, {"qwen"})],
)
def test_a_remote_helps_out_only_where_it_was_registered_so_and_the_own_nodes_are_full(
    active: int, spill_over: bool, asked: set[str]
) -> None:
    members = (fake_member("a", "qwen", active=active), helping(fake_member("b"), of_remote("qwen"), spill_over=spill_over))

    assert {candidate.model for candidate in route("qwen", members, me=members[0].id).candidates} == asked


def test_a_remote_helps_out_where_the_own_nodes_are_away_but_not_against_scope_or_pin() -> None:
    lost = fake_member("a", "qwen", routable=False, reason="gone")
    members = (lost, helping(fake_member("b"), of_remote("qwen")))

    assert nodes(route("qwen", members, me=members[1].id)) == ["b"]
    for wanted, scope in (("qwen", Scope.LAN), ("qwen@a", Scope.ANY)):
        with pytest.raises(ModelUnavailable):
            route(wanted, members, me=members[1].id, scope=scope)
