"""Whom to dial and when: attempts, back-off and the limits on addresses that nobody has vouched for (pure; design D7).

An attempt belongs to a key: a seed's address, or a node whose record gives addresses. It is idle (`due` None), waiting (`due`
set) or in flight (`flying` set); the shell owns it while in flight and reports the outcome. Two attempts may have one address
(a seed is mostly some member's address as well): an outcome counts for both, and they never fly at once.
"""

import random
import re
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from meshnode.address import Address, parse
from meshnode.errors import ConfigurationError
from meshnode.gossip.effects import Dial
from meshnode.names import NodeId

FIRST_BACK_OFF_S = 0.5
MAX_BACK_OFF_S = 30.0
"""For ever: a laptop may come back after a week, and a dial in 30 s costs nothing."""
JITTER = 0.25
FLIGHT_S = 30.0
"""An outcome that the shell never reported; its own deadlines are far below."""
DIALS_PER_MINUTE = 64
DIALS_PER_HOST = 8
"""Addresses from records are hints that any member can plant (security rule 8); those that led to a member before are free."""
MAX_PROVEN = 1024
METADATA = frozenset({"169.254.169.254", "fd00:ec2::254"})

_PLAIN = re.compile(r"[A-Za-z0-9._:\[\]%-]{1,128}", re.ASCII)
Key = NodeId | str
Network = IPv4Network | IPv6Network


def read_addr(text: str) -> Address | None:
    """The address in `text`, which may be a stranger's; None if it is none."""
    if not _PLAIN.fullmatch(text):
        return None
    try:
        address = parse(text, flag="address")
    except ConfigurationError:
        return None
    return address if address.port else None


def dialable(text: str, listen: Iterable[str]) -> bool:
    """Whether `text` is an address that another node can be at; `listen` are our own."""
    address = read_addr(text)
    own = [known for known in map(read_addr, listen) if known]
    if address is None or address in own or (address.is_loopback and address.port in {known.port for known in own}):
        return False
    try:
        ip = ip_address(address.host.partition("%")[0])
    except ValueError:
        return True
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return not (ip.is_multicast or ip.is_unspecified or (ip.is_reserved and not ip.is_loopback) or str(ip) in METADATA)


def distance(addr: str, networks: Iterable[Network]) -> int:
    """0 for an address on one of our own networks, 1 for another; 2 for one that is good on one cable only, or is none."""
    address = read_addr(addr)
    try:
        ip = ip_address(address.host.partition("%")[0]) if address else None
    except ValueError:
        return 1
    if ip is None or ip.is_link_local:
        return 2
    return 0 if any(ip in network for network in networks) else 1


@dataclass
class Attempt:
    """The state of reaching one seed or member."""

    addrs: tuple[str, ...]
    expect: NodeId | None
    due: float | None = None
    flying: float | None = None
    turn: int = 0
    failures: int = 0
    reason: str = ""
    """Of the last failure, which was at address `tried`."""
    tried: str = ""
    tried_at: float = 0.0

    @property
    def addr(self) -> str:
        return self.addrs[self.turn]

    def deadline(self) -> float | None:
        return self.flying + FLIGHT_S if self.flying is not None else self.due

    def set_addrs(self, addrs: tuple[str, ...]) -> None:
        if addrs != self.addrs and self.flying is None:
            self.addrs, self.turn = addrs, 0


