"""protocol/openapi.yaml says what the application serves: every path both ways, and answers, streams and errors as they are."""

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from api.serving import CLOSE, SECRET, FakeNode, get, in_memory, post, read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from meshnode.api.app import ROUTES, App
from meshnode.errors import LinkLost, MeshnodeError, Overloaded
from meshnode.inference import Chunk, ToolCall
from meshnode.testing import FakeWorker

CONTRACT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "protocol/openapi.yaml").read_text())
SAY = [{"role": "user", "content": "Say something."}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = Chunk(choice=0, text="", tool_calls=(ToolCall(0, "call_1", "look", '{"at":1}'),))
THOUGHT = Chunk(choice=0, text="", reasoning="Hm.")
VECTOR = base64.b64encode(struct.pack("<2f", 1, 2)).decode()
ANTHROPIC = {"anthropic-version": "2023-06-01"}
ADMIN = {"authorization": f"Bearer {SECRET}"}


def schema_of(place: Mapping[str, Any]) -> Draft202012Validator:
    """A validator of a schema that stands in the contract, which it may refer to."""
    return Draft202012Validator({**place, "components": CONTRACT["components"]})


def resolved(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = part
    while "$ref" in found:
        reference, found = found["$ref"], CONTRACT
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
    return found  # type: ignore[no-any-return]  # what YAML holds


async def ask(  # noqa: PLR0917 - a request is these four
    app: App, method: str, path: str, body: object, headers: Mapping[str, str]
) -> tuple[int, str, bytes]:
    """Status, media type and body of the answer."""
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = post(raw, CLOSE, *lines, path=path.encode()) if raw else get(path.encode(), CLOSE, *lines)
    sent = sent.replace(sent.split(b" ", 1)[0], method.encode(), 1)
    async with trio.open_nursery() as nursery:
        with in_memory(app, nursery) as stream:
            await stream.send_all(sent)
            received = await read_all(stream)
            await stream.aclose()
    head, _, rest = received.partition(b"\r\n\r\n")
    found = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    if found.get("transfer-encoding") == "chunked":
        rest = b"".join(pieces(rest))
    return int(head.split()[1]), found["content-type"].partition(";")[0], rest


def pieces(rest: bytes) -> Iterator[bytes]:
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def check(method: str, path: str, answer: tuple[int, str, bytes]) -> None:
    """Fails for a status, a media type, a field or a value that the contract does not have."""
    status, media_type, body = answer
    responses = CONTRACT["paths"][path][method.lower()]["responses"]
    content = resolved(responses.get(str(status), responses["default"]))["content"][media_type]
    if "itemSchema" in content:
        items = list(events(media_type, body))
        assert items
        for item in items:
            schema_of(content["itemSchema"]).validate(item)
    else:
        schema_of(content["schema"]).validate(json.loads(body) if media_type == "application/json" else body.decode())


def events(media_type: str, body: bytes) -> Iterator[object]:
    if media_type == "application/x-ndjson":
        yield from map(json.loads, body.splitlines())
        return
    lines = (line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: "))
    yield from (json.loads(line) for line in lines if line != b"[DONE]")


def app_of(*words: str | Chunk, failure: MeshnodeError | None = None, after: int = 1) -> App:
    said = words or ("Hello", " there")
    worker = FakeWorker(said, fail_after=after if failure else None, failure=(lambda: failure) if failure else None)
    return App(FakeNode({"holder": worker}), admin_secret=SECRET, hosts=frozenset())


def test_every_route_is_in_the_contract_and_every_path_of_it_is_served() -> None:
    served = {(route.method.lower(), route.path) for route in ROUTES}
    written = {(method, path) for path, item in CONTRACT["paths"].items() for method in item}

    assert served == written


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    def walk(part: object) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            yield part
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from walk(child)

    for part in walk(CONTRACT):
        if "$ref" in part:
            resolved(part)
    for schema in CONTRACT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_who_must_be_an_admin_is_in_the_contract() -> None:
    for route in ROUTES:
        keyless = {} in CONTRACT["paths"][route.path][route.method.lower()].get("security", CONTRACT["security"])

        assert keyless == (not route.admin)


CHAT: dict[str, Any] = {"model": "m", "messages": SAY}
MESSAGES: dict[str, Any] = {**CHAT, "max_tokens": 9}
GOOD: list[tuple[str, str, object, Mapping[str, str]]] = [
    ("POST", "/v1/chat/completions", CHAT, {}),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}, {}),
    ("POST", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}, {}),
    ("POST", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "stream": True}, {}),
    ("POST", "/v1/completions", {"model": "m", "prompt": "Once"}, {}),
    ("POST", "/v1/completions", {"model": "m", "prompt": "Once", "logprobs": 2, "stream": True}, {}),
    ("POST", "/v1/messages", MESSAGES, {}),
    ("POST", "/v1/messages", {**MESSAGES, "stream": True}, {}),
    ("POST", "/v1/messages/count_tokens", CHAT, {}),
    ("POST", "/tokenize", {"model": "m", "prompt": "Hi"}, {}),
    ("POST", "/v1/tokenize", {"content": "Hi"}, {}),
    ("POST", "/detokenize", {"model": "m", "tokens": [72, 105]}, {}),
    ("POST", "/v1/detokenize", {"tokens": [72, 105]}, {}),
    ("GET", "/v1/models", None, {}),
    ("GET", "/v1/models", None, ANTHROPIC),
    ("GET", "/v1/models/{id}", None, {}),
    ("GET", "/v1/models/{id}", None, ANTHROPIC),
    ("GET", "/", None, {}),
    ("POST", "/api/chat", CHAT, {}),
    ("POST", "/api/chat", {**CHAT, "stream": False}, {}),
    ("POST", "/api/generate", {"model": "m", "prompt": "Hi"}, {}),
    ("POST", "/api/generate", {"model": "m", "prompt": "Hi", "stream": False}, {}),
    ("POST", "/api/generate", {"model": "m"}, {}),
    ("GET", "/api/tags", None, {}),
    ("GET", "/api/ps", None, {}),
    ("POST", "/api/show", {"model": "m"}, {}),
    ("GET", "/api/version", None, {}),
    ("GET", "/health", None, {}),
    ("GET", "/healthz", None, {}),
    ("GET", "/readyz", None, {}),
    ("GET", "/metrics", None, {}),
    ("GET", "/mesh/v1/status", None, ADMIN),
    ("POST", "/mesh/v1/join", {"peer": "box"}, ADMIN),
    ("POST", "/mesh/v1/drain", {"on": True, "hand_over": False}, ADMIN),
    ("POST", "/mesh/v1/explain", {"model": "m", "max_tokens": 5}, ADMIN),
    ("POST", "/mesh/v1/remotes", {"kind": "router", "name": "box", "url": "http://127.0.0.1:1"}, ADMIN),
    ("GET", "/mesh/v1/keys", None, ADMIN),
    ("POST", "/mesh/v1/keys", {"scope": "admin", "tokens_per_minute": 5}, ADMIN),
]
SPOKEN: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/messages", MESSAGES),
    ("/api/chat", CHAT),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), GOOD)
