"""Remotes over the admin API, and how far a request may go."""

import json

import msgspec
import pytest
from api.serving import CHAT, CLOSE, SECRET, FakeNode, get, post, served

from meshnode.api.app import App
from meshnode.gossip.member import Model
from meshnode.names import ModelDigest
from meshnode.testing import FakeWorker

ADMIN = b"Authorization: Bearer " + SECRET.encode()
PATH = b"/mesh/v1/remotes"
FAR = {"kind": "router", "name": "far", "url": "https://far.example/v1", "key": "sk-very-secret"}


async def ask(sent: bytes, node: FakeNode | None = None) -> tuple[int, dict[str, object]]:
    app = App(node or FakeNode({"holder": FakeWorker()}), admin_secret=SECRET, hosts=frozenset())
    async with served(app) as serving:
        answer = await serving.exchange(sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def body(**fields: object) -> bytes:
    return json.dumps({**FAR, **fields}).encode()


def message(answer: dict[str, object]) -> str:
    error = answer["error"]
    assert isinstance(error, dict)
    return str(error["message"])


async def test_a_remote_is_added_with_its_address_in_the_form_that_is_kept() -> None:
    node = FakeNode({})
    status, _ = await ask(post(body(), ADMIN, CLOSE, path=PATH), node)

    assert status == 200
    assert [(remote.name, remote.url, remote.key) for remote in node.remotes] == [("far", "https://far.example", FAR["key"])]


@pytest.mark.parametrize("sent", [post(body(), CLOSE, path=PATH), get(PATH + b"/far", CLOSE, method=b"DELETE")])
async def test_nobody_else_may(sent: bytes) -> None:
    assert (await ask(sent))[0] == 401


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key_file": "/etc/shadow"}, "key_file"),
        ({"key_command": ["id"]}, "key_command"),
        ({"ca_file": "/etc/shadow"}, "ca_file"),
        ({"url": "file:///etc/shadow"}, "http://"),
        ({"kind": "node"}, "kind"),
        ({"name": "a/b"}, "name"),
        ({"url": "http://10.0.0.3"}, "--insecure"),
    ],
)
async def test_no_path_and_no_command_is_taken_and_what_is_wrong_is_named(fields: dict[str, object], words: str) -> None:
    status, answer = await ask(post(body(**fields), ADMIN, CLOSE, path=PATH))

    assert status == 400
    assert words in message(answer)
    assert "sk-very-secret" not in message(answer)


async def test_one_is_removed_by_its_name() -> None:
    assert await ask(get(PATH + b"/far", ADMIN, CLOSE, method=b"DELETE")) == (200, {"peer": "far"})


def with_remote() -> FakeNode:
    """A node whose peer has `m` itself and `gpt` by a bridge."""
    node = FakeNode({"holder": FakeWorker()})
    entry, holder = node.members()
    far = Model(name="gpt", digest=ModelDigest(b""), origin="far", cost="metered")
    node.everyone = (entry, msgspec.structs.replace(holder, models=(*holder.models, far)))
    return node


async def test_a_request_says_how_far_it_may_go() -> None:
    far = CHAT.replace(b'"m"', b'"gpt"')
    anywhere, _ = await ask(post(far, CLOSE), with_remote())
    at_home, answer = await ask(post(far, b"x-meshnode-scope: LAN", CLOSE), with_remote())
    own, _ = await ask(post(CHAT, b"x-meshnode-scope: lan", CLOSE), with_remote())

    assert (anywhere, at_home, own) == (200, 404, 200)
    assert "holder via far" in message(answer)


async def test_models_are_listed_within_the_scope_and_with_their_origin() -> None:
    _, every = await ask(get(b"/v1/models", CLOSE), with_remote())
    _, own = await ask(get(b"/v1/models", b"x-meshnode-scope: lan", CLOSE), with_remote())
    listed = every["data"]
    assert isinstance(listed, list)

    assert {each["id"]: each["meta"]["origins"] for each in listed} == {"gpt": ["far"], "m": []}
    assert [each["id"] for each in own["data"]] == ["m"]  # type: ignore[attr-defined]  # JSON


async def test_a_scope_that_is_none_is_refused() -> None:
    status, answer = await ask(post(CHAT, b"x-meshnode-scope: mars", CLOSE))

    assert status == 400
    assert "node, lan, any" in message(answer)
