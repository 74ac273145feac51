"""Who may ask what: with and without a key, from this machine and from elsewhere, in each dialect."""

import json

import pytest
import trio
from api.serving import CHAT, CLOSE, SECRET, STREAMED, FakeNode, get, in_memory, post, read_all, read_until, served
from trio.testing import MockClock, memory_stream_pair

from meshnode.api.app import App
from meshnode.api.connection import Connection, Idle
from meshnode.api.limits import Limits
from meshnode.keys import KeyRing, Scope, Wanted
from meshnode.testing import FakeWorker

HERE, ELSEWHERE = "127.0.0.1", "192.168.1.9"
MINE = "192.168.1.5"
GRAMMAR = CHAT[:-1] + b',"grammar":"root ::= [a]"}'


class World:
    """One node behind its API, and some keys for it."""

    def __init__(self, *, keyless: bool = False, delay: float = 0.0) -> None:
        self.keys = KeyRing()
        self.worker = FakeWorker(delay=delay)
        node = FakeNode({"holder": self.worker})
        self.app = App(node, admin_secret=SECRET, hosts=frozenset(), keys=self.keys, keyless=keyless)

    def key(self, wanted: Wanted | None = None) -> str:
        return self.keys.new(wanted or Wanted(), now=0)[1]

    async def ask(self, sent: bytes, peer: str = ELSEWHERE) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a client at `peer`, asked as `MINE`."""
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                async with theirs:
                    await Connection(theirs, self.app, limits=Limits(), idle=Idle(), peer=peer, local=MINE).run()

            nursery.start_soon(run)
            await ours.send_all(sent)
            received = await read_all(ours)
            await ours.aclose()
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


def bearer(text: str) -> bytes:
    return b"Authorization: Bearer " + text.encode()


async def test_from_elsewhere_every_path_takes_a_key() -> None:
    world = World()
    for sent in (
        post(CHAT, CLOSE),
        get(b"/v1/models", CLOSE),
        get(b"/healthz", CLOSE),
        get(b"/nonsense", CLOSE),
        get(b"/", CLOSE),
    ):
        status, headers, body = await world.ask(sent)

        assert status == 401
        assert headers["www-authenticate"] == "Bearer"
        assert b"meshnode key new" in body
    assert not world.worker.requests


@pytest.mark.parametrize("peer", [HERE, MINE, "::1"])
async def test_on_this_machine_nobody_needs_a_key_and_a_foreign_one_does_no_harm(peer: str) -> None:
    world = World()

    assert (await world.ask(post(CHAT, CLOSE), peer))[0] == 200
    assert (await world.ask(post(CHAT, CLOSE, bearer("sk-unused")), peer))[0] == 200


@pytest.mark.parametrize("name", ["Authorization: Bearer ", "authorization: bearer ", "x-api-key: "])
async def test_a_key_is_taken_in_either_header_and_its_id_alone_travels_on(name: str) -> None:
    world = World()
    text = world.key()
    status, _, _ = await world.ask(post(CHAT, CLOSE, f"{name}{text}".encode()))

    assert status == 200
    assert world.worker.requests[0].caller == text.split("_")[1]


async def test_a_client_that_sends_both_headers_is_known_by_the_one_that_is_a_key() -> None:
    world = World()

    assert (await world.ask(post(CHAT, CLOSE, bearer("unused"), b"x-api-key: " + world.key().encode())))[0] == 200


@pytest.mark.parametrize("peer", [HERE, ELSEWHERE])
async def test_a_wrong_or_revoked_key_is_refused_also_where_none_is_needed(peer: str) -> None:
    world = World(keyless=True)
    text = world.key()
    world.keys.revoke(text.split("_")[1])
    other = world.key()
    for shown in (text, other[:-1], "mk_", "mk_aaaaaaaa_x"):
        status, _, body = await world.ask(post(CHAT, CLOSE, bearer(shown)), peer)

        assert status == 401
        assert b"wrong or revoked" in body
        assert shown.encode() not in body or shown == "mk_"


async def test_an_api_opened_on_purpose_takes_anybody_but_no_admin() -> None:
    world = World(keyless=True)

    assert (await world.ask(post(CHAT, CLOSE)))[0] == 200
    assert (await world.ask(get(b"/mesh/v1/status", CLOSE)))[0] == 401


async def test_admin_takes_an_admin_on_this_machine() -> None:
    world = World()
    admin, use = world.key(Wanted(scope=Scope.ADMIN)), world.key()
    path = b"/mesh/v1/status"

    assert (await world.ask(get(path, CLOSE, bearer(admin)), MINE))[0] == 200
    assert (await world.ask(get(path, CLOSE, bearer(SECRET)), HERE))[0] == 200
    assert (await world.ask(get(path, CLOSE, bearer(use)), HERE))[0] == 401
    for credential in (admin, SECRET):
        status, _, body = await world.ask(get(path, CLOSE, bearer(credential)))

        assert status == 403
        assert b"TLS" in body
    assert (await world.ask(post(CHAT, CLOSE, bearer(admin))))[0] == 200


async def test_a_grammar_takes_a_key_and_every_other_format_does_not() -> None:
    world = World()
    status, _, body = await world.ask(post(GRAMMAR, CLOSE), HERE)

    assert status == 401
    assert json.loads(body)["error"]["param"] == "grammar"
    assert (await world.ask(post(GRAMMAR, CLOSE, bearer(world.key())), HERE))[0] == 200
    formed = CHAT[:-1] + b',"response_format":{"type":"json_object"}}'
    assert (await world.ask(post(formed, CLOSE), HERE))[0] == 200


DIALECTS = [
    (b"/v1/chat/completions", CHAT, ("error", "type"), "rate_limit_error"),
    (b"/v1/messages", CHAT[:-1] + b',"max_tokens":9}', ("error", "type"), "rate_limit_error"),
    (b"/api/chat", CHAT, ("error",), None),
]


@pytest.mark.parametrize(("path", "body", "place", "kind"), DIALECTS, ids=["openai", "anthropic", "ollama"])
async def test_who_asks_too_often_hears_when_to_come_back(
    path: bytes, body: bytes, place: tuple[str, ...], kind: str | None
) -> None:
    world = World()
    sent = post(body, CLOSE, bearer(world.key(Wanted(requests_per_minute=2))), path=path)
    for _ in range(2):
        assert (await world.ask(sent))[0] == 200
    status, headers, answer = await world.ask(sent)
    found = json.loads(answer)
    for name in place:
        found = found[name]

    assert status == 429
    assert 25 <= int(headers["retry-after"]) <= 30
    assert found == kind or (kind is None and "2 requests a minute" in found)
    assert len(world.worker.requests) == 2


async def test_tokens_of_prompt_and_answer_count_and_the_true_wait_is_told() -> None:
    """Two words of prompt and six of the answer, three times what a minute may bring: two minutes of debt."""
    world = World()
    sent = post(STREAMED, CLOSE, bearer(world.key(Wanted(tokens_per_minute=2))))

    assert (await world.ask(sent))[0] == 200
    status, headers, _ = await world.ask(sent)
    assert status == 429
    assert 200 <= int(headers["retry-after"]) <= 210


async def test_who_leaves_in_the_middle_pays_for_what_was_done(autojump_clock: MockClock) -> None:
    world = World(delay=1)
    key = bearer(world.key(Wanted(tokens_per_minute=3)))
    async with trio.open_nursery() as nursery:
        with in_memory(world.app, nursery) as stream:
            await stream.send_all(post(STREAMED, key))
            await read_until(stream, b'"content":" from"')
            await stream.aclose()

    assert world.worker.cancelled == 1
    assert (await world.ask(post(CHAT, CLOSE, key)))[0] == 429


async def test_an_admin_makes_lists_and_revokes_keys_over_http() -> None:
    world = World()
    secret = bearer(SECRET)
    path = b"/mesh/v1/keys"
    status, headers, body = await world.ask(post(b'{"requests_per_minute":7}', CLOSE, secret, path=path), HERE)
    made = json.loads(body)
    listed = json.loads((await world.ask(get(path, CLOSE, secret), HERE))[2])["keys"]

    assert (status, headers["cache-control"]) == (200, "no-store")
    assert listed == [{name: value for name, value in made.items() if name != "key"}]
    assert listed[0]["requests_per_minute"] == 7
    one = path + b"/" + made["id"].encode()
    assert (await world.ask(get(one, CLOSE, secret, method=b"DELETE"), HERE))[0] == 200
    assert (await world.ask(get(one, CLOSE, secret, method=b"DELETE"), HERE))[0] == 404
    assert (await world.ask(post(CHAT, CLOSE, bearer(made["key"]))))[0] == 401


@pytest.mark.parametrize("body", [b"[]", b'{"scope":"root"}', b'{"tokens_per_minute":0}', b'{"path":"/etc"}', b"\xff"])
async def test_a_wrong_wish_for_a_key_makes_none(body: bytes) -> None:
    world = World()
    status, _, _ = await world.ask(post(body, CLOSE, bearer(SECRET), path=b"/mesh/v1/keys"), HERE)

    assert status == 400
    assert not world.keys


async def test_over_a_real_socket_this_machine_is_known_as_such() -> None:
    async with served(World().app) as serving:
        assert (await serving.exchange(post(CHAT, CLOSE))).startswith(b"HTTP/1.1 200")
