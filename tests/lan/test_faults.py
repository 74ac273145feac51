"""What a mesh makes of nodes that die, stop, or cannot be heard. Real processes in network namespaces; limits are for a broken
program, `scripts/bench/membership.py` has the figures."""

import signal
import time
from pathlib import Path

from lan.hosts import LanNode
from netlan import Host, Lan
from processes import wait_until

UNROUTABLE_S = 5.0
DOWN_S = 15.0
HEAL_S = 40.0
DOWN = " node: down: "
"""Begins a line of the log about a verdict; that a link is down is another matter."""


def mesh(lan: Lan, directory: Path, size: int = 5, *, limit: float = 20.0) -> list[LanNode]:
    """Nodes that have all joined by the address of the first, and can all send to each other."""
    first = LanNode(lan.host("n0"), directory, "--no-mdns")
    others = [LanNode(lan.host(f"n{number}"), directory, "--no-mdns", "--peer", first.host.address) for number in range(1, size)]
    nodes = [first, *others]
    for node in nodes:
        assert node.run
    wait_for_all(nodes, seconds=limit)
    return nodes


def wait_for_all(nodes: list[LanNode], *, seconds: float) -> None:
    """Until each is alive and routable at every one, by `seconds` from now."""
    end = time.monotonic() + seconds
    names = {node.name for node in nodes}
    for node in nodes:
        what = f"{node.name} to see {', '.join(sorted(names))}"
        wait_until(lambda node=node: well(node) == names, what, seconds=end - time.monotonic())  # type: ignore[misc]


def well(node: LanNode) -> set[str]:
    return {name for name, member in node.members().items() if member["routable"] and member["state"] == "alive"}


def wait_unroutable(victim: LanNode, others: list[LanNode], *, times: int = 1) -> None:
    wait_for_line(f" node: unroutable: {victim.name}: ", others, seconds=UNROUTABLE_S, times=times)


def wait_down(victim: LanNode, others: list[LanNode]) -> list[str]:
    """The reasons that they give, when all call it down."""
    wait_for_line(f"{DOWN}{victim.name}: ", others, seconds=DOWN_S)
    members = [node.members()[victim.name] for node in others]
    assert {member["state"] for member in members} == {"down"}
    return [member["reason"] for member in members]


def wait_for_line(part: str, nodes: list[LanNode], *, seconds: float, times: int = 1) -> None:
    """Until each has logged it so often. Asking the nodes would wake them."""
    end = time.monotonic() + seconds
    for node in nodes:
        left = end - time.monotonic()
        wait_until(lambda node=node: node.printed().count(part) >= times, f"{part!r} of {node.name}", seconds=left)  # type: ignore[misc]


