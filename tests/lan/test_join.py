"""`meshnode join` on a LAN: a node that runs changes its mesh, with the token alone or with an address too."""

from pathlib import Path

from lan.hosts import LanNode, see_each_other, token_of
from netlan import Lan
from processes import wait_until


def test_the_token_alone_takes_a_running_node_to_the_mesh_around_it(lan: Lan, tmp_path: Path) -> None:
    ours, own = tmp_path / "ours", tmp_path / "own"
    ours.mkdir()
    own.mkdir()
    alpha, beta = (LanNode(lan.host(name), ours) for name in ("alpha", "beta"))
    loner = LanNode(lan.host("loner"), own)
    see_each_other(alpha, beta)
    (found,) = wait_until(lambda: loner.status()["search"]["other_meshes"], "the loner to hear of the mesh")
    before = loner.status()

    joined = loner.meshnode("join", typed=token_of(ours).read_text())

    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert f"This node is in mesh {found['id']} now." in joined.stdout
    assert "Linked with " in joined.stdout
    see_each_other(alpha, beta, loner)
    after = loner.status()
    assert (after["node"]["id"], after["node"]["pid"]) == (before["node"]["id"], before["node"]["pid"])
    assert after["search"]["other_meshes"] == []  # what it heard of this mesh as a stranger is forgotten


def test_a_member_leaves_its_mesh_for_another_only_when_forced_and_is_welcome_back(lan: Lan, tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    left.mkdir()
    right.mkdir()
    alpha, beta = LanNode(lan.host("alpha"), left), LanNode(lan.host("beta"), right)
    mover = LanNode(lan.host("mover"), left)
    see_each_other(alpha, mover)
    wait_until((mover.data_dir / "peers.json").exists, "the mover to remember alpha")

    refused = mover.meshnode("join", beta.host.address, typed=token_of(right).read_text())
    assert refused.returncode == 2
    assert "with 1 other node" in refused.stderr
    assert mover.members()["alpha"]["routable"]

    moved = mover.meshnode("join", "--force", beta.host.address, typed=token_of(right).read_text())
    assert f"Linked with beta at {beta.host.address}:4850" in moved.stdout, moved.stdout + moved.stderr
    see_each_other(beta, mover)
    wait_until(lambda: alpha.members()["mover"]["state"] == "left", "alpha to be told")
    assert "alpha" not in mover.members()
    assert "mover" not in {name for name, member in alpha.members().items() if member["routable"]}

    back = mover.meshnode("join", "--force", typed=token_of(left).read_text())
    assert back.returncode == 0, back.stdout + back.stderr
    see_each_other(alpha, mover)
    wait_until(lambda: beta.members()["mover"]["state"] == "left", "beta to be told")


def test_a_token_that_no_node_has_leaves_the_reason_and_the_node_running(lan: Lan, tmp_path: Path) -> None:
    """By address: the other end refuses, and `join` says so when it gives up."""
    own = tmp_path / "own"
    own.mkdir()
    alpha, loner = LanNode(lan.host("alpha"), tmp_path), LanNode(lan.host("loner"), own)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    assert alpha.run
    assert loner.run

    failed = loner.meshnode("join", alpha.host.address, typed=token_of(wrong).read_text())

    assert failed.returncode == 2
    assert f"tried       {alpha.host.address}:4850: " in failed.stdout, failed.stdout + failed.stderr
    assert "token" in failed.stdout.partition("tried  ")[2].partition("\n")[0]
    assert "The node keeps trying." in failed.stdout
    assert loner.meshnode("status").returncode in {0, 3}
