"""A bridge to a Backend.AI cluster, against the shapes of real managers and of the app proxy, over real sockets."""

import random
from collections.abc import Sequence

import msgspec
import pytest
import trio
from bridges.fake_cluster import SECRET, Service, cluster_of, problem

from meshnode.bridges.cluster import DISCOVER_APART_S, Cluster
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.errors import ModelUnavailable, RemoteFailed
from meshnode.inference import Chunk, Event, Message, Request
from meshnode.remote import Remote

ASK = Request(id="r", model="qwen", messages=(Message(role="user", content="Hi"),))


def private(number: int = 1, **fields: object) -> Service:
    return Service(f"id-{number}", f"svc-{number}", **{"model": "qwen", "token": f"jwt-{number}", **fields})  # type: ignore[arg-type]  # as given


def bridge(remote: Remote) -> Cluster:
    return Cluster(remote, rng=random.Random(1))


async def look_again(cluster: Cluster) -> None:
    cluster._asked_at -= DISCOVER_APART_S
    await cluster._refresh()


async def ask(cluster: Cluster, name: str = "qwen", seen: list[Event] | None = None) -> str:
    seen = [] if seen is None else seen
    with trio.fail_after(10):
        async with cluster.backend(name).submit(ASK) as events:
            async for batch in events:
                seen += batch
    return text(seen)


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


async def test_services_are_found_and_asked_with_a_token_of_their_own_and_never_with_the_key_pair() -> None:
    public = Service("id-9", "open", "gemma")
    secret = private()
    async with cluster_of(secret, public) as (manager, remote):
        cluster = bridge(remote)
        said = await cluster.verify()
        answers = [await ask(cluster, "qwen"), await ask(cluster, "gemma")]

    assert said == "Backend.AI 26.9.6: 2 of 2 services can be used"
    assert answers == ["Hello there"] * 2
    assert {model.name for model in cluster.models()} == {"qwen", "gemma"}
    assert {asked.headers.get("authorization") for asked in secret.asked} == {"BackendAI jwt-1"}
    assert {asked.headers.get("authorization") for asked in public.asked} == {None}
    assert [asked.path for asked in manager.asked] == ["/", "/auth", "/admin/gql", "/services/id-1/token"]
    assert all(SECRET not in str(asked.headers) + asked.body.decode() for asked in manager.asked)


@pytest.mark.parametrize(
    ("lists", "last"),
    [
        (("graphql", "v2", "services"), "/admin/gql"),
        (("v2", "services"), "/v2/deployments/my/search"),
        (("services",), "/services"),
    ],
)
async def test_the_lists_of_a_manager_are_tried_in_turn_and_the_one_that_works_is_kept(lists: tuple[str, ...], last: str) -> None:
    async with cluster_of(private(), lists=lists) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        asked = len(manager.asked)
        await look_again(cluster)

    assert [model.name for model in cluster.models()] == ["qwen"]
    assert [each.path for each in manager.asked[asked:]] == [last]


async def test_a_long_list_is_read_page_by_page_and_no_further_than_is_looked_at() -> None:
    many = [Service(f"id-{number}", f"svc-{number}", "m", url="http://127.0.0.1:1/", status="UNHEALTHY") for number in range(130)]
    async with cluster_of(*many[:1]) as (manager, remote):
        manager.services = many
        cluster = bridge(remote)
        await cluster._refresh()

    assert len(cluster._services) == 64
    assert sum("only 64 services" in reason for _, reason in cluster.facts().left_out) == len(cluster._left_out) == 36


async def test_each_service_that_is_not_offered_has_a_reason() -> None:
    services = [
        private(1, status="UNHEALTHY"),
        private(2, answers=503, problem="Worker not available"),
        private(3, url="http://169.254.169.254/"),
        private(4, url="not an address"),
        Service("id-5", "svc-5", "gemma"),
    ]
    async with cluster_of(*services) as (manager, remote):
        manager.services.append(Service("id-6", "svc-6", "m", token="t"))
        cluster = bridge(remote)
        await cluster._refresh()

    reasons = dict(cluster.facts().left_out)
    assert [model.name for model in cluster.models()] == ["gemma"]
    assert "unhealthy" in reasons["svc-1"]
    assert "Worker not available" in reasons["svc-2"]
    assert "link-local" in reasons["svc-3"]
    assert "http" in reasons["svc-4"]
    assert "no address" in reasons["svc-6"]


async def test_a_cluster_elsewhere_cannot_send_us_to_this_machine_or_to_clear_text() -> None:
    async with cluster_of(private()) as (_, remote):
        far = Cluster(msgspec.structs.replace(remote, url="https://cluster.example"), rng=random.Random(1))
        await far._take([])
        await far._take(await bridge(remote)._list(far._listing))
        assert "plain HTTP" in dict(far._left_out)["svc-1"]

        careless = Cluster(msgspec.structs.replace(remote, url="https://cluster.example", insecure=True), rng=random.Random(1))
        await careless._take(await bridge(remote)._list(far._listing))
        (service,) = careless._services.values()
        service.token, service._renew_at = "jwt-1", 1e9
        await service.probe()

    assert "this machine" in service.reason


