"""The endpoints. Each is an `async with` whose value is the response: the work behind it ends where the block is left.

Late headers (design D24): a streamed answer's status waits for the first text or failure, at most `PATIENCE_S`, so that an early
failure keeps its status code and another node may still be tried. After that the status is 200, and a failure is an event.
"""

import difflib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import trio

from meshnode.api.completion import DONE, ChunkStream, Collected, Identity, comment
from meshnode.api.exchange import Answer, Exchange, json_response
from meshnode.api.http import Headers, Response, header_text
from meshnode.api.openai import chat_request, error_object
from meshnode.errors import ConfigurationError, InternalError, InvalidRequest, MeshnodeError, ModelNotFound
from meshnode.inference import End, Event, Progress
from meshnode.names import printable
from meshnode.remote import Remote, checked
from meshnode.routing.scope import Scope
from meshnode.routing.table import Listing

log = logging.getLogger("meshnode.api")

PATIENCE_S = 10.0
"""Of silence: then the headers go out, and afterwards a comment, below the 15 s and more after which proxies give up."""

_STREAM_HEADERS: Headers = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)


@asynccontextmanager
async def chat_completions(exchange: Exchange) -> AsyncIterator[Response]:
    asked = chat_request(exchange.request.body, request_id=exchange.id)
    created = int(time.time())

    def identity(answer: Answer) -> Identity:
        return Identity(id=f"chatcmpl-{exchange.id}", created=created, model=answer.model)

    async with exchange.node.submit(asked.request, _scope(exchange)) as answer:
        if asked.stream:
            waiting = _Waiting(answer)
            first = await waiting.next_batch()
            body = _pieces(first, waiting, lambda: ChunkStream(identity(answer), include_usage=asked.include_usage), exchange.id)
            yield Response(headers=(*_STREAM_HEADERS, *_served_by(answer)), body=body)
        else:
            collected = Collected()
            async for batch in answer.events:
                collected.add(batch)
            yield json_response(collected.completion(identity(answer)), headers=_served_by(answer))


def _scope(exchange: Exchange) -> Scope:
    """As `x-meshnode-scope` says. Raises InvalidRequest."""
    asked = exchange.request.headers.get("x-meshnode-scope", Scope.ANY).strip().lower()
    if asked not in set(Scope):
        raise InvalidRequest(f"`x-meshnode-scope` is {', '.join(Scope)}, not `{printable(asked, 32)}`.", param="x-meshnode-scope")
    return Scope(asked)


def _served_by(answer: Answer) -> Headers:
    return (("x-meshnode-node", header_text(answer.node)), ("x-meshnode-reason", header_text(answer.reason)))


