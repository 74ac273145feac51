"""A peer as a backend: a request becomes a stream over the link to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from meshnode.backend import Events
from meshnode.errors import LinkLost
from meshnode.inference import Chunk, Event, Request
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
        answer = _Answer(self._session, encode_request(request))
        try:
            yield answer
        finally:
            answer.close()


class _Answer:
    """The events of one request; before its first chunk it moves to another link of the same peer when its own is lost.

    Two nodes that dial each other at the same time have two links for a moment, and one of them may close the very link that the
    other has just used. That must not cost a request: there may be no other node to ask.
    """

    def __init__(self, session: Callable[[], Session], body: bytes) -> None:
        self._find_session = session
        self._body = body
        self._begun = False
        self._open()

    def _open(self) -> None:
        self._session = self._find_session()
        self._asked = self._session.open(self._body)

    def close(self) -> None:
        self._session.close(self._asked)

    def __aiter__(self) -> "_Answer":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        while True:
            try:
                batch = await anext(self._asked)
            except LinkLost as lost:
                self._move(lost)
            else:
                self._begun = self._begun or any(isinstance(event, Chunk) for event in batch)
                return batch

    def _move(self, lost: LinkLost) -> None:
        """Raises `lost` when it is too late for that, or there is no other link."""
        if self._begun or self._session.is_up:
            raise lost
        self.close()
        try:
            self._open()
        except LinkLost:
            raise lost from None
