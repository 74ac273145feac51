"""Networks as people have them: multicast one way, no router, nothing but link-local addresses, leases that change hands."""

import socket
from pathlib import Path

import pytest
from lan.hosts import LanNode, see_each_other
from netlan import Lan
from processes import wait_until


def test_multicast_that_gets_through_one_way_is_enough(lan: Lan, tmp_path: Path) -> None:
    """Two pairs: which of the two ids is the higher one is drawn, and each may be the one that hears nothing."""
    pairs = []
    for letter in "ab":
        deaf, other = lan.host(f"{letter}deaf"), lan.host(f"{letter}other")
        for tool in ("iptables", "ip6tables"):
            deaf.run(tool, "-A", "INPUT", "-p", "udp", "--dport", "5353", "!", "-i", "lo", "-j", "DROP")
        (tmp_path / letter).mkdir()
        pairs.append([LanNode(host, tmp_path / letter) for host in (deaf, other)])

    for pair in pairs:
        see_each_other(*pair)
        assert pair[0].status()["search"]["mdns"]["heard"] == 0


def test_machines_without_a_router_find_each_other(lan: Lan, tmp_path: Path) -> None:
    hosts = [lan.host(name) for name in ("alpha", "beta")]
    for host in hosts:
        host.run("ip", "route", "delete", "default")

    see_each_other(*(LanNode(host, tmp_path) for host in hosts))


def test_machines_with_nothing_but_ipv6_link_local_addresses_find_each_other(lan: Lan, tmp_path: Path) -> None:
    """Two of them on one cable have no more. Such an address is never told in a record: its scope means nothing elsewhere."""
    hosts = [lan.host(name) for name in ("alpha", "beta")]
    if not hosts[0].address6:
        pytest.skip("no IPv6 on this machine")
    for host in hosts:
        host.run("ip", "address", "flush", "dev", "eth0", "scope", "global")
    alpha, beta = (LanNode(host, tmp_path) for host in hosts)
    see_each_other(alpha, beta)

    assert not any("fe80" in addr for addr in alpha.members()["alpha"]["addrs"])


def test_a_network_that_is_plugged_in_while_nodes_run_brings_them_together(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = LanNode(lan.host("alpha"), tmp_path), LanNode(lan.host("beta", network=lan.network("b")), tmp_path)
    for node in (alpha, beta):
        wait_until(lambda node=node: node.status()["search"]["mdns"]["state"] == "on", "mDNS")  # type: ignore[misc]
    assert list(alpha.members()) == ["alpha"]

    there = alpha.host.attach(lan.network("b"))
    see_each_other(alpha, beta)

    assert f"{there}:4850" in beta.members()["alpha"]["addrs"]


def test_two_hosts_that_swap_addresses_are_still_themselves(lan: Lan, tmp_path: Path) -> None:
    """Without multicast: the third knows each at an address where the other is now, and they know only the third's."""
    hosts = [lan.host(name) for name in ("alpha", "beta", "gamma")]
    for host in hosts:
        host.block_multicast()
    gamma = LanNode(hosts[2], tmp_path)
    alpha, beta = (LanNode(host, tmp_path, "--peer", gamma.host.address) for host in hosts[:2])
    see_each_other(alpha, beta, gamma)
    ids = {node.name: node.status()["node"]["id"] for node in (alpha, beta, gamma)}
    first, second = alpha.host.address, beta.host.address
    for host, address in ((alpha.host, "10.77.0.99"), (beta.host, first), (alpha.host, second)):
        host.change_address(address)
    for node, address in ((alpha, second), (beta, first)):
        wait_until(lambda node=node, address=address: f"{address}:4850" in gamma.members()[node.name]["addrs"], "the news")  # type: ignore[misc]
    see_each_other(alpha, beta, gamma, seconds=40)

    for node in (alpha, beta, gamma):
        assert {name: member["id"] for name, member in node.members().items()} == ids


def test_a_node_that_was_killed_and_comes_back_elsewhere_is_the_same_node(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = (LanNode(lan.host(name), tmp_path) for name in ("alpha", "beta"))
    see_each_other(alpha, beta)
    before = alpha.members()["beta"]
    beta.kill()
    wait_until(lambda: not alpha.members()["beta"]["routable"], "alpha to miss beta")
    beta.host.change_address("10.77.0.99")
    beta = LanNode(beta.host, tmp_path)
    see_each_other(alpha, beta)

    after = alpha.members()["beta"]
    assert len(alpha.status()["members"]) == 2
    assert after["id"] == before["id"]
    assert after["epoch"] > before["epoch"]
    assert "10.77.0.99:4850" in after["addrs"]


def test_another_program_on_the_port_of_mdns_stops_discovery_and_nothing_else(lan: Lan, tmp_path: Path) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")

    def take(family: socket.AddressFamily) -> socket.socket:
        taken = socket.socket(family, socket.SOCK_DGRAM)
        taken.bind(("", 5353))
        return taken

    with beta.inside(lambda: take(socket.AF_INET6)):
        other = LanNode(alpha, tmp_path)
        node = LanNode(beta, tmp_path, "--peer", alpha.address)
        mdns = wait_until(lambda: said if (said := node.status()["search"]["mdns"])["state"] == "off" else {}, "mDNS to be off")
        see_each_other(node, other)

    assert "UDP port 5353 is taken by another program" in mdns["reason"]
