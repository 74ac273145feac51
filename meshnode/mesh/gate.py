"""How many strangers may knock at once (security rule 7; pure).

A handshake costs some milliseconds of CPU and a stranger pays almost nothing for it, so pending ones are few, in all and for each
address, and half of the places are kept for addresses of members that we know.
"""

from collections import Counter, OrderedDict
from ipaddress import IPv6Address, ip_address

PENDING = 32
PENDING_PER_ADDRESS = 4
RATE_PER_S = 20.0
_REMEMBERED = 1024


class Gate:
    """Ask `admit` before a handshake; call `release` after it when it was admitted."""

    def __init__(self) -> None:
        self._pending: Counter[str] = Counter()
        self._budgets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, host: str, *, known: bool, now: float) -> str:
        """Empty when the connection may begin its handshake, else why not. `known`: a member was linked from there before."""
        source = _source(host)
        if self._pending.total() >= (PENDING if known else PENDING // 2):
            return "too many handshakes at once"
        if self._pending[source] >= PENDING_PER_ADDRESS:
            return "too many handshakes at once from this address"
        if not self._spend(source, now):
            return "too many connections in a second from this address"
        self._pending[source] += 1
        return ""

    def release(self, host: str) -> None:
        source = _source(host)
        self._pending[source] -= 1
        if not self._pending[source]:
            del self._pending[source]

    def _spend(self, source: str, now: float) -> bool:
        """One of a second's worth of connections; the table of addresses is bounded, the oldest one is forgotten."""
        left, since = self._budgets.pop(source, (RATE_PER_S, now))
        left = min(RATE_PER_S, left + (now - since) * RATE_PER_S)
        self._budgets[source] = (max(0.0, left - 1), now)
        if len(self._budgets) > _REMEMBERED:
            self._budgets.popitem(last=False)
        return left >= 1


def _source(host: str) -> str:
    """What one machine controls: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)
