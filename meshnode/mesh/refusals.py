"""The links that were refused, by us or by the other side: kept for `status`, logged at most once a minute for each address."""

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace

_log = logging.getLogger("meshnode.mesh")
_KEPT = 64
_LOG_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Refusal:
    addr: str
    reason: str
    at: float
    count: int
    logged_at: float


class Refusals:
    """Bounded: of more than 64 addresses the ones longest silent are forgotten."""

    def __init__(self) -> None:
        self._by_addr: OrderedDict[str, Refusal] = OrderedDict()

    def add(self, addr: str, reason: str, *, now: float) -> None:
        known = self._by_addr.pop(addr, None)
        refusal = Refusal(
            addr=addr, reason=reason, at=now, count=known.count + 1 if known else 1, logged_at=known.logged_at if known else now
        )
        if known is None or known.reason != reason or now - known.logged_at >= _LOG_EVERY_S:
            _log.warning("refused %s: %s", addr, reason)
            refusal = replace(refusal, logged_at=now)
        self._by_addr[addr] = refusal
        if len(self._by_addr) > _KEPT:
            self._by_addr.popitem(last=False)

    def forget(self, addr: str) -> None:
        """The address made a link after all."""
        self._by_addr.pop(addr, None)

    def all(self) -> tuple[Refusal, ...]:
        return tuple(self._by_addr.values())
