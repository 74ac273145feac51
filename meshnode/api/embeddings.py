"""OpenAI's embeddings: from its request to ours, and from the answer's events to its object (pure)."""

import base64
import struct
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshnode import inference
from meshnode.api import body as body_of
from meshnode.errors import InternalError, InvalidRequest
from meshnode.inference import MAX_INPUTS, Chunk, End, Event, Usage

MAX_ANSWER = 64 * 1024 * 1024
"""Of base64: as many vectors of 6,000 numbers as one request may ask for."""


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    """Texts alone: token ids mean something else to every model."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked; whether vectors are wanted as base64; and of how many numbers, where that matters to the caller."""

    request: inference.Request
    base64: bool
    dimensions: int | None


_DECODER = msgspec.json.Decoder(_Body)


def embeddings_request(body: bytes, *, request_id: str) -> EmbeddingsRequest:
    """Raises InvalidRequest, whose `param` names the field."""
    asked = body_of.decoded(body, _DECODER)
    inputs = (asked.input,) if isinstance(asked.input, str) else tuple(asked.input)
    if "" in inputs:
        raise InvalidRequest(f"`input[{inputs.index('')}]` is empty.", param="input")
    return EmbeddingsRequest(
        request=inference.Request(id=request_id, model=asked.model, messages=(), inputs=inputs),
        base64=asked.encoding_format == "base64",
        dimensions=asked.dimensions,
    )


class Collected:
    """The vectors of an answer in the making: `add` its events, then ask for the `response`."""

    def __init__(self, asked: EmbeddingsRequest) -> None:
        self._asked = asked
        self._parts: dict[int, list[str]] = {}
        self._vectors: dict[int, bytes] = {}
        self._size = 0
        self._usage: Usage | None = None

    def add(self, batch: Iterable[Event]) -> None:
        """Raises InvalidRequest where the vectors have another length than wanted, InternalError for what are no vectors."""
        for event in batch:
            if isinstance(event, Chunk):
                self._size += len(event.text)
                if self._size > MAX_ANSWER:
                    raise InvalidRequest("The embeddings of all texts together are too large.", hint="Send fewer.", param="input")
                self._parts.setdefault(event.choice, []).append(event.text)
                if event.finish is not None:
                    self._vectors[event.choice] = self._vector("".join(self._parts.pop(event.choice)))
            elif isinstance(event, End):
                self._usage = event.usage

    def _vector(self, text: str) -> bytes:
        """As JSON."""
        try:
            packed = base64.b64decode(text, validate=True)
            values = struct.unpack(f"<{len(packed) // 4}f", packed)
        except (ValueError, struct.error):
            raise InternalError("What came is not a vector.") from None
        if self._asked.dimensions not in {None, len(values)}:
            message = f"The embeddings of this model have {len(values)} dimensions, not {self._asked.dimensions}."
            raise InvalidRequest(message, hint="Leave `dimensions` out.", param="dimensions")
        return msgspec.json.encode(text if self._asked.base64 else values)

    @property
    def vectors(self) -> list[msgspec.Raw]:
        """In the order of the texts, as JSON. Raises InternalError when the events did not come to their end."""
        count = len(self._asked.request.inputs or ())
        if self._usage is None or self._vectors.keys() != set(range(count)):
            raise InternalError("The answer ended without all vectors.")
        return [msgspec.Raw(self._vectors[index]) for index in range(count)]

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return self._usage.prompt_tokens if self._usage else 0

    def response(self, model: str) -> bytes:
        """The object as JSON. Raises InternalError when the events did not come to their end."""
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(self.vectors)]
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})
