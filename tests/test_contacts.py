"""Whom a node remembers."""

from pathlib import Path

import pytest

from meshnode.contacts import MAX_PEERS, MAX_SEEDS, Contacts, load, save
from meshnode.datadir import DataDir
from meshnode.names import MeshId, NodeId

MESH, OTHER = MeshId(b"mesh-one"), MeshId(b"mesh-two")
NODE = NodeId(b"n" * 16)


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    return DataDir.open(tmp_path / "data")


def test_what_was_kept_is_found_again_for_the_same_mesh_only(data_dir: DataDir) -> None:
    contacts = Contacts(mesh=MESH).met({NODE: ("10.0.0.1:4850", "[fd00::1]:4850")}).with_seed("attic:4850")
    save(data_dir, contacts)

    assert load(data_dir, MESH) == contacts
    assert load(data_dir, OTHER) == Contacts(mesh=OTHER)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'{"mesh": 7}',
        b'{"mesh": "6d6573682d6f6e65", "peers": [{"id": "zz", "addrs": []}]}',
        b'{"mesh": "6d6573682d6f6e65", "peers": [{"id": "zz000000000000000000000000000000", "addrs": []}]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_no_reason_not_to_start(data_dir: DataDir, content: bytes) -> None:
    data_dir.write("peers.json", content)

    assert load(data_dir, MESH) == Contacts(mesh=MESH)


def test_the_latest_met_are_kept_and_no_more_than_there_is_room_for() -> None:
    contacts = Contacts(mesh=MESH)
    for number in range(MAX_PEERS + 10):
        contacts = contacts.met({NodeId(number.to_bytes(16, "big")): ("10.0.0.1:1",)})
    contacts = contacts.met({NodeId((20).to_bytes(16, "big")): ("10.0.0.2:1",)})
    contacts = contacts.met({NODE: ("10.0.0.3:1",)})

    assert len(contacts.peers) == MAX_PEERS
    assert list(contacts.peers)[-2:] == [NodeId((20).to_bytes(16, "big")), NODE]
    assert NodeId((10).to_bytes(16, "big")) not in contacts.peers


def test_seeds_are_kept_once_each_the_latest_last() -> None:
    contacts = Contacts(mesh=MESH)
    for seed in ("a:1", "b:1", "a:1"):
        contacts = contacts.with_seed(seed)
    assert contacts.seeds == ("b:1", "a:1")
    for number in range(2 * MAX_SEEDS):
        contacts = contacts.with_seed(f"{number}:1")
    assert len(contacts.seeds) == MAX_SEEDS
