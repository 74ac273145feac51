"""The endpoints. Each is an `async with` whose value is the response: the work behind it ends where the block is left."""

import difflib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec

from meshnode.api.answering import answered, served_by
from meshnode.api.anthropic import messages_request
from meshnode.api.deadline import with_deadline
from meshnode.api.dialect import Dialect, dialect_of
from meshnode.api.embeddings import Collected as Vectors
from meshnode.api.embeddings import embeddings_request
from meshnode.api.exchange import Exchange, json_response, plain
from meshnode.api.http import Response
from meshnode.api.metrics import MEDIA_TYPE
from meshnode.api.openai import chat_request
from meshnode.api.prompts import completion_request
from meshnode.errors import ConfigurationError, InvalidRequest, ModelNotFound
from meshnode.names import printable
from meshnode.remote import Remote, checked
from meshnode.routing.table import Listing


@asynccontextmanager
async def chat_completions(exchange: Exchange) -> AsyncIterator[Response]:
    asked = chat_request(exchange.request.body, request_id=exchange.id, created=int(time.time()))
    async with answered(exchange, asked) as response:
        yield response


@asynccontextmanager
async def completions(exchange: Exchange) -> AsyncIterator[Response]:
    asked = completion_request(exchange.request.body, request_id=exchange.id, created=int(time.time()))
    async with answered(exchange, asked) as response:
        yield response


@asynccontextmanager
async def embeddings(exchange: Exchange) -> AsyncIterator[Response]:
    asked = embeddings_request(exchange.request.body, request_id=exchange.id)
    async with exchange.node.submit(with_deadline(exchange, asked.request)) as answer:
        collected = Vectors(asked)
        async for batch in answer.events:
            collected.add(batch)
        yield json_response(collected.response(answer.model), headers=served_by(answer))


@asynccontextmanager
async def messages(exchange: Exchange) -> AsyncIterator[Response]:
    async with answered(exchange, messages_request(exchange.request.body, request_id=exchange.id)) as response:
        yield response


@plain
def models(exchange: Exchange) -> Response:
    if dialect_of(exchange.request) is Dialect.ANTHROPIC:
        shown = [_anthropic_model(each, exchange.started) for each in exchange.node.models()]
        ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
        return json_response(msgspec.json.encode({"data": shown, "has_more": False, **ends}))
    listed = [_model_object(each, exchange.started) for each in exchange.node.models()]
    return json_response(msgspec.json.encode({"object": "list", "data": listed}))


@plain
def model(exchange: Exchange) -> Response:
    listings = exchange.node.models()
    for listing in listings:
        if exchange.rest in {listing.id, *listing.aliases}:
            shown = _anthropic_model if dialect_of(exchange.request) is Dialect.ANTHROPIC else _model_object
            return json_response(msgspec.json.encode(shown(listing, exchange.started)))
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
            "loaded_on": listing.loaded_on,
            "origins": listing.origins,
        },
    }


def _anthropic_model(listing: Listing, created: int) -> dict[str, object]:
    return {
        "type": "model",
        "id": listing.id,
        "display_name": listing.id,
        "created_at": datetime.fromtimestamp(created, UTC),
        "lifecycle": "active",
        "max_input_tokens": listing.context_length,
        "max_tokens": listing.context_length,
    }


@plain
def healthz(_: Exchange) -> Response:
    return json_response(b'{"status":"ok"}')


@plain
def readyz(exchange: Exchange) -> Response:
    if reason := exchange.node.ready():
        return json_response(msgspec.json.encode({"status": "not ready", "reason": reason}), status=503)
    return json_response(b'{"status":"ready"}')


@plain
def metrics(exchange: Exchange) -> Response:
    return Response(headers=(("content-type", MEDIA_TYPE),), body=exchange.metrics.text())


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


@plain
def status(exchange: Exchange) -> Response:
    return json_response(msgspec.json.encode(exchange.node.report()))
