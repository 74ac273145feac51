"""Nodes that find each other on a LAN, and what is in their way. Real processes, real multicast; limits are for a broken program,
`scripts/bench/joining.py` has the figures."""

from pathlib import Path
from typing import Any

from lan.hosts import LanNode, see_each_other, token_of
from netlan import Lan
from processes import wait_until

STORY: Any = [{"role": "user", "content": "Tell me a story about a fox."}]


def reason(node: LanNode, other: str) -> str:
    return str(node.members().get(other, {}).get("reason", ""))


def test_three_hosts_find_each_other_and_one_streams_the_answer_of_another(lan: Lan, tmp_path: Path) -> None:
    alpha = LanNode(lan.host("alpha"), tmp_path, worker=True)
    beta, gamma = (LanNode(lan.host(name), tmp_path) for name in ("beta", "gamma"))
    see_each_other(alpha, beta, gamma)
    gamma.wait_for_model("demo")

    with gamma.client().chat.completions.with_streaming_response.create(
        model="demo", messages=STORY, max_tokens=20, stream=True
    ) as answer:
        assert answer.headers["x-meshnode-node"] == "alpha"
        assert sum('"content"' in line for line in answer.iter_lines()) > 5

    beta.stop()
    wait_until(lambda: gamma.members()["beta"]["state"] == "left", "the goodbye")


def test_without_multicast_one_address_is_enough_and_is_remembered(lan: Lan, tmp_path: Path) -> None:
    hosts = [lan.host(name) for name in ("alpha", "beta", "gamma")]
    for host in hosts:
        host.block_multicast()
    alpha, beta = (LanNode(host, tmp_path) for host in hosts[:2])
    status = wait_until(
        lambda: said if "Alone" in (said := beta.meshnode("status").stdout) else "", "beta to say that it is alone"
    )
    assert "no other machine is heard: multicast may not get through" in status or "own announcement is heard" in status
    assert "meshnode join HOST" in status

    joined = beta.meshnode("join", alpha.host.address, typed=token_of(tmp_path).read_text())
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert f"Linked with alpha at {alpha.host.address}:4850" in joined.stdout
    gamma = LanNode(hosts[2], tmp_path, "--peer", beta.host.address)
    see_each_other(alpha, beta, gamma)

    for node in (alpha, beta, gamma):
        wait_until((node.data_dir / "peers.json").exists, "the memory")
        node.kill()
    again = [LanNode(host, tmp_path) for host in hosts]
    see_each_other(*again)


def test_container_bridges_are_not_told_and_a_second_network_is(lan: Lan, tmp_path: Path) -> None:
    """Both hosts have a docker0 with the same address, as all docker hosts do; what they share is only the second network."""
    second = lan.network("b")
    hosts = [lan.host("alpha"), lan.host("beta", network=lan.network("c"))]
    addresses = []
    for host in hosts:
        host.add_dummy("docker0", "172.17.0.1/16")
        addresses.append(host.attach(second))
    alpha, beta = (LanNode(host, tmp_path) for host in hosts)
    see_each_other(alpha, beta)

    for node, host, address in zip((alpha, beta), hosts, addresses, strict=True):
        told = {addr.rpartition(":")[0] for addr in node.members()[node.name]["addrs"]}
        assert {host.address, address} <= told
        assert "172.17.0.1" not in told
    assert alpha.members()["beta"]["addr"].startswith(addresses[1]) or beta.members()["alpha"]["addr"].startswith(addresses[0])


def test_a_pair_links_whichever_side_can_dial(lan: Lan, tmp_path: Path) -> None:
    """In two meshes at once: in each the firewall of one host lets nothing in from the other."""
    pairs = []
    for walled, other in (("a1", "a2"), ("b2", "b1")):
        lan.host(walled).block_incoming_from(lan.host(other), 4850)
        directory = tmp_path / walled
        directory.mkdir()
        pairs.append([LanNode(lan.host(name), directory) for name in sorted((walled, other))])
    for pair in pairs:
        see_each_other(*pair)


