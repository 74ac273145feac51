"""Which network addresses a bridge may connect to, whatever a name resolves to (pure; security rule 21).

An operator registers an address, and a cluster tells more of them: neither may make this node ask the machine's metadata service,
which hands out credentials, or something on the link or on this machine that was never meant.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_METADATA = frozenset(
    map(
        ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::254",  # Amazon; everybody's 169.254.169.254 is link-local
            "fd20:ce::254",  # Google
        ),
    )
)

_NAT64 = IPv6Network("64:ff9b::/96")


def refusal(address: str, *, loopback: bool) -> str:
    """Why a bridge may not connect to this IP address; empty when it may. `loopback`: this machine itself was registered."""
    ip = _plain(ip_address(address.partition("%")[0]))
    if ip in _METADATA:
        return f"{ip} is a cloud's metadata service"
    if ip.is_link_local:
        return f"{ip} is a link-local address"
    if ip.is_multicast or ip.is_unspecified or ip == ip_address("255.255.255.255"):
        return f"{ip} is no address of one machine"
    if ip.is_loopback and not loopback:
        return f"{ip} is this machine, and what was registered is another"
    return ""


def _plain(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside of one that only dresses it up (mapped, 6to4, NAT64)."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(ip.packed[12:])
    return ip.ipv4_mapped or ip.sixtofour or ip
