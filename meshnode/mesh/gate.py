"""Who may begin a handshake: limits on strangers before they have proved anything (pure; security rule 7).

A handshake costs 5 ms of CPU and holds a slot for up to 5 s. So there are 32 slots, 4 for each address and half of them kept for
the addresses of known members; and 20 attempts a second for each address. An IPv6 host owns a /64, so that counts as one address.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

from meshnode.errors import PeerError

SLOTS = 32
SLOTS_FOR_STRANGERS = SLOTS // 2
SLOTS_PER_ADDRESS = 4
ATTEMPTS_PER_S = 20
_MAX_ADDRESSES = 1024
"""Remembered at once; the oldest go first. A LAN has fewer."""


def address_group(host: str) -> str:
    """What counts as one address: the host, or its /64 in IPv6. IPv4 in IPv6 clothes is IPv4."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


class Gate:
    """Counts handshakes under way, and attempts."""

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        """Groups of the addresses of members, kept current by the owner."""
        self._pending: Counter[str] = Counter()
        self._strangers = 0
        self._attempts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """By group: the second, and how many attempts in it."""

    @contextmanager
    def slot(self, host: str, now: float) -> Iterator[None]:
        """Hold a slot while the block runs. Raises PeerError when there is none for this address."""
        group = address_group(host)
        self._count_attempt(group, int(now))
        stranger = group not in self.known
        self._check_slots(group, stranger=stranger)
        self._pending[group] += 1
        self._strangers += stranger
        try:
            yield
        finally:
            self._strangers -= stranger
            self._pending[group] -= 1
            self._pending += Counter()  # drops the zeros

    def _count_attempt(self, group: str, second: int) -> None:
        last, count = self._attempts.pop(group, (second, 0))
        count = count + 1 if last == second else 1
        self._attempts[group] = (second, count)
        if len(self._attempts) > _MAX_ADDRESSES:
            self._attempts.popitem(last=False)
        if count > ATTEMPTS_PER_S:
            raise PeerError(f"more than {ATTEMPTS_PER_S} connections a second", close_code=4429)

    def _check_slots(self, group: str, *, stranger: bool) -> None:
        if self._pending[group] >= SLOTS_PER_ADDRESS:
            raise PeerError(f"more than {SLOTS_PER_ADDRESS} handshakes at once", close_code=4429)
        if self._pending.total() >= SLOTS or (stranger and self._strangers >= SLOTS_FOR_STRANGERS):
            raise PeerError("too many handshakes at once, of all addresses together", close_code=4429)
