"""What is counted, under which names, and what never becomes a label."""

import math

import pytest
from api.serving import CHAT, CLOSE, STREAMED, FakeNode, app_of, get, post
from api.test_api_app import ask
from api.test_keys import ELSEWHERE, World, bearer
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from meshnode.api.app import ROUTES, App
from meshnode.api.metrics import MAX_MODELS, Metrics
from meshnode.errors import LinkLost
from meshnode.inference import Usage
from meshnode.testing import FakeWorker


async def scraped(app: App) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    head, body = await ask(app, get(b"/metrics", CLOSE))

    assert head.startswith("HTTP/1.1 200")
    return parsed(body.decode())


def parsed(text: str) -> dict[tuple[str, ...], float]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


async def test_an_answer_is_counted_in_requests_tokens_and_times(autojump_clock: MockClock) -> None:
    app = app_of(FakeWorker(delay=1))
    await ask(app, post(STREAMED, CLOSE))
    found = await scraped(app)

    assert found["meshnode_http_requests_total", "/v1/chat/completions", "200"] == 1
    assert found["gen_ai_client_token_usage_sum", "m", "input"] == 2
    assert found["gen_ai_client_token_usage_sum", "m", "output"] == 6
    assert found["gen_ai_server_time_to_first_token_seconds_sum", "m"] == pytest.approx(2)
    assert found["gen_ai_server_time_per_output_token_seconds_sum", "m"] == pytest.approx(1)
    assert found["gen_ai_server_request_duration_seconds_sum", "m"] == pytest.approx(7)
    assert found["mesh_route_decisions_total", "only-holder"] == 1
    assert found[("meshnode_requests_in_flight",)] == 1  # the one that asks


async def test_failures_are_counted_once_whether_by_status_or_in_a_stream(autojump_clock: MockClock) -> None:
    app = app_of(FakeWorker(fail_after=1, failure=lambda: LinkLost("gone")))
    await ask(app, post(STREAMED, CLOSE))
    await ask(app, post(CHAT, CLOSE))
    await ask(app, get(b"/nonsense/secret", CLOSE))
    await ask(app, b"garbage\r\n\r\n")
    found = await scraped(app)

    assert found["meshnode_errors_total", "link_lost"] == 2
    assert found["meshnode_errors_total", "not_found"] == 1
    assert found["meshnode_errors_total", "invalid_request"] == 1
    assert found["meshnode_http_requests_total", "other", "404"] == 1
    assert found["meshnode_http_requests_total", "other", "400"] == 1
    assert found["meshnode_http_requests_total", "/v1/chat/completions", "502"] == 1


async def test_members_and_workers_are_looked_at_when_asked() -> None:
    found = await scraped(App(FakeNode({"a": FakeWorker(), "b": FakeWorker()}), admin_secret="", hosts=frozenset()))

    assert found["meshnode_members", "alive"] == 3
    assert found["meshnode_members", "down"] == 0
    assert found[("meshnode_members_routable",)] == 3
    assert found["meshnode_worker_slots", "m"] == 4
    assert found["vllm:num_requests_running", "m"] == found["vllm:num_requests_waiting", "m"] == 0
    assert found[("process_start_time_seconds",)] > 0


async def test_nothing_that_a_client_typed_becomes_a_label() -> None:
    world = World()
    text = world.key()
    odd = CHAT.replace(b'"m"', b'"typed-model"').replace(b"Say something.", b"typed-prompt")
    for sent in (post(odd, CLOSE, bearer(text)), get(b"/v1/models/typed-id", CLOSE, bearer(text)), get(b"/typed-path", CLOSE)):
        await world.ask(sent)
    _, _, body = await world.ask(get(b"/metrics", CLOSE), "127.0.0.1")

    assert b"typed" not in body
    assert text.split("_")[1].encode() not in body
    assert b'path="/v1/models/{id}",status="404"' in body


async def test_elsewhere_nobody_sees_them() -> None:
    world = World(keyless=True)

    assert (await world.ask(get(b"/metrics", CLOSE)))[0] == 403
    assert (await world.ask(get(b"/metrics", CLOSE, bearer(world.key())), ELSEWHERE))[0] == 403


def test_models_that_come_and_go_do_not_fill_the_memory() -> None:
    metrics = Metrics(FakeNode({}))
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    for number in range(2 * MAX_MODELS):
        metrics.answered(f"m{number}", "local", resumed=0, usage=usage, duration_s=1.0)
    metrics.answered("no name\n", "local", resumed=0, usage=usage, duration_s=1.0)
    found = parsed(metrics.text().decode())
    models = {key[1] for key in found if key[0] == "gen_ai_server_request_duration_seconds_count"}

    assert len(models) == MAX_MODELS + 1
    assert found["gen_ai_server_request_duration_seconds_count", "other"] == MAX_MODELS + 1
    assert not any(math.isnan(value) for value in found.values())


def test_every_route_is_its_own_label() -> None:
    metrics = Metrics(FakeNode({}))
    for route in ROUTES:
        metrics.begun()
        metrics.ended(route.path, 200)

    assert metrics.text().count(b"meshnode_http_requests_total{") == len({route.path for route in ROUTES})
