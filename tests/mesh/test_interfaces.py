"""Which of a machine's addresses are told to others, and which of theirs are dialled first."""

from ipaddress import ip_interface

from meshnode.mesh.interfaces import MAX_TOLD, Interface, link_local, listening, scan, told


def interface(name: str, *addresses: str, index: int = 2, default: bool = False) -> Interface:
    networks = tuple(ip_interface(address) for address in addresses)
    return Interface(name=name, index=index, networks=networks, has_default_route=default)


LOOPBACK = interface("lo", "127.0.0.1/8", "::1/128", index=1)
LAN = interface("eth0", "192.168.1.5/24", "fe80::1%2/64", "fd00::5/64", default=True)
DOCKER = interface("docker0", "172.17.0.1/16", "fe80::2%3/64", index=3)


def test_lan_comes_before_vpn_and_link_local_is_last_or_not_told() -> None:
    vpn = interface("wg0", "10.9.0.2/24", "fd99::2/64")
    unplugged = interface("eth1", "169.254.3.4/16", "fe80::7%4/64")

    assert told((LOOPBACK, unplugged, vpn, LAN)) == ("192.168.1.5", "fd00::5", "10.9.0.2", "fd99::2", "169.254.3.4")


def test_bridges_of_containers_and_virtual_machines_are_left_out_and_br0_is_a_lan() -> None:
    names = ["docker0", "br-0a1b2c3d4e5f", "virbr0", "cni0", "podman1", "lxcbr0", "lxdbr0", "veth12ab", "vboxnet0", "vmnet8"]
    names += ["flannel.1", "cali0123", "kube-ipvs0", "awdl0", "bridge100"]
    decoys = [interface(name, "172.17.0.1/16", "fe80::9%9/64") for name in names]

    assert told((*decoys, interface("br0", "192.168.1.5/24"))) == ("192.168.1.5",)
    assert link_local(decoys) == ()


def test_of_two_lans_the_one_with_the_default_route_comes_first() -> None:
    assert told((interface("eth0", "10.0.0.5/24"), interface("wlan0", "192.168.1.6/24", default=True))) == (
        "192.168.1.6",
        "10.0.0.5",
    )


def test_a_full_tunnel_vpn_still_comes_after_the_lan() -> None:
    assert told((interface("tun0", "10.8.0.2/24", default=True), interface("eth0", "10.0.0.5/24"))) == ("10.0.0.5", "10.8.0.2")


def test_no_more_addresses_are_told_than_a_dialler_would_try() -> None:
    many = interface("eth0", *(f"10.0.{number}.1/24" for number in range(20)))
    private = interface("eth0", "10.0.0.1/24", *(f"2001:db9::{number}/64" for number in range(1, 12)))

    assert len(told((many,))) == MAX_TOLD
    assert told((private,)) == ("10.0.0.1", "2001:db9::1", "2001:db9::2")


def test_loopback_and_containers_alone_give_nothing_to_tell() -> None:
    assert told((LOOPBACK, DOCKER)) == ()


def test_link_local_addresses_for_neighbours_have_no_scope() -> None:
    assert link_local((LOOPBACK, LAN, DOCKER)) == ("fe80::1",)


def test_discovery_listens_where_the_announced_addresses_are() -> None:
    other = interface("eth1", "10.0.0.5/24", index=4)

    assert listening(["10.0.0.5"], (LOOPBACK, LAN, other, DOCKER)) == (other,)
    assert listening(["fe80::1"], (LOOPBACK, LAN, other)) == (LAN,)
    assert listening(["127.0.0.1"], (LOOPBACK, LAN)) == (LOOPBACK,)


def test_discovery_listens_on_every_lan_when_the_announced_address_is_somebody_elses() -> None:
    assert listening(["203.0.113.9"], (LOOPBACK, LAN, DOCKER)) == (LAN,)


def test_this_machine_has_a_loopback_interface() -> None:
    assert any(found.is_loopback and found.index for found in scan())
