"""Ollama's `embed`, and `embeddings` as it was before: from its requests to ours, and from the vectors to its objects (pure)."""

from typing import Annotated

import msgspec
from msgspec import Meta

from meshnode.api import body as body_of
from meshnode.api.embeddings import Collected, EmbeddingsRequest
from meshnode.errors import InvalidRequest
from meshnode.inference import MAX_INPUTS, Request

_Model = Annotated[str, Meta(min_length=1, max_length=512)]


class _Embed(msgspec.Struct, frozen=True, kw_only=True):
    model: _Model
    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    dimensions: int | None = None


class _Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    model: _Model
    prompt: str


_EMBED, _EMBEDDINGS = msgspec.json.Decoder(_Embed), msgspec.json.Decoder(_Embeddings)


def embed_request(body: bytes, *, request_id: str) -> tuple[EmbeddingsRequest, tuple[str, ...]]:
    """And the fields that do nothing. Raises InvalidRequest, whose `param` names the field."""
    asked = body_of.decoded(body, _EMBED)
    inputs = (asked.input,) if isinstance(asked.input, str) else tuple(asked.input)
    request = _request(asked.model, inputs, param="input", request_id=request_id, dimensions=asked.dimensions)
    return request, body_of.ignored(body, body_of.fields(_Embed))


def embeddings_request(body: bytes, *, request_id: str) -> tuple[EmbeddingsRequest, tuple[str, ...]]:
    """As `embed_request`, of one text."""
    asked = body_of.decoded(body, _EMBEDDINGS)
    request = _request(asked.model, (asked.prompt,), param="prompt", request_id=request_id, dimensions=None)
    return request, body_of.ignored(body, body_of.fields(_Embeddings))


def _request(model: str, inputs: tuple[str, ...], *, param: str, request_id: str, dimensions: int | None) -> EmbeddingsRequest:
    if "" in inputs:
        raise InvalidRequest(f"`{param}` holds an empty text.", param=param)
    request = Request(id=request_id, model=model, messages=(), inputs=inputs)
    return EmbeddingsRequest(request=request, base64=False, dimensions=dimensions)


def embed_object(collected: Collected, model: str) -> bytes:
    """As JSON; the model is called as its client called it. Raises InternalError when vectors are missing."""
    return msgspec.json.encode({"model": model, "embeddings": collected.vectors, "prompt_eval_count": collected.tokens})


def embeddings_object(collected: Collected, _model: str) -> bytes:
    """As `embed_object`."""
    return msgspec.json.encode({"embedding": collected.vectors[0]})
