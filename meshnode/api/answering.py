"""From what a client asks to its response, in any dialect.

Late headers (design D24): a streamed answer's status waits for the first text or failure, at most `PATIENCE_S`, so that an early
failure keeps its status code and another node may still be tried. After that the status is 200, and a failure is an event.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import trio

from meshnode.api.batch import submitted
from meshnode.api.collected import Collected
from meshnode.api.deadline import with_deadline
from meshnode.api.dialect import EVENTS, Asked, Stream
from meshnode.api.exchange import Answer, Exchange, json_response
from meshnode.api.http import Headers, Response, header_text
from meshnode.errors import ContextTooLong, InternalError, MeshnodeError
from meshnode.inference import End, Event, Progress

log = logging.getLogger("meshnode.api")

PATIENCE_S = 10.0
"""Of silence: then the headers go out, and afterwards a sign of life, below the 15 s and more after which proxies give up."""


@asynccontextmanager
async def answered(exchange: Exchange, asked: Asked, *, headers: Headers = ()) -> AsyncIterator[Response]:
    """The response to `asked`, with these `headers` among its own."""
    headers += ignored_header(asked.ignored)
    requests = [with_deadline(exchange, request) for request in asked.requests]
    try:
        async with submitted(exchange.node, requests) as answer:
            if asked.stream is None:
                collected = await collect(answer)
                body = asked.whole(collected, answer.model)
                yield json_response(body, headers=(*headers, *served_by(answer)))
            else:
                stream = asked.stream
                waiting = _Waiting(answer)
                pieces = _pieces(await waiting.next_batch(), waiting, stream, exchange)
                yield Response(headers=(*_stream_headers(stream), *headers, *served_by(answer)), body=pieces)
    except ContextTooLong as error:
        raise _with_largest(error, exchange, asked.request.model) from error


def ignored_header(names: tuple[str, ...]) -> Headers:
    """What tells a client which of its fields did nothing."""
    return (("x-meshnode-ignored", ", ".join(names)),) if names else ()


async def collect(answer: Answer) -> Collected:
    """All of an answer. Raises as its events do."""
    collected = Collected()
    async for batch in answer.events:
        collected.add(batch)
    return collected


def served_by(answer: Answer) -> Headers:
    resumed = (("x-meshnode-resumed", str(answer.resumed)),) if answer.resumed else ()
    return (("x-meshnode-node", header_text(answer.node)), ("x-meshnode-reason", header_text(answer.reason)), *resumed)


def _stream_headers(stream: Stream) -> Headers:
    return (("content-type", stream.media_type), ("cache-control", "no-cache"), ("x-accel-buffering", "no"))


def _with_largest(error: ContextTooLong, exchange: Exchange, model: str) -> ContextTooLong:
    """The node that refused knows only its own limit; another may have given the model more room."""
    name = model.partition("@")[0]
    listing = next((each for each in exchange.node.models() if name in {each.id, *each.aliases}), None)
    if listing is None or not listing.context_length:
        return error
    largest = f"The largest context of `{listing.id}` in this mesh is {listing.context_length} tokens."
    return ContextTooLong(error.message, hint=largest, param=error.param)


class _Waiting:
    """The wait for the next batch that has something to say, with progress kept for the signs of life meanwhile."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.progress: Progress | None = None
        self.spoken = trio.current_time()
        """When the client last heard of us. Not every batch is heard: while a call of a tool grows, nothing of it is shown."""

    def resumed(self) -> bytes:
        """A comment near the end: the headers had gone out long before."""
        return b": x-meshnode-resumed: %d\n\n" % self.answer.resumed if self.answer.resumed else b""

    async def next_batch(self) -> tuple[Event, ...] | None:
        """None after `PATIENCE_S` of silence. The wait that is then cut loses nothing: see `backend.Events`."""
        with trio.move_on_at(self.spoken + PATIENCE_S):
            while True:
                batch = await anext(self.answer.events, None)
                if batch is None:
                    raise InternalError("The answer ended without its end.")
                if any(not isinstance(event, Progress) for event in batch):
                    return batch
                self.progress = next(event for event in reversed(batch) if isinstance(event, Progress))
        return None


async def _pieces(
    batch: tuple[Event, ...] | None, waiting: _Waiting, stream: Stream, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    """A streamed body that begins with `batch`. All that is ready together goes out in one piece.

    The stream begins once a batch is there: before, the model's served name may change. A failure is the last piece.
    """
    begun = ended = False
    try:
        while not ended:
            if batch is None:
                piece = stream.waiting(None if begun else waiting.progress)
            else:
                if not begun:
                    begun = True
                    stream.begin(waiting.answer.model)
                    batch = (waiting.progress, *batch) if waiting.progress else batch  # it says how long the prompt is
                ended = isinstance(batch[-1], End)
                piece = stream.encode(batch)
                if ended and stream.media_type == EVENTS:
                    piece = waiting.resumed() + piece
            if piece:
                waiting.spoken = trio.current_time()
                yield piece
            if not ended:
                batch = await waiting.next_batch()
    except ContextTooLong as error:
        yield stream.failed(_with_largest(error, exchange, waiting.answer.model))
    except MeshnodeError as error:
        yield stream.failed(error)
    except Exception:
        log.exception("%s: a stream failed by a bug; please report it.", exchange.id)
        yield stream.failed(InternalError("The node failed in the middle of the answer; its log says why."))
