"""What can answer a request: a local worker, a peer, a Backend.AI service, another OpenAI-compatible server.

All four look the same from here, so that the caller never knows which it got. `tests/test_backends.py` is the one suite that
runs over every kind.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from meshnode.inference import Event, Request

Events = AsyncIterator[tuple[Event, ...]]
"""Non-empty batches of the events that are ready now, in order; the last batch ends with `End`, then the iterator is exhausted.

Raises a `RequestError` or a `ServingError` when there will be no `End`. A cancelled wait for the next batch loses nothing: it can
be waited for again (so an async generator, which a cancellation finishes, cannot be an `Events`)."""


class Backend(Protocol):
    def submit(self, request: Request) -> AbstractAsyncContextManager[Events]:
        """Start `request`; its events come from the value of the `async with`.

        Leaving the block before `End`, for any reason, cancels the work within 100 ms. Entering may raise as iterating does. No
        cancel scope or nursery of the caller's task stays open across the block: the backend's own tasks run elsewhere, so that
        a caller may enter under one deadline and leave under another.
        """
        ...
