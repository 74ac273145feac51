"""The events of one request on their way from the child to whoever asked (trio)."""

import trio

from meshnode.errors import MeshnodeError
from meshnode.inference import End, Event

MAX_UNREAD = 4096
"""Events that may lie unread before the stream is given up. One token is one event of about 200 bytes, so this is under 1 MiB
(some 20 MiB with twenty log-probabilities each), and as much as a whole answer within the default context of a slot."""


class Stream:
    """An `Events` of the Backend interface, fed by `put` and `fail`. What was put before a failure is still read first."""

    def __init__(self) -> None:
        self.finished = False
        """Nothing more will be put."""
        self._events: list[Event] = []
        self._error: MeshnodeError | None = None
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def overrun(self) -> bool:
        """Whether the reader is too far behind."""
        return len(self._events) >= MAX_UNREAD

    def put(self, event: Event) -> None:
        if self.finished:
            return
        self._events.append(event)
        self.finished = isinstance(event, End)
        self._readers.unpark_all()

    def fail(self, error: MeshnodeError) -> None:
        """No more events; the first of failure and End counts."""
        if self.finished:
            return
        self.finished = True
        self._error = error
        self._readers.unpark_all()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        """The events that are there. The only waits are before they are taken, so that a cancelled wait loses none."""
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.finished:
                raise StopAsyncIteration
            await self._readers.park()
        events, self._events = self._events, []
        return tuple(events)
