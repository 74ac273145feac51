"""The LAN itself: what its hosts hear of each other, and what its faults take away."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import netlan
import pytest
from netlan import Host, Lan
from processes import wait_until

MDNS = ("224.0.0.251", 5353)
MARKER = ("224.0.0.251", 5354)
"""Sent after what should be lost: once it is there, the other would have been, too."""
SHORT_S = 0.3
"""How long to wait for what must not come."""


def listen(host: Host, family: int = socket.AF_INET) -> socket.socket:
    return host.inside(lambda: socket.create_server(("", 0), family=family))


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def can_dial(host: Host, address: str, port: int) -> bool:
    try:
        host.connect(port, address, timeout=SHORT_S).close()
    except TimeoutError:
        return False
    return True


def hear(host: Host, group: tuple[str, int]) -> socket.socket:
    def join() -> socket.socket:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.settimeout(5)
        receiver.bind(("", group[1]))
        membership = socket.inet_aton(group[0]) + socket.inet_aton(host.address)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return receiver

    return host.inside(join)


def multicast(host: Host, *groups: tuple[str, int]) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for group in groups:
                sender.sendto(host.name.encode(), group)

    host.inside(send)


def hears_mdns(receiver: Host, sender: Host) -> bool:
    with hear(receiver, MDNS) as mdns, hear(receiver, MARKER) as marker:
        multicast(sender, MDNS, MARKER)
        assert marker.recv(100) == sender.name.encode()
        mdns.setblocking(False)
        try:
            return mdns.recv(100) == sender.name.encode()
        except BlockingIOError:
            return False


def namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").glob(f"{netlan.PREFIX}-*")}


def ours() -> set[str]:
    """Other runs on this machine may have LANs of their own."""
    return {name for name in namespaces() if name.startswith(f"{netlan.PREFIX}-{os.getpid()}-")}


def test_hosts_dial_each_other_both_ways(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")

    with listen(alpha) as at_alpha, listen(beta) as at_beta:
        assert can_dial(alpha, beta.address, port_of(at_beta))
        assert can_dial(beta, alpha.address, port_of(at_alpha))


def test_hosts_reach_each_other_by_ipv6_at_once(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    if not beta.address6:
        pytest.skip("no IPv6 on this machine")

    with listen(beta, socket.AF_INET6) as server:
        assert can_dial(alpha, beta.address6, port_of(server))


def test_loopback_is_each_hosts_own(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")

    with listen(alpha) as server:
        assert can_dial(alpha, "127.0.0.1", port_of(server))
        with pytest.raises(ConnectionRefusedError):
            beta.connect(port_of(server))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(server)))


def test_multicast_is_heard_by_the_others(lan: Lan) -> None:
    alpha, beta, gamma = lan.host("alpha"), lan.host("beta"), lan.host("gamma")

    assert hears_mdns(beta, alpha)
    assert hears_mdns(gamma, alpha)


@pytest.mark.parametrize("blocked", ["alpha", "beta"])
def test_a_host_with_multicast_blocked_neither_hears_nor_is_heard_until_it_is_unblocked(lan: Lan, blocked: str) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    lan.host(blocked).block_multicast()

    assert not hears_mdns(beta, alpha)

    lan.host(blocked).unblock()

    assert hears_mdns(beta, alpha)


def test_a_one_way_firewall_lets_one_side_dial_and_answers_through(lan: Lan) -> None:
    alpha, beta, gamma = lan.host("alpha"), lan.host("beta"), lan.host("gamma")
    with listen(alpha) as at_alpha, listen(beta) as at_beta:
        alpha.block_incoming_from(beta, port_of(at_alpha))

        assert not can_dial(beta, alpha.address, port_of(at_alpha))
        assert can_dial(gamma, alpha.address, port_of(at_alpha))
        with alpha.connect(port_of(at_beta), beta.address) as dialled, at_beta.accept()[0] as accepted:
            accepted.sendall(b"answer")
            assert dialled.recv(100) == b"answer"


def test_a_one_way_firewall_stops_ipv6_and_every_interface_of_the_other(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    if not beta.address6:
        pytest.skip("no IPv6 on this machine")
    second = lan.network("b")
    there = alpha.attach(second)
    beta.attach(second)
    with listen(alpha) as server, listen(alpha, socket.AF_INET6) as server6:
        alpha.block_incoming_from(beta, port_of(server))
        alpha.block_incoming_from(beta, port_of(server6))

        assert not can_dial(beta, there, port_of(server))
        assert not can_dial(beta, alpha.address6, port_of(server6))


def test_a_host_that_was_cut_off_is_silent_and_its_connections_live_again_once_mended(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    with listen(beta) as server, alpha.connect(port_of(server), beta.address) as dialled, server.accept()[0] as accepted:
        beta.cut()

        assert not can_dial(alpha, beta.address, port_of(server))
        assert "state UP" in beta.run("ip", "link", "show", "eth0").stdout  # nobody is told

        beta.mend()

        assert can_dial(alpha, beta.address, port_of(server))
        dialled.sendall(b"still here")
        assert accepted.recv(100) == b"still here"


def test_a_changed_address_answers_and_the_old_one_does_not(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    old = beta.address
    with listen(beta) as server:
        beta.change_address("10.77.0.99")

        assert beta.address == "10.77.0.99"
        assert can_dial(alpha, "10.77.0.99", port_of(server))
        with pytest.raises(OSError, match=r"timed out|No route"):
            alpha.connect(port_of(server), old, timeout=SHORT_S)
    assert hears_mdns(alpha, beta)


def test_a_host_that_loses_everything_is_not_reached_but_reaches_itself(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    beta.drop_loss(1)

    with listen(beta) as server:
        assert not can_dial(alpha, beta.address, port_of(server))
        assert can_dial(beta, "127.0.0.1", port_of(server))


def test_a_second_network_is_another_wire_and_a_host_on_both_does_not_forward(lan: Lan) -> None:
    alpha, both, beta = lan.host("alpha"), lan.host("both"), lan.host("beta", network=lan.network("b"))
    there = both.attach(lan.network("b"))

    with listen(both) as at_both, listen(beta) as at_beta:
        assert there == "10.77.1.2"
        assert beta.address == "10.77.1.1"
        assert can_dial(beta, there, port_of(at_both))
        assert can_dial(both, beta.address, port_of(at_beta))
        assert not can_dial(alpha, beta.address, port_of(at_beta))


def test_two_interfaces_may_be_on_one_wire(lan: Lan) -> None:
    alpha, beta = lan.host("alpha"), lan.host("beta")
    second = beta.attach(lan.network())

    with listen(beta) as server:
        assert can_dial(alpha, beta.address, port_of(server))
        assert can_dial(alpha, second, port_of(server))


def test_a_decoy_has_its_address_and_comes_up(lan: Lan) -> None:
    alpha = lan.host("alpha")
    alpha.add_dummy("docker0", "172.17.0.1/16")

    link = json.loads(alpha.run("ip", "-j", "address", "show", "docker0").stdout)[0]

    assert link["addr_info"][0]["local"] == "172.17.0.1"
    wait_until(lambda: "state UP" in alpha.run("ip", "link", "show", "docker0").stdout, "docker0 to come up", seconds=5)


def test_two_lans_do_not_meet(lan: Lan) -> None:
    with netlan.lan() as other:
        alpha, beta = lan.host("alpha"), lan.host("beta")
        stranger = other.host("alpha"), other.host("beta")

        with listen(beta) as server:
            assert stranger[1].address == beta.address
            assert can_dial(alpha, beta.address, port_of(server))
            with pytest.raises(ConnectionRefusedError):
                stranger[0].connect(port_of(server), beta.address)


def test_programs_run_on_a_host_see_the_machines_files_and_the_hosts_network(lan: Lan, tmp_path: Path) -> None:
    alpha = lan.host("alpha")
    (tmp_path / "note").write_text("from outside")

    assert alpha.run("cat", str(tmp_path / "note")).stdout == "from outside"
    assert alpha.address in alpha.run("ip", "address").stdout
    assert alpha.run("false", check=False).returncode == 1
    with pytest.raises(subprocess.CalledProcessError):
        alpha.run("false")


def test_the_thread_that_asks_stays_in_its_own_network(lan: Lan) -> None:
    own = os.readlink("/proc/thread-self/ns/net")

    assert lan.host("alpha").inside(lambda: os.readlink("/proc/thread-self/ns/net")) != own
    assert os.readlink("/proc/thread-self/ns/net") == own


def test_an_error_takes_the_lan_down_with_what_was_started_and_what_that_started() -> None:
    started: list[int] = []

    def fail() -> None:
        with netlan.lan() as lan:
            process = lan.host("alpha").popen("sh", "-c", "sleep 1000 & echo $!; wait", stdout=subprocess.PIPE, text=True)
            assert process.stdout
            started.extend([process.pid, int(process.stdout.readline())])
            assert len(ours()) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert not ours()
    wait_until(lambda: not any(map(is_running, started)), "both processes to be gone", seconds=5)


def is_running(process: int) -> bool:
    """A zombie does not run: nobody may be there to bury it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_killed_process_left_behind_is_swept_away_by_the_next_lan() -> None:
    script = "import netlan, os\nwith netlan.lan() as lan:\n lan.host('x').popen('sleep', '1000'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(netlan.__file__).parent)
    left = {name for name in namespaces() if name.endswith("-x")}
    assert left

    with netlan.lan():
        assert not left & namespaces()


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert "root" in netlan.available.__wrapped__()