class _Waiting:
    """The wait for the next batch that has something to say, with progress kept for the comments meanwhile."""

    def __init__(self, answer: Answer) -> None:
        self.progress: Progress | None = None
        self._events = answer.events

    async def next_batch(self) -> tuple[Event, ...] | None:
        """None after `PATIENCE_S` without one. The wait that is then cut loses nothing: see `backend.Events`."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                batch = await anext(self._events, None)
                if batch is None:
                    raise InternalError("The answer ended without its end.")
                if any(not isinstance(event, Progress) for event in batch):
                    return batch
                self.progress = next(event for event in reversed(batch) if isinstance(event, Progress))
        return None


async def _pieces(
    batch: tuple[Event, ...] | None, waiting: _Waiting, chunks_of: Callable[[], ChunkStream], exchange_id: str
) -> AsyncGenerator[bytes, None]:
    """A streamed body that begins with `batch`. All that is ready together goes out in one piece.

    `chunks_of` is called once a batch is there: before, the model's served name may change. A failure is the last event, and no
    `[DONE]` follows it.
    """
    chunks: ChunkStream | None = None
    try:
        while True:
            if batch is None:
                yield comment(None if chunks else waiting.progress)
            else:
                chunks = chunks or chunks_of()
                ended = isinstance(batch[-1], End)
                if piece := chunks.encode(batch) + (DONE if ended else b""):
                    yield piece
                if ended:
                    return
            batch = await waiting.next_batch()
    except MeshnodeError as error:
        yield _error_event(error)
    except Exception:
        log.exception("%s: a stream failed by a bug; please report it.", exchange_id)
        yield _error_event(InternalError("The node failed in the middle of the answer; its log says why."))


def _error_event(error: MeshnodeError) -> bytes:
    return b"data: %b\n\n" % error_object(error)


def _plain(respond: Callable[[Exchange], Response]) -> Callable[[Exchange], AbstractAsyncContextManager[Response]]:
    """A handler that has its response at once, and nothing to end."""

    @asynccontextmanager
    async def handler(exchange: Exchange) -> AsyncIterator[Response]:
        yield respond(exchange)

    return handler


@_plain
def models(exchange: Exchange) -> Response:
    listed = [_model_object(each, exchange.started) for each in exchange.node.models(_scope(exchange))]
    return json_response(msgspec.json.encode({"object": "list", "data": listed}))


@_plain
def model(exchange: Exchange) -> Response:
    listings = exchange.node.models()
    for listing in listings:
        if exchange.rest in {listing.id, *listing.aliases}:
            return json_response(msgspec.json.encode(_model_object(listing, exchange.started)))
    near = difflib.get_close_matches(exchange.rest, [listing.id for listing in listings], n=3, cutoff=0.4)
    raise ModelNotFound(
        f"The model `{printable(exchange.rest, 128)}` does not exist on any node of this mesh.",
        hint=f"Nearest: {', '.join(near)}." if near else "See /v1/models.",
        param="model",
    )


def _model_object(listing: Listing, created: int) -> dict[str, object]:
    """OpenAI's four fields, and what else the mesh knows. Nobody knows when a model was made: `created` is the node's start."""
    return {
        "id": listing.id,
        "object": "model",
        "created": created,
        "owned_by": "meshnode",
        "meta": {
            "aliases": listing.aliases,
            "digest": listing.digest.hex(),
            "size": listing.size,
            "context_length": listing.context_length,
            "nodes": listing.nodes,
            "origins": listing.origins,
        },
    }


@_plain
def healthz(_: Exchange) -> Response:
    return json_response(b'{"status":"ok"}')


@_plain
def readyz(exchange: Exchange) -> Response:
    if reason := exchange.node.ready():
        return json_response(msgspec.json.encode({"status": "not ready", "reason": reason}), status=503)
    return json_response(b'{"status":"ready"}')


class _Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peer: str | None = None


@asynccontextmanager
async def join(exchange: Exchange) -> AsyncIterator[Response]:
    """The token is no part of it: it never travels over HTTP (security rule 10)."""
    try:
        wanted = msgspec.json.decode(exchange.request.body or b"{}", type=_Join)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f'The body must be {{}} or {{"peer": "HOST:PORT"}}: {printable(str(error))}.') from error
    yield json_response(msgspec.json.encode(await exchange.node.join(wanted.peer)))


@asynccontextmanager
async def add_remote(exchange: Exchange) -> AsyncIterator[Response]:
    """Values only: no path is read and no command run because HTTP says so (security rule 13)."""
    try:
        wanted = msgspec.json.decode(exchange.request.body, type=Remote)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is no remote: {printable(str(error))}.") from None
    try:
        remote = checked(wanted)
    except ConfigurationError as error:
        raise InvalidRequest(error.message, hint=error.hint) from error
    yield json_response(msgspec.json.encode(await exchange.node.add_remote(remote)))


@asynccontextmanager
async def remove_remote(exchange: Exchange) -> AsyncIterator[Response]:
    yield json_response(msgspec.json.encode(await exchange.node.remove_remote(exchange.rest)))


@_plain
def status(exchange: Exchange) -> Response:
    return json_response(msgspec.json.encode(exchange.node.report()))