async def test_an_answer_has_the_shape_of_the_contract_and_so_has_its_request(
    method: str, path: str, body: object, headers: Mapping[str, str]
) -> None:
    operation = CONTRACT["paths"][path][method.lower()]
    if body is not None:
        schema_of(operation["requestBody"]["content"]["application/json"]["schema"]).validate(body)
    answer = await ask(app_of(), method, path.replace("{id}", "m"), body, headers)

    assert answer[0] == 200
    check(method, path, answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), SPOKEN)
async def test_thoughts_and_calls_of_tools_have_the_shape_of_the_contract(path: str, body: dict[str, Any], stream: bool) -> None:
    tools = [{"name": "look", "input_schema": {"type": "object"}}] if path == "/v1/messages" else TOOLS
    answer = await ask(app_of(THOUGHT, "Yes", CALL), "POST", path, {**body, "tools": tools, "stream": stream}, {})

    assert answer[0] == 200
    assert b"look" in answer[2]
    assert b"Hm." in answer[2]
    check("POST", path, answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "m", "input": ["a"], "encoding_format": "float"}),
        ("/v1/embeddings", {"model": "m", "input": ["a"], "encoding_format": "base64"}),
        ("/api/embed", {"model": "m", "input": ["a"]}),
        ("/api/embeddings", {"model": "m", "prompt": "a"}),
    ],
)
async def test_vectors_have_the_shape_of_the_contract(path: str, body: dict[str, Any]) -> None:
    answer = await ask(app_of(VECTOR), "POST", path, body, {})

    assert answer[0] == 200
    check("POST", path, answer)