def watch(nodes: list[LanNode], seconds: float) -> None:
    """For so long nobody may be called down by anybody."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert not downs(nodes)
        time.sleep(0.2)


def heartbeat_together(victim: LanNode, others: list[LanNode]) -> None:
    """A short stop, after which `victim` owes everyone a heartbeat: from then on all hear it in the same moment, once a second.
    Returns shortly before such a moment. Until then each had its own, and some hear it later than others."""
    victim.process.send_signal(signal.SIGSTOP)
    wait_unroutable(victim, others)
    victim.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 2.9
    wait_for_all([victim, *others], seconds=UNROUTABLE_S)
    watch([victim, *others], end - time.monotonic())


def downs(nodes: list[LanNode]) -> list[str]:
    return [f"{node.name}: {line}" for node in nodes for line in node.printed().splitlines() if DOWN in line]


def deafen(host: Host, to: Host) -> None:
    """Nothing that `to` sends gets to `host`, over IPv4 or IPv6; `unblock` undoes it."""
    mac = to.run("cat", "/sys/class/net/eth0/address").stdout.strip()
    for tool in ("iptables", "ip6tables") if host.address6 else ("iptables",):
        host.run(tool, "-w", "-A", "INPUT", "-m", "mac", "--mac-source", mac, "-j", "DROP")


def test_a_killed_node_is_not_routable_at_once_and_soon_down_because_its_host_refuses(lan: Lan, tmp_path: Path) -> None:
    victim, *others = reversed(mesh(lan, tmp_path))
    victim.kill()
    wait_unroutable(victim, others)
    reasons = wait_down(victim, others)

    assert any("its host refuses connections" in reason for reason in reasons), reasons
    assert any(f"{victim.name} is down since" in line for line in others[0].status()["health"])


def test_a_host_without_power_is_down_because_nobody_hears_it(lan: Lan, tmp_path: Path) -> None:
    victim, *others = reversed(mesh(lan, tmp_path))
    victim.host.cut()
    wait_unroutable(victim, others)
    reasons = wait_down(victim, others)

    assert any("probes silent" in reason for reason in reasons), reasons
    assert not [line for line in downs(others) if f"{DOWN}{victim.name}: " not in line]


def test_a_node_that_stops_for_almost_eight_seconds_is_never_down_and_back_at_once(lan: Lan, tmp_path: Path) -> None:
    """It stops just before a heartbeat, so that it is silent for most of a second more."""
    nodes = mesh(lan, tmp_path)
    victim, others = nodes[2], [*nodes[:2], *nodes[3:]]
    heartbeat_together(victim, others)
    victim.process.send_signal(signal.SIGSTOP)
    end = time.monotonic() + 7.7
    wait_unroutable(victim, others, times=2)
    watch(nodes, end - time.monotonic())
    victim.process.send_signal(signal.SIGCONT)
    wait_for_all(nodes, seconds=UNROUTABLE_S)
    watch(nodes, 2.0)


def test_a_node_that_was_called_down_while_it_stopped_refutes_it(lan: Lan, tmp_path: Path) -> None:
    """Its links outlive the verdict, and nobody hears it who could pass an accusation on to it while it is stopped."""
    nodes = mesh(lan, tmp_path)
    victim, others = nodes[2], [*nodes[:2], *nodes[3:]]
    heartbeat_together(victim, others)
    before = victim.printed().count(" refuted: ")
    victim.process.send_signal(signal.SIGSTOP)
    wait_down(victim, others)
    relayed = time.monotonic() + 1.0  # until then somebody may still pass the verdict on by chance
    wait_until(lambda: time.monotonic() > relayed, "the end of that")
    victim.process.send_signal(signal.SIGCONT)
    wait_until(lambda: victim.printed().count(" refuted: ") > before, "it to refute that", seconds=UNROUTABLE_S)
    wait_for_all(nodes, seconds=UNROUTABLE_S)


def test_at_ten_percent_loss_nobody_is_down(lan: Lan, tmp_path: Path) -> None:
    nodes = mesh(lan, tmp_path)
    for node in nodes:
        node.host.drop_loss(0.1)
    watch(nodes, 20.0)
    for node in nodes:
        node.host.unblock()
    wait_for_all(nodes, seconds=HEAL_S)


def test_who_alone_cannot_hear_a_node_does_not_send_to_it_and_nobody_is_down(lan: Lan, tmp_path: Path) -> None:
    deaf, unheard, *others = nodes = mesh(lan, tmp_path)
    deafen(deaf.host, unheard.host)
    wait_unroutable(unheard, [deaf])
    watch(nodes, 12.0)

    assert "others hear it" in deaf.members()["n1"]["reason"]
    assert all({deaf.name, unheard.name} <= well(other) for other in others)
    deaf.host.unblock()
    wait_for_all(nodes, seconds=HEAL_S)


def test_both_sides_of_a_partition_call_the_other_down_and_heal(lan: Lan, tmp_path: Path) -> None:
    nodes = mesh(lan, tmp_path)
    sides = nodes[:2], nodes[2:]
    for one in sides[0]:
        for other in sides[1]:
            deafen(one.host, other.host)
            deafen(other.host, one.host)
    for here, there in (sides, sides[::-1]):
        for victim in there:
            wait_down(victim, here)
    assert all({node.name for node in side} == well(side[0]) for side in sides)

    for node in nodes:
        node.host.unblock()
    wait_for_all(nodes, seconds=HEAL_S)


def test_a_node_killed_and_started_again_at_once_is_one_member_with_a_higher_epoch(lan: Lan, tmp_path: Path) -> None:
    *others, victim = mesh(lan, tmp_path)
    epoch = others[0].members()[victim.name]["epoch"]
    victim.kill()
    again = LanNode(victim.host, tmp_path, "--no-mdns")
    wait_until(lambda: all(node.members()[again.name]["epoch"] > epoch for node in others), "the new epoch")
    wait_for_all([*others, again], seconds=20.0)

    assert all(len(node.status()["members"]) == len(others) + 1 for node in (*others, again))


def test_twenty_nodes_join_together_by_one_address(lan: Lan, tmp_path: Path) -> None:
    assert len(mesh(lan, tmp_path, 20, limit=30.0)) == 20
