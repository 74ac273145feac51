"""Remotes added, kept, told of and removed; and where their secrets are not."""

import logging
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from bridges.fake_cluster import SECRET, Service, cluster_of
from bridges.serving import Asked, scripted

from meshnode.bridges import told
from meshnode.bridges.registry import Registry, service_id
from meshnode.bridges.verdict import Unusable, Verdict
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError, InvalidRequest, NotFound
from meshnode.gossip import limits
from meshnode.gossip.member import Bridged, Member, Model
from meshnode.gossip.record import Record
from meshnode.gossip.view import remotes as read_remotes
from meshnode.names import ModelDigest
from meshnode.remote import MAX_REMOTES, Kind, Remote, checked
from meshnode.testing import fake_member
from meshnode.wire.codec import decode_value
from meshnode.wire.messages import Entry

KEY = "sk-very-secret"


async def list_qwen(asked: Asked) -> None:
    await asked.answer(200, b'{"data":[{"id":"qwen"}]}')


def router(name: str, url: str) -> Remote:
    return checked(Remote(kind=Kind.ROUTER, name=name, url=url, key=KEY))


def registry(directory: Path, *, configured: tuple[Remote, ...] = (), members: tuple[Member, ...] = ()) -> Registry:
    data_dir = DataDir.open(directory / "data")
    return Registry(data_dir, configured=configured, members=lambda: members, rng=random.Random(1))


@asynccontextmanager
async def running(made: Registry) -> AsyncIterator[Registry]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(made.run, on_change=lambda: None))
        yield made
        nursery.cancel_scope.cancel()


async def test_what_was_added_is_offered_and_is_there_after_a_restart(tmp_path: Path) -> None:
    async with scripted(list_qwen) as server:
        async with running(registry(tmp_path)) as first:
            added = await first.add(router("far", str(server.url)))
            offered = [model.name for bridge in first.bridges() for model in bridge.models()]
        again = registry(tmp_path)

    assert added.said == "1 models: qwen"
    assert [bridge.remote for bridge in again.bridges()] == [router("far", str(server.url))]
    assert offered in ([], ["qwen"])
    mode = stat.S_IMODE((tmp_path / "data" / "remotes.json").stat().st_mode)
    assert mode == 0o600


async def test_what_cannot_be_used_is_not_kept_and_the_verdict_is_said(tmp_path: Path) -> None:
    made = registry(tmp_path)
    with pytest.raises(Unusable, match=r"far was not added \(unreachable\)") as caught:
        await made.add(router("far", "http://127.0.0.1:1"))

    assert caught.value.verdict is Verdict.UNREACHABLE
    assert made.bridges() == ()
    assert not (tmp_path / "data" / "remotes.json").exists()


async def test_a_name_is_used_once_and_what_is_removed_stops_at_once(tmp_path: Path) -> None:
    async with scripted(list_qwen) as server, running(registry(tmp_path)) as made:
        await made.add(router("far", str(server.url)))
        with pytest.raises(InvalidRequest, match="meshnode remove far"):
            await made.add(router("far", str(server.url)))
        await made.remove("far")
        with pytest.raises(NotFound):
            await made.remove("far")
        assert made.told() == {}

    assert KEY not in (tmp_path / "data" / "remotes.json").read_text()
    assert registry(tmp_path).bridges() == ()


async def test_one_of_the_configuration_file_is_neither_kept_nor_removed(tmp_path: Path) -> None:
    made = registry(tmp_path, configured=(router("far", "http://127.0.0.1:1"),))
    with pytest.raises(InvalidRequest, match="configuration file"):
        await made.remove("far")

    assert not (tmp_path / "data" / "remotes.json").exists()


async def test_there_are_so_many_and_no_more(tmp_path: Path) -> None:
    made = registry(tmp_path, configured=tuple(router(f"far{n}", "http://127.0.0.1:1") for n in range(MAX_REMOTES)))
    with pytest.raises(InvalidRequest, match="more are not allowed"):
        await made.add(router("one-more", "http://127.0.0.1:1"))


async def test_certificates_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    bad = checked(Remote(kind=Kind.ROUTER, name="far", url="https://127.0.0.1:1", ca="no certificate"))
    with pytest.raises(InvalidRequest, match="certificates for far"):
        await registry(tmp_path).add(bad)


def test_a_damaged_or_readable_file_stops_the_start_and_says_what_to_do(tmp_path: Path) -> None:
    registry(tmp_path)
    path = tmp_path / "data" / "remotes.json"
    path.touch(mode=0o600)
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        registry(tmp_path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        registry(tmp_path)


async def test_no_secret_is_told_logged_or_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = Service("id-1", "svc-1", "qwen", token="jwt-secret")
    async with cluster_of(service) as (_, remote), running(registry(tmp_path)) as made:
        await made.add(remote)
        record = b"".join(made.told().values())
        shown = repr(made.bridges()) + repr([bridge.remote for bridge in made.bridges()]) + repr(made.bridges()[0].facts())

    assert b"svc-1/qwen" in record
    for secret in (SECRET, "jwt-secret"):
        assert secret.encode() not in record
        assert secret not in shown
        assert secret not in caplog.text


async def test_bridges_of_other_nodes_to_the_same_cluster_are_counted(tmp_path: Path) -> None:
    remote = router("far", "http://127.0.0.1:1")
    same = Bridged(name="other-name", kind="router", service=service_id(remote))
    other = Bridged(name="far", kind="router", service="something else")
    holders = [msgspec.structs.replace(fake_member(name), remotes=(same, other)) for name in "abc"]
    lost = msgspec.structs.replace(holders[0], routable=False)
    made = registry(tmp_path, members=(lost, *holders[1:]))

    assert made._alike(service_id(remote)) == 2
    assert made._alike("nobody") == 1


def bridged(number: int, words: str) -> Bridged:
    left_out = tuple((f"svc-{index}", words) for index in range(50))
    return Bridged(name=f"r{number}", kind="cluster", service="s" * 12, state="ready", reason=words, left_out=left_out)


@pytest.mark.parametrize("words", ["short", "long " * 200, "\u00fc" * 600, "\U0001f600" * 600])
@pytest.mark.parametrize("count", [0, 1, 3, MAX_REMOTES])
def test_whatever_remotes_say_the_record_stays_within_its_limits(words: str, count: int) -> None:
    models = [
        Model(name=f"{index}-{'x' * 100}", aliases=("y" * 120,) * 4, digest=ModelDigest(b""), origin="far")
        for index in range(300)
    ]
    values = told.models(models) | told.remotes([bridged(number, words) for number in range(count)])
    record = Record(
        origin=fake_member("a").id,
        epoch=1,
        version=len(values),
        entries={key: Entry(key, 1, value) for key, value in values.items()},
    )

    assert limits.fault(record) is None
    assert record.size < limits.MAX_RECORD_BYTES * 4 / 5
    assert [remote.name for remote in read_remotes(record)] == sorted(f"r{n}" for n in range(count)) or count > 10
    assert len(read_remotes(record)) == count


def test_a_remotes_facts_survive_the_record() -> None:
    facts = Bridged(name="lab", kind="cluster", state="down", reason="no answer", left_out=(("svc", "no URL"),), requests=3)
    (value,) = told.remotes([facts]).values()

    assert decode_value(value, Bridged) == facts
