"""Who is not of the mesh: other meshes on the wire, wrong tokens, floods, copies of a node, other versions."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lan.hosts import LanNode, see_each_other
from netlan import Lan
from processes import wait_until

FLOOD = """
import socket, sys, time
target, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
hello = bytes.fromhex("16030100c8010000c40303") + bytes(20)  # the beginning of a ClientHello, whose rest never comes
held, opened, end = [], 0, time.monotonic() + seconds
while time.monotonic() < end:
    try:
        sock = socket.create_connection((target, port), timeout=1)
        opened += 1
        sock.setblocking(False)
        if opened % 3:
            sock.send(hello if opened % 3 == 1 else b"GET / HTTP/1.1\\r\\n\\r\\n")
        held.append(sock)
    except OSError:
        time.sleep(0.001)
    if len(held) > 400:
        held.pop(0).close()
print(opened)
"""


def test_two_meshes_on_one_wire_never_mix_and_know_of_each_other(lan: Lan, tmp_path: Path) -> None:
    meshes = []
    for letter in "ab":
        directory = tmp_path / letter
        directory.mkdir()
        meshes.append([LanNode(lan.host(f"{letter}{number}"), directory) for number in (1, 2)])
    for mesh in meshes:
        see_each_other(*mesh)
    for mesh, other in (meshes, meshes[::-1]):
        fingerprint = other[0].status()["mesh"]["id"]
        for node in mesh:
            (found,) = wait_until(lambda node=node: node.status()["search"]["other_meshes"], "the other mesh")  # type: ignore[misc]
            assert found["id"] == fingerprint
            assert set(node.members()) == {each.name for each in mesh}
            assert f"Other mesh on this network: {fingerprint}" in node.meshnode("status").stdout
            assert node.status()["health"] == []


def test_a_wrong_token_is_refused_and_both_sides_say_why(lan: Lan, tmp_path: Path) -> None:
    alpha = LanNode(lan.host("alpha"), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    stranger = LanNode(lan.host("stranger"), other, "--peer", alpha.host.address)
    for node, address in ((alpha, stranger.host.address), (stranger, alpha.host.address)):
        line = wait_until(
            lambda node=node, address=address: next((each for each in node.status()["health"] if address in each), ""),  # type: ignore[misc]
            f"{node.name} to say why",
        )
        assert "token" in line


def memory_kib(node: LanNode) -> int:
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def test_a_flood_of_half_handshakes_keeps_no_member_out(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = LanNode(lan.host("alpha"), tmp_path), LanNode(lan.host("beta"), tmp_path)
    see_each_other(alpha, beta)
    before = memory_kib(alpha)
    command = [sys.executable, "-c", FLOOD, alpha.host.address, "4850", "8"]
    flood = lan.host("stranger").popen(*command, stdout=subprocess.PIPE, text=True)
    address = lan.host("stranger").address
    wait_until(lambda: f"no link with {address}" in Path(alpha.output.name).read_text(), "the flood to be felt")
    gamma = LanNode(lan.host("gamma"), tmp_path, "--no-mdns", "--peer", alpha.host.address)
    see_each_other(alpha, gamma, seconds=6)

    assert flood.poll() is None  # it joined during the flood
    assert int(flood.communicate()[0]) > 400
    see_each_other(alpha, beta, gamma)
    assert "unroutable" not in Path(alpha.output.name).read_text()
    assert memory_kib(alpha) - before < 50 * 1024
    refused = [line for line in Path(alpha.output.name).read_text().splitlines() if address in line]
    assert len(refused) < 10


@pytest.mark.parametrize("multicast", [True, False], ids=["with multicast", "without"])
def test_a_copied_data_directory_becomes_another_node(lan: Lan, tmp_path: Path, multicast: bool) -> None:
    """The copy hears its own identity announced elsewhere, or else is refused by a third node, which it remembers from before."""
    hosts = [lan.host(name) for name in ("third", "original", "copy")]
    if not multicast:
        for host in hosts:
            host.block_multicast()
    third = LanNode(hosts[0], tmp_path)
    original = LanNode(hosts[1], tmp_path, *([] if multicast else ["--peer", third.host.address]))
    see_each_other(original, third)
    identity = original.status()["node"]["id"]
    wait_until((original.data_dir / "peers.json").exists, "the original to remember the third")
    shutil.copytree(original.data_dir, tmp_path / "copy")
    copy = LanNode(hosts[2], tmp_path)
    see_each_other(original, third, copy, seconds=30)

    assert original.status()["node"]["id"] == identity != copy.status()["node"]["id"]
    assert any("took a new identity" in line for line in copy.status()["health"])
    assert "takes a new identity" in Path(copy.output.name).read_text()
    assert "takes a new identity" not in Path(original.output.name).read_text()
    for node in (original, third, copy):
        assert len({member["id"] for member in node.members().values()}) == len(node.status()["members"]) == 3


def test_two_nodes_that_start_at_once_on_copies_of_one_directory_settle_it_between_them(lan: Lan, tmp_path: Path) -> None:
    """As after a power cut: neither is the one that was there first, and exactly one keeps the identity."""
    hosts = [lan.host(name) for name in ("one", "two", "third")]
    first = LanNode(hosts[0], tmp_path)
    identity = first.run["node_id"]
    first.stop()
    shutil.copytree(first.data_dir, tmp_path / "two")
    nodes = [LanNode(host, tmp_path) for host in hosts]
    see_each_other(*nodes, seconds=30)

    ids = [node.status()["node"]["id"] for node in nodes]
    assert len(set(ids)) == 3
    assert ids[:2].count(identity) == 1


NEWER = """
import sys
from meshnode.wire import messages
messages.PROTOCOL_MIN, messages.PROTOCOL_MAX = 2, 3
from meshnode.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("by_address", [True, False], ids=["by address", "by mDNS"])
def test_a_node_of_another_protocol_version_is_found_and_shown(lan: Lan, tmp_path: Path, by_address: bool) -> None:
    here = LanNode(lan.host("here"), tmp_path)
    flags = ["--no-mdns", "--peer", here.host.address] if by_address else []
    newer = LanNode(lan.host("newer"), tmp_path, *flags, program=("-c", NEWER))
    for node, other, said in ((here, newer, "speaks protocol 2 to 3"), (newer, here, "speaks protocol 1 to 1")):
        member = wait_until(lambda node=node, other=other: node.members().get(other.name), f"{other.name} to be shown")  # type: ignore[misc]

        assert (member["state"], member["routable"]) == ("alive", False)
        assert said in member["reason"]
        assert member["reason"].endswith("no version in common")
        assert any(line.startswith(f"{other.name} is not routable: {said}") for line in node.status()["health"])
    if not by_address:
        line = f"{newer.host.address}:4850 speaks protocol 2 to 3"
        wait_until(lambda: line in here.status()["search"]["other_versions"], "its announcement to be heard")
