"""What this node has sent where and is not over yet: its own in-flight work, which gossip shows only later (pure)."""

import msgspec

from meshnode.routing.table import Holder


class Booking(msgspec.Struct, frozen=True, eq=False):
    """One attempt under way. `work_s`: what it takes there alone."""

    at: float
    work_s: float


class Bookings:
    """Attempts by holder, in the order of their times."""

    def __init__(self) -> None:
        self._open: dict[Holder, list[Booking]] = {}

    def __len__(self) -> int:
        """All that is under way."""
        return sum(map(len, self._open.values()))

    def book(self, holder: Holder, *, work_s: float, now: float) -> Booking:
        booking = Booking(now, work_s)
        self._open.setdefault(holder, []).append(booking)
        return booking

    def release(self, holder: Holder, booking: Booking) -> None:
        """The attempt is over, however it ended."""
        left = [other for other in self._open[holder] if other is not booking]
        if left:
            self._open[holder] = left
        else:
            del self._open[holder]

    def open(self, holder: Holder) -> int:
        return len(self._open.get(holder, ()))

    def since(self, holder: Holder, at: float) -> tuple[int, float]:
        """Number and work of those that are later than `at`: what the holder knew then does not include them."""
        count, work = 0, 0.0
        if (bookings := self._open.get(holder)) is None:
            return count, work
        for booking in reversed(bookings):
            if booking.at <= at:
                break
            count += 1
            work += booking.work_s
        return count, work