def test_a_pair_that_cannot_dial_at_all_is_not_routable_with_the_reason_and_the_third_has_both(lan: Lan, tmp_path: Path) -> None:
    hosts = [lan.host(name) for name in ("alpha", "beta", "gamma")]
    hosts[0].block_incoming_from(hosts[1], 4850)
    hosts[1].block_incoming_from(hosts[0], 4850)
    alpha, beta, gamma = (LanNode(host, tmp_path) for host in hosts)
    see_each_other(alpha, gamma)
    see_each_other(beta, gamma)
    said = wait_until(lambda: found if "no answer within 3 s" in (found := reason(alpha, "beta")) else "", "alpha to say why")

    assert hosts[1].address in said or (hosts[1].address6 and hosts[1].address6 in said)
    assert not alpha.members()["beta"]["routable"]
    assert any("beta is not routable" in line for line in alpha.status()["health"])


def test_two_machines_whose_firewalls_let_nothing_in_know_of_each_other_and_say_what_to_do(lan: Lan, tmp_path: Path) -> None:
    hosts = [lan.host(name) for name in ("alpha", "beta")]
    hosts[0].block_incoming_from(hosts[1], 4850)
    hosts[1].block_incoming_from(hosts[0], 4850)
    alpha, beta = (LanNode(host, tmp_path) for host in hosts)
    for node, other in ((alpha, beta), (beta, alpha)):
        text = wait_until(
            lambda node=node: said if "Alone" in (said := node.meshnode("status").stdout) else "",  # type: ignore[misc]
            f"{node.name} to say that it is alone",
        )

        assert f"{other.host.address}:4850 for node {other.run['node_id'][:8]}: no answer within 3 s" in text
        assert "none of this mesh" not in text
        assert "does a firewall, there or here, let its mesh port through?" in text

    hosts[0].unblock()
    see_each_other(alpha, beta, seconds=40)


def test_a_host_that_is_cut_off_is_missed_and_comes_back_by_itself(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = (LanNode(lan.host(name), tmp_path) for name in ("alpha", "beta"))
    see_each_other(alpha, beta)
    beta.host.cut()
    wait_until(lambda: reason(alpha, "beta").startswith("no frame for"), "alpha to miss beta")
    beta.host.mend()
    see_each_other(alpha, beta, seconds=40)


def test_a_host_with_a_new_address_is_reached_there(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = (LanNode(lan.host(name), tmp_path) for name in ("alpha", "beta"))
    see_each_other(alpha, beta)
    old = beta.host.address
    beta.host.change_address("10.77.0.99")
    wait_until(lambda: "10.77.0.99:4850" in alpha.members()["beta"]["addrs"], "the new address")
    see_each_other(alpha, beta, seconds=40)

    assert f"{old}:4850" not in alpha.members()["beta"]["addrs"]


def test_a_node_whose_network_comes_up_late_joins_then(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    beta.ports["eth0"].set("down")
    late, other = LanNode(beta, tmp_path), LanNode(alpha, tmp_path)
    assert late.status()["search"]["mdns"]["state"] in {"off", "on", "starting"}
    beta.ports["eth0"].set("up")
    see_each_other(late, other, seconds=30)


def test_without_mdns_nothing_is_announced_and_nothing_is_heard(lan: Lan, tmp_path: Path) -> None:
    quiet, loud = LanNode(lan.host("quiet"), tmp_path, "--no-mdns"), LanNode(lan.host("loud"), tmp_path)
    wait_until(lambda: loud.status()["search"]["mdns"]["state"] == "on", "mDNS of the other")
    wait_until(lambda: (loud.status()["search"]["alone_s"] or 0) > 4, "four seconds alone")

    assert quiet.status()["search"]["mdns"] == {
        "state": "off", "reason": "by the setting --no-mdns", "interfaces": [], "heard": 0, "echo": False,
    }  # fmt: skip
    assert list(loud.members()) == ["loud"]