async def test_one_model_at_two_services_is_one_with_two_replicas_and_names_for_each() -> None:
    first, second = private(1), private(2)
    async with cluster_of(first, second) as (_, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        (model,) = cluster.models()
        first.asked.clear()
        second.asked.clear()
        await ask(cluster, "lab/svc-2/qwen")

    assert model.aliases == ("lab/qwen", "lab/svc-1/qwen", "lab/svc-2/qwen")
    assert (len(first.asked), len(second.asked)) == (0, 1)


async def test_before_the_first_chunk_a_dead_replica_is_left_for_another() -> None:
    first, second = private(1), private(2)
    async with cluster_of(first, second) as (_, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        first.answers, first.problem = 502, "container connection refused"
        answers = [await ask(cluster) for _ in range(4)]

    assert answers == ["Hello there"] * 4


async def test_a_stream_that_only_stops_is_an_error_and_no_end() -> None:
    service = private(breaks_off=True)
    async with cluster_of(service) as (_, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        seen: list[Event] = []
        with pytest.raises(RemoteFailed, match="lab/svc-1 ended its answer in the middle"):
            await ask(cluster, "qwen", seen)

    assert text(seen) == "Hello there"


async def test_a_token_that_the_proxy_refuses_is_renewed_once_and_the_caller_never_knows() -> None:
    service = private()
    async with cluster_of(service) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        service.token = "jwt-rotated"
        answer = await ask(cluster)

    assert answer == "Hello there"
    assert [asked.path for asked in manager.asked].count("/services/id-1/token") == 2


async def test_a_token_is_renewed_at_four_fifths_of_its_life() -> None:
    async with cluster_of(private()) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        (service,) = cluster._services.values()
        before = service._renew_at - trio.current_time()
        service._renew_at = trio.current_time()
        await ask(cluster)

    assert 2870 < before <= 2880
    assert [asked.path for asked in manager.asked].count("/services/id-1/token") == 2


@pytest.mark.parametrize(("status", "message"), [(400, "E20001: Unregistered slot 10205"), (404, "not found")])
async def test_a_service_whose_address_was_given_up_is_gone_and_looked_for(status: int, message: str) -> None:
    first, second = private(1), private(2)
    async with cluster_of(first, second) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        first.answers, first.problem = status, message
        manager.services = [second]
        answers = [await ask(cluster) for _ in range(3)]
        assert cluster._poke.is_set()
        await look_again(cluster)

    assert answers == ["Hello there"] * 3
    assert list(cluster._services) == ["id-2"]


async def test_a_manager_that_is_away_takes_nothing_away() -> None:
    async with cluster_of(private()) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        manager.is_away = True
        await look_again(cluster)
        away = cluster.facts()
        answer = await ask(cluster)
        manager.is_away = False
        await look_again(cluster)

    assert answer == "Hello there"
    assert away.state == "ready"
    assert "the manager: " in away.reason
    assert cluster.facts().reason == ""


async def test_a_service_that_is_gone_from_the_cluster_is_offered_no_longer() -> None:
    async with cluster_of(private()) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        manager.services = []
        await look_again(cluster)

    assert cluster.models() == ()
    with pytest.raises(ModelUnavailable):
        cluster.backend("qwen")


async def test_a_clock_that_is_an_hour_off_is_corrected_for_and_mentioned() -> None:
    async with cluster_of(private(), clock=-3600.0) as (_, remote):
        said = await bridge(remote).verify()

    assert "60 minutes apart" in said


async def test_a_clock_that_changes_under_way_is_read_again() -> None:
    async with cluster_of(private()) as (manager, remote):
        cluster = bridge(remote)
        await cluster._refresh()
        manager.clock = 7200.0
        await look_again(cluster)

    assert cluster._trouble == ""
    assert 7190 < cluster.manager.clock_offset < 7210


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"refuses": (401, problem("auth-failed", "Access key not found in HMAC"))}, Verdict.WRONG_KEY),
        ({"refuses": (401, problem("auth-failed", "HMAC signature mismatch"))}, Verdict.WRONG_SECRET),
        ({"refuses": (403, problem("generic-forbidden", "10.0.0.9 is not allowed"))}, Verdict.ADDRESS_NOT_ALLOWED),
        ({"refuses": (429, problem("rate-limit-exceeded", "Too many"))}, Verdict.RATE_LIMITED),
        ({"ignores_clock": True}, Verdict.CLOCK),
        ({"version": "v2.20170315"}, Verdict.NOT_ONE),
        ({"refuses": (500, b"<html>")}, Verdict.FAILING),
        ({"is_away": True}, Verdict.UNREACHABLE),
    ],
)
async def test_registration_has_a_verdict_of_its_own_for_each_fault(fields: dict[str, object], verdict: Verdict) -> None:
    async with cluster_of(private(), **fields) as (_, remote):
        with pytest.raises(Unusable) as caught:
            await bridge(remote).verify()

    assert caught.value.verdict is verdict
    assert SECRET not in str(caught.value)


async def test_what_is_no_manager_is_said_to_be_none() -> None:
    service = Service("id", "svc", "m")
    async with cluster_of(service) as (_, remote):
        with pytest.raises(Unusable) as caught:
            await bridge(msgspec.structs.replace(remote, url=service.url.rstrip("/"))).verify()

    assert caught.value.verdict is Verdict.NOT_ONE


async def test_a_cluster_without_services_is_registered_and_says_so() -> None:
    async with cluster_of() as (_, remote):
        assert await bridge(remote).verify() == "Backend.AI 26.9.6: this key pair sees no model service yet"


async def test_an_old_manager_is_spoken_to_in_its_own_version() -> None:
    async with cluster_of(private(), version="v7.20230615") as (manager, remote):
        await bridge(remote).verify()

    assert {asked.headers["x-backendai-version"] for asked in manager.asked[1:]} == {"v7.20230615"}