class Dialler:
    """Every attempt."""

    def __init__(self, rng: random.Random) -> None:
        self.attempts: dict[Key, Attempt] = {}
        self._rng = rng
        self._proven: OrderedDict[str, NodeId] = OrderedDict()
        self._recent: deque[tuple[float, str]] = deque()
        self._next_at: float | None = None
        self._changed = False

    def proven(self, addr: str) -> NodeId | None:
        """Whom `addr` led to when it last led to a member."""
        return self._proven.get(addr)

    def nodes(self) -> set[NodeId]:
        """Those of the keys that are nodes."""
        return {NodeId(key) for key in self.attempts if isinstance(key, bytes)}

    def want(self, key: Key, addrs: tuple[str, ...], *, expect: NodeId | None, at: float) -> None:
        """Dial `addrs` in turn until one leads to a link: first at `at`, or later while a back-off runs."""
        self._changed = True
        attempt = self.attempts.setdefault(key, Attempt(addrs, expect))
        attempt.expect = expect
        attempt.set_addrs(addrs)
        if attempt.due is None and attempt.flying is None:
            attempt.due = at

    def expected(self, addr: str) -> list[NodeId]:
        """Whom we expect at `addr`, which is being dialled."""
        found = (attempt.expect or self._proven.get(addr) for attempt in self._active_at(addr) if attempt.flying is not None)
        return list(dict.fromkeys(node for node in found if node is not None))

    def again(self, key: Key, at: float) -> None:
        """Dial `key` at `at`, whatever its back-off."""
        self._changed = True
        if (attempt := self.attempts.get(key)) and attempt.flying is None:
            attempt.due = at

    def rest(self, key: Key) -> None:
        """Nothing to dial for `key` now; what was learned of it is kept."""
        self._changed = True
        if attempt := self.attempts.get(key):
            attempt.due = None

    def forget(self, key: Key) -> None:
        self._changed = True
        self.attempts.pop(key, None)

    def hurry(self, now: float) -> None:
        """What waits is tried now: the network is another."""
        self._changed = True
        for attempt in self.attempts.values():
            if attempt.due is not None:
                attempt.due, attempt.failures = min(attempt.due, now), 0

    def lost(self, key: Key, *, short: bool, at: float) -> None:
        """The link that `key` led to is gone. A `short` life counts as a failure: no pair links and breaks in a tight loop."""
        self._changed = True
        attempt = self.attempts.setdefault(key, Attempt((), None))
        attempt.failures = attempt.failures + 1 if short else 0
        attempt.due = at if attempt.failures < 2 else at + self._back_off(attempt.failures)

    def succeeded(self, addr: str, node: NodeId) -> None:
        """A dial of `addr` led to `node`."""
        self._changed = True
        self._proven[addr] = node
        self._proven.move_to_end(addr)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)
        for attempt in self._at(addr):
            attempt.due = attempt.flying = None
            attempt.reason = ""

    def failed(self, addr: str, reason: str, *, now: float) -> None:
        """A dial of `addr` came to nothing: the next address at once, and back off after the last."""
        self._changed = True
        for attempt in self._active_at(addr):
            attempt.reason, attempt.tried, attempt.tried_at = reason, addr, now
            attempt.flying, attempt.due = None, now
            attempt.turn = (attempt.turn + 1) % len(attempt.addrs)
            if attempt.turn == 0:
                attempt.failures += 1
                attempt.due = now + self._back_off(attempt.failures)

    def next_at(self) -> float | None:
        """When an attempt is due, or its outcome overdue."""
        if self._changed:
            times = [time for attempt in self.attempts.values() if attempt.addrs and (time := attempt.deadline()) is not None]
            self._next_at, self._changed = min(times, default=None), False
        return self._next_at

    def dials(self, *, now: float) -> Iterator[Dial]:
        """What is to be dialled now. Afterwards every attempt is in flight, idle, or due later."""
        self._changed = True
        for attempt in list(self.attempts.values()):
            deadline = attempt.deadline()
            if deadline is None or deadline > now or not attempt.addrs:
                continue
            if attempt.flying is not None:
                self.failed(attempt.addr, "no outcome", now=now)
            elif (at := self._free_at(attempt, now)) > now:
                attempt.due = at
            else:
                attempt.due, attempt.flying = None, now
                yield Dial(addr=attempt.addr, expect=attempt.expect)

    def _at(self, addr: str) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.addrs and attempt.addr == addr]

    def _active_at(self, addr: str) -> list[Attempt]:
        return [attempt for attempt in self._at(addr) if attempt.deadline() is not None]

    def _back_off(self, failures: int) -> float:
        bound = min(MAX_BACK_OFF_S, FIRST_BACK_OFF_S * 2.0 ** min(failures - 1, 16))
        return bound * self._rng.uniform(1 - JITTER, 1)

    def _free_at(self, attempt: Attempt, now: float) -> float:
        """When `attempt` may fly: not beside another one at its address, and within the limits unless its address is trusted."""
        if any(other.flying is not None for other in self._at(attempt.addr)):
            return now + FIRST_BACK_OFF_S
        if attempt.expect is None or attempt.addr in self._proven:
            return now
        while self._recent and self._recent[0][0] + 60.0 <= now:
            self._recent.popleft()
        address = read_addr(attempt.addr)
        host = address.host if address else attempt.addr
        same = [at for at, dialled in self._recent if dialled == host]
        if len(same) >= DIALS_PER_HOST:
            return same[0] + 60.0
        if len(self._recent) >= DIALS_PER_MINUTE:
            return self._recent[0][0] + 60.0
        self._recent.append((now, host))
        return now
