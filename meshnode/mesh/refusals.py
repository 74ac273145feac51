"""Links that did not come about, for the log and for `status` (pure)."""

from collections import OrderedDict
from dataclasses import dataclass

LOG_EVERY_S = 60.0
_MAX_REFUSALS = 64
"""Remembered at once; the oldest go first."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Seen from here: one address, with the last reason. `at` is when that was, in seconds on trio's clock."""

    addr: str
    """The other's host, when it dialled us; host:port, when we dialled it."""
    reason: str
    at: float
    count: int
    """How often it happened."""
    dialled: bool
    """By us."""


class Refusals:
    """The last refusal of each address."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[tuple[str, bool], Refusal] = OrderedDict()
        self._logged_at: dict[tuple[str, bool], float] = {}

    def add(self, addr: str, reason: str, now: float, *, dialled: bool) -> bool:
        """Remember it. Whether it should be logged: at most one of an address in a minute."""
        key = (addr, dialled)
        before = self._by_address.pop(key, None)
        count = before.count + 1 if before else 1
        self._by_address[key] = Refusal(addr=addr, reason=reason, at=now, count=count, dialled=dialled)
        if len(self._by_address) > _MAX_REFUSALS:
            self._logged_at.pop(self._by_address.popitem(last=False)[0], None)
        if now - self._logged_at.get(key, -LOG_EVERY_S) < LOG_EVERY_S:
            return False
        self._logged_at[key] = now
        return True

    def forget(self, addr: str, *, dialled: bool) -> None:
        """A link came about after all."""
        self._by_address.pop((addr, dialled), None)
        self._logged_at.pop((addr, dialled), None)

    def all(self) -> tuple[Refusal, ...]:
        return tuple(self._by_address.values())
