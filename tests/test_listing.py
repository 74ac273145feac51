"""Members and models as tables of their own."""

import msgspec

from meshnode.gossip.member import Member, Model
from meshnode.listing import members, models, places
from meshnode.names import ModelDigest
from meshnode.search import Mdns, Search
from meshnode.status import Node, Report, build
from meshnode.testing import fake_member, renamed

NODE = Node(id=fake_member("alpha").id.hex(), name="alpha", version="0.1.0", api="x", mesh=(), pid=1, uptime_s=1.0)
SEARCH = Search(alone_s=None, mdns=Mdns(state="on"), advertised=())


def report(*others: Member) -> Report:
    everyone = (fake_member("alpha", "tiny"), *others)
    return build(
        node=NODE, mesh_id="ab12", me=everyone[0].id, members=everyone, search=SEARCH, workers=(), refusals=(), now=100.0
    )


def model(name: str, weights: str, *aliases: str) -> Model:
    return Model(
        name=name, aliases=aliases, digest=ModelDigest(weights.encode().ljust(32, b"\0")), size=4_700_000_000, context_length=8192
    )


def test_equal_weights_are_one_model_whatever_their_holders_call_them() -> None:
    beta = renamed(fake_member("beta"), model("small", "tiny", "fox"), model("big", "other"))

    assert [(place.name, place.aliases, place.nodes) for place in places(report(beta).members)] == [
        ("big", (), ("beta",)),
        ("tiny", ("small", "fox"), ("alpha", "beta")),
    ]


def test_a_holder_that_cannot_be_asked_is_marked() -> None:
    gone = fake_member("beta", "tiny", routable=False, reason="link lost")
    loading = msgspec.structs.replace(
        fake_member("gamma", "tiny"),
        load=tuple(msgspec.structs.replace(state, state="loading") for state in fake_member("gamma", "tiny").load),
    )

    assert places(report(gone, loading).members)[0].nodes == ("alpha", "beta (not routable)", "gamma (loading)")


def test_the_table_of_models() -> None:
    assert models(report(renamed(fake_member("beta"), model("big", "other", "b")))).splitlines() == [
        "MODEL  DIGEST    SIZE    CONTEXT  NODES  ALSO CALLED",
        "big    6f746865  4.7 GB  8192     beta   b",
        "tiny   74696e79  0.0 MB  1024     alpha  -",
    ]


def test_a_mesh_without_models_says_how_to_serve_one() -> None:
    assert "meshnode up --model" in models(msgspec.structs.replace(report(), members=()))


def test_the_table_of_members_has_ids_addresses_and_reasons() -> None:
    lost = msgspec.structs.replace(
        fake_member("beta", routable=False, reason="link lost 3 s ago"),
        addrs=("10.0.0.2:1", "[fd00::2]:1"),
        last_seen=40.0,
        epoch=7,
    )
    head, own, other = members(report(lost)).splitlines()

    assert head.split() == ["NODE", "ID", "STATE", "ROUTABLE", "ADDRESSES", "VERSION", "EPOCH", "SEEN", "WHY", "NOT"]
    assert own.startswith("alpha*  616c706861")
    assert other.split()[2:] == ["alive", "no", "10.0.0.2:1,[fd00::2]:1", "-", "7", "1", "m", "link", "lost", "3", "s", "ago"]
