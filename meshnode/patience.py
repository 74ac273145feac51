"""The wait for the next events of an attempt, which ends when it has been silent for too long."""

import trio

from meshnode.backend import Events
from meshnode.inference import Event

LATE_S = 0.5
"""If we ourselves are so late, we were stopped or busy, and what came meanwhile was not looked at yet."""
AGAIN_S = 1.0
"""The least wait, from when we began to look: before that nobody can say that nothing came."""


class Silence(Exception):
    """Nothing came for so long that nothing is expected any more."""


class Patience:
    """With the events of one attempt. It outlives waits that are cut, and only time that somebody waited for counts."""

    def __init__(self, source: Events, silence_s: float) -> None:
        self.silence_s = silence_s
        self._source = source
        self._since: float | None = None

    async def next(self) -> tuple[Event, ...]:
        """The next batch. Raises Silence, after which one may go on waiting all the same, or as the source does."""
        began = trio.current_time()
        if self._since is None:
            self._since = began
        deadline = max(self._since + self.silence_s, began + AGAIN_S)
        while True:
            with trio.move_on_at(deadline):
                batch = await anext(self._source)
                self._since = None
                return batch
            now = trio.current_time()
            if now < deadline + LATE_S:
                self._since = now
                raise Silence
            deadline = now + AGAIN_S
