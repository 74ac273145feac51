"""The endpoints of Ollama's API.

Models are shown with the tag that Ollama gives to a name without one, and are found by either. What the mesh does not know of a
model (its family, its parameters) is shown as empty.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

import meshnode
from meshnode.api import body as body_of
from meshnode.api.answering import answered, collect, ignored_header, served_by
from meshnode.api.dialect import Asked
from meshnode.api.embeddings import Collected, EmbeddingsRequest
from meshnode.api.exchange import Exchange, json_response, plain
from meshnode.api.http import Response
from meshnode.api.lines import loaded
from meshnode.api.ollama import Loading, chat_request, generate_request, model_named, tagged
from meshnode.api.ollama_embedding import embed_object, embed_request, embeddings_object, embeddings_request
from meshnode.errors import ModelNotFound, NotProvided
from meshnode.inference import Request, Sampling
from meshnode.names import printable
from meshnode.routing.table import Listing

VERSION = "0.12.6"
"""Of Ollama, whose API this is: some clients refuse an older one."""
_FOR_EVER = "9999-12-31T23:59:59Z"
"""When a loaded model expires."""
_UNKNOWN = "unknown"
"""The architecture of a model; its key in `model_info` begins with it."""

Read = Callable[..., Asked | Loading]


@asynccontextmanager
async def chat(exchange: Exchange) -> AsyncIterator[Response]:
    async with _answered(exchange, chat_request) as response:
        yield response


@asynccontextmanager
async def generate(exchange: Exchange) -> AsyncIterator[Response]:
    async with _answered(exchange, generate_request) as response:
        yield response


@asynccontextmanager
async def _answered(exchange: Exchange, read: Read) -> AsyncIterator[Response]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    asked = read(exchange.request.body, request_id=exchange.id, now=now)
    if isinstance(asked, Loading):
        async with _loaded(exchange, asked) as response:
            yield response
        return
    request = msgspec.structs.replace(asked.request, model=_named(exchange, asked.request.model))
    async with answered(exchange, msgspec.structs.replace(asked, requests=(request,))) as response:
        yield response


@asynccontextmanager
async def _loaded(exchange: Exchange, asked: Loading) -> AsyncIterator[Response]:
    """A request that draws nothing tells whether the model can be asked, and is reason enough to load it."""
    model = _named(exchange, asked.model)
    nothing = Request(id=exchange.id, model=model, messages=(), prompt=".", sampling=Sampling(max_tokens=0))
    async with exchange.node.submit(nothing) as answer:
        await collect(answer)
        headers = (*served_by(answer), *ignored_header(("keep_alive",) if asked.unload else ()))
        yield json_response(loaded(asked.form, unload=asked.unload), headers=headers)


@asynccontextmanager
async def embed(exchange: Exchange) -> AsyncIterator[Response]:
    asked, ignored = embed_request(exchange.request.body, request_id=exchange.id)
    async with _embedded(exchange, asked, ignored, embed_object) as response:
        yield response


@asynccontextmanager
async def embeddings(exchange: Exchange) -> AsyncIterator[Response]:
    asked, ignored = embeddings_request(exchange.request.body, request_id=exchange.id)
    async with _embedded(exchange, asked, ignored, embeddings_object) as response:
        yield response


@asynccontextmanager
async def _embedded(
    exchange: Exchange, asked: EmbeddingsRequest, ignored: tuple[str, ...], shown: Callable[[Collected, str], bytes]
) -> AsyncIterator[Response]:
    request = msgspec.structs.replace(asked.request, model=_named(exchange, asked.request.model))
    async with exchange.node.submit(request) as answer:
        collected = Collected(asked)
        async for batch in answer.events:
            collected.add(batch)
        headers = (*served_by(answer), *ignored_header(ignored))
        yield json_response(shown(collected, asked.request.model), headers=headers)


def _named(exchange: Exchange, wanted: str) -> str:
    return model_named(wanted, {name for each in exchange.node.models() for name in (each.id, *each.aliases)})


@plain
def tags(exchange: Exchange) -> Response:
    shown = [_shown(each, exchange) for each in exchange.node.models()]
    return json_response(msgspec.json.encode({"models": shown}))


@plain
def running(exchange: Exchange) -> Response:
    """Every model that some node has loaded, not what it could load. How much of it is in a GPU's memory is not known."""
    more = {"expires_at": _FOR_EVER, "size_vram": 0}
    shown = [
        {**_shown(each, exchange), **more, "context_length": each.context_length}
        for each in exchange.node.models()
        if each.loaded_on
    ]
    return json_response(msgspec.json.encode({"models": shown}))


def _shown(listing: Listing, exchange: Exchange) -> dict[str, object]:
    name = tagged(listing.id)
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(exchange.started, UTC),
        "size": listing.size,
        "digest": listing.digest.hex(),
        "details": _DETAILS,
    }


_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}

_Name = Annotated[str, Meta(min_length=1, max_length=512)]


class _Show(msgspec.Struct, frozen=True):
    model: _Name | None = None
    name: _Name | None = None
    """What it was called in older versions."""


_SHOW = msgspec.json.Decoder(_Show)


@plain
def show(exchange: Exchange) -> Response:
    asked = body_of.decoded(exchange.request.body, _SHOW)
    wanted = asked.model or asked.name or ""
    name = _named(exchange, wanted)
    listing = next((each for each in exchange.node.models() if name in {each.id, *each.aliases}), None)
    if listing is None:
        raise ModelNotFound(f"model '{printable(wanted, 128)}' not found", hint="See /api/tags.", param="model")
    facts: dict[str, object] = {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": datetime.fromtimestamp(exchange.started, UTC),
        "details": _DETAILS,
        "model_info": {"general.architecture": _UNKNOWN, f"{_UNKNOWN}.context_length": listing.context_length},
        "capabilities": ["completion", "tools"],
    }
    return json_response(msgspec.json.encode(facts))


@plain
def version(_: Exchange) -> Response:
    return json_response(msgspec.json.encode({"version": VERSION, "meshnode": meshnode.__version__}))


@plain
def greeting(_: Exchange) -> Response:
    """What its clients look for to know that a server is there."""
    return Response(headers=(("content-type", "text/plain; charset=utf-8"),), body=b"Ollama is running")


@plain
def library(exchange: Exchange) -> Response:
    """Models come from the operator's files: none are fetched, made or removed over HTTP (security rule 13)."""
    path = printable(exchange.request.path, 40)
    raise NotProvided(f"{path} is not provided by meshnode.", hint="Start a node with it: meshnode up --model FILE.gguf")
