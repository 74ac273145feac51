"""Numbers of a request that must lie between two others, and what a caller hears who missed them (pure)."""

from typing import NamedTuple

from meshnode.errors import InvalidRequest


class Bounds(NamedTuple):
    """Both ends are allowed, but `low` not when it is `excluded`."""

    low: float
    high: float
    excluded: bool = False

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int | float) and self.low <= number <= self.high and not (self.excluded and number == self.low)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.excluded else f"from {self.low}"
        return f"{low} to {self.high}"


def check_bounds(name: str, given: float | None, bounds: Bounds) -> None:
    """Raises InvalidRequest that names the field, its bounds and what was given; None is always fine."""
    if given is not None and given not in bounds:
        raise InvalidRequest(f"`{name}` must be {bounds}, not {str(given)[:40]}.", param=name)