@pytest.mark.parametrize(("path", "body"), SPOKEN)
async def test_failures_have_the_shape_of_the_contract(path: str, body: dict[str, Any]) -> None:
    busy = app_of(failure=Overloaded("Busy.", retry_after=1), after=0)
    wrong: list[tuple[App, object, Mapping[str, str]]] = [
        (app_of(), b"{", {}),
        (app_of(), {**body, "model": "nobody-has-it"}, {}),
        (app_of(), {**body, "model": 3}, {}),
        (app_of(), body, {"authorization": "Bearer mk_wrong"}),
        (app_of(), body, {"origin": "http://elsewhere"}),
        (busy, {**body, "stream": False}, {}),
    ]
    statuses = []
    for app, sent, headers in wrong:
        answer = await ask(app, "POST", path, sent, headers)
        check("POST", path, answer)
        statuses.append(answer[0])
    assert statuses[:5] == [400, 404, 400, 401, 403]
    assert statuses[5] in {503, 529}


@pytest.mark.parametrize(("path", "body"), SPOKEN)
async def test_a_failure_in_a_stream_has_the_shape_of_the_contract(path: str, body: dict[str, Any]) -> None:
    answer = await ask(app_of(failure=LinkLost("It went away.")), "POST", path, {**body, "stream": True}, {})

    assert answer[0] == 200
    assert b"It went away." in answer[2]
    check("POST", path, answer)


@pytest.mark.parametrize("path", ["pull", "push", "create", "copy", "delete"])
async def test_what_is_not_provided_says_so_in_the_shape_of_the_contract(path: str) -> None:
    method = "DELETE" if path == "delete" else "POST"
    answer = await ask(app_of(), method, f"/api/{path}", {"model": "m"}, {})

    assert answer[0] == 501
    check(method, f"/api/{path}", answer)


async def test_a_node_that_is_not_ready_and_a_key_that_is_revoked() -> None:
    waiting = App(FakeNode({}, why_not="no peer yet"), admin_secret=SECRET, hosts=frozenset())
    check("GET", "/readyz", await ask(waiting, "GET", "/readyz", None, {}))
    made = json.loads((await ask(waiting, "POST", "/mesh/v1/keys", {}, ADMIN))[2])
    for status in (200, 404):
        answer = await ask(waiting, "DELETE", f"/mesh/v1/keys/{made['id']}", None, ADMIN)

        assert answer[0] == status
        check("DELETE", "/mesh/v1/keys/{id}", answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
BODIES = [(path, body) for method, path, body, _ in GOOD if method == "POST" and isinstance(body, dict)]


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, object]:
    """A request of which some fields that the contract names, or others, hold anything."""
    path, good = draw(st.sampled_from(BODIES))
    schema = resolved(CONTRACT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"])
    parts = [schema, *map(resolved, schema.get("allOf", []))]
    names = sorted({name for part in parts for name in part.get("properties", {})} | set(good))
    body = dict(good)
    for name in draw(st.lists(st.sampled_from([*names, "other"]), min_size=1, max_size=3)):
        body[name] = draw(JSON)
    return path, draw(st.just(body) | JSON)


@settings(max_examples=400)
@given(spoilt())
def test_whatever_a_body_holds_the_answer_is_of_the_contract_and_never_a_bug(request: tuple[str, object]) -> None:
    path, body = request
    headers = ADMIN if path.startswith("/mesh/") else {}
    answer = trio.run(ask, app_of(), "POST", path, body, headers)

    assert answer[0] != 500, answer
    check("POST", path, answer)
