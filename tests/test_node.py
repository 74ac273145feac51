"""What the node itself does between its parts."""

from pathlib import Path

import pytest
import trio

from meshnode import credentials, front
from meshnode import node as node_module
from meshnode.address import Address
from meshnode.config import load
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError, InvalidRequest, ModelUnavailable
from meshnode.identity import Token
from meshnode.inference import Request
from meshnode.keys import KeyRing, Wanted
from meshnode.mesh.listen import local_address
from meshnode.names import ModelDigest, NodeId
from meshnode.node import Node
from meshnode.routing.table import Candidate
from meshnode.start import Start


def make_node(tmp_path: Path, **flags: object) -> Node:
    """One that has begun its first membership, of which nothing runs."""
    settings = load({"data_dir": str(tmp_path / "data"), "name": "a", "mdns": False, **flags}, {})
    start = Start(settings=settings, data_dir=DataDir.open(settings.data_dir), token=Token.new(), announce=lambda _: None)
    node = Node(start, api="127.0.0.1:1", listeners=(), secret="secret")
    node._begin()
    return node


async def test_a_worker_that_the_gossip_still_calls_ready_is_unavailable_and_no_bug(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"")
    node = make_node(tmp_path, model=[str(model)])
    me = node.membership.identity.node_id
    candidate = Candidate(node=me, node_name="a", model="m", digest=ModelDigest(b"d" * 32), load=None, rtt_ms=None, local=True)

    with pytest.raises(ModelUnavailable, match="just stopped") as caught:
        node._dispatcher.backend_of(candidate)

    assert caught.value.retryable


async def test_joining_with_a_wrong_address_changes_nothing(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    before = node.membership
    credentials.keep_new_token(node._start.data_dir)
    with pytest.raises(InvalidRequest, match="no address"):
        await node.join("not an address")

    assert node.membership is before


async def test_an_address_given_by_hand_is_remembered_for_the_next_life(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    await node.join("box.local")
    node._begin()

    assert node.membership._contacts.seeds == ("box.local:4850",)


async def test_a_node_that_has_to_take_a_new_key_does_so_and_says_why(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    before = node.membership.identity.node_id
    node._rekey("the other is at 10.0.0.9:4850")
    node._begin()

    assert node.membership.identity.node_id != before
    assert any("took a new identity: the other is at 10.0.0.9:4850" in line for line in node.report().health)


async def test_the_port_of_ollama_is_taken_where_it_is_free_and_done_without_where_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def opened(api: Address) -> int:
        listeners = await front.open_as_ollama(api)
        for listener in listeners:
            await listener.aclose()
        return len(listeners)

    (other,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    taken = local_address(other)
    monkeypatch.setattr(front, "OLLAMA_PORT", taken.port)
    assert await opened(Address("127.0.0.1", 1)) == 0
    assert "nothing listens on" in caplog.text
    assert await opened(taken) == 0  # the API itself is there
    await other.aclose()

    assert await opened(Address("127.0.0.1", 1)) == 1


async def test_what_does_not_fit_into_the_record_is_told_in_the_log_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = make_node(tmp_path)
    told: dict[str, bytes] = {}

    def full(key: str, _value: bytes | None) -> None:
        raise ValueError("a record of more than 256 keys")

    monkeypatch.setattr(node.mesh, "advertise", full)
    node._advertise({"model/aa": b"x"}, told)
    node._advertise({"model/aa": b"x"}, told)

    assert [line for line in caplog.messages if "model/aa" in line] == [
        "the others cannot be told of model/aa: a record of more than 256 keys; a restart of this node helps"
    ]


def test_an_api_that_others_reach_takes_a_key_or_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def check(keys: KeyRing, **flags: object) -> None:
        front.check_open_api(load({"data_dir": str(tmp_path), **flags}, {}), keys)

    some = KeyRing()
    some.new(Wanted(), now=0)
    check(KeyRing(), api="127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="--insecure-api") as caught:
        check(KeyRing(), api="0.0.0.0:1")

    assert "meshnode key new" in caught.value.hint
    assert not caplog.records
    check(some, api="0.0.0.0:1")
    check(KeyRing(), api="0.0.0.0:1", insecure_api=True)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_who_serves_a_peer_logs_the_ids_that_the_entry_node_logs(caplog: pytest.LogCaptureFixture) -> None:
    request = Request(id="req-1", model="m", messages=(), caller="0a0b0c0d/aaaaaaaa", trace=f"00-{'a' * 32}-{'b' * 16}-01")
    with caplog.at_level("INFO", logger="meshnode.node"):
        node_module._log_served(request, NodeId(b"p" * 16), "served", 0.25)

    line = f"m for 70707070: served 250 ms id=req-1 caller=0a0b0c0d/aaaaaaaa trace={'a' * 32}"
    assert caplog.messages == [line]
