"""A peer as a backend: a request becomes a stream over the link to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from meshnode.backend import Events
from meshnode.inference import Request
from meshnode.mesh.session import Session
from meshnode.wire.codec import encode_request


class PeerBackend:
    """`session` gives the link to the peer as it is now; it may raise LinkLost."""

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session

    @asynccontextmanager
    async def submit(self, request: Request) -> AsyncIterator[Events]:
        """Raises InvalidRequest for one too large to forward, Overloaded and LinkLost. Leaving early sends CANCEL at once."""
        await trio.lowlevel.checkpoint()
        session = self._session()
        asked = session.open(encode_request(request))
        try:
            yield asked
        finally:
            session.close(asked)
