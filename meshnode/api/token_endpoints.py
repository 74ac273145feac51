"""The endpoints about tokens. Each asks whoever has the model, by a request that draws nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from meshnode.api.answering import collect, served_by
from meshnode.api.anthropic import count_request
from meshnode.api.collected import MAX_ANSWER
from meshnode.api.exchange import Answer, Exchange, json_response
from meshnode.api.http import Response
from meshnode.api.tokens import detokenize_request, first_token_request, tokenize_request
from meshnode.errors import InternalError
from meshnode.inference import Chunk


@asynccontextmanager
async def count_tokens(exchange: Exchange) -> AsyncIterator[Response]:
    async with exchange.node.submit(count_request(exchange.request.body, request_id=exchange.id)) as answer:
        collected = await collect(answer)
        body = msgspec.json.encode({"input_tokens": collected.end.usage.prompt_tokens})
        yield json_response(body, headers=served_by(answer))


@asynccontextmanager
async def tokenize(exchange: Exchange) -> AsyncIterator[Response]:
    listings = exchange.node.models()
    measured = tokenize_request(exchange.request.body, request_id=exchange.id, models=[each.id for each in listings])
    first: list[int] = []
    if not measured.with_first:
        async with exchange.node.submit(first_token_request(measured.request)) as answer:
            first = (await _echoed(answer))[0]
    async with exchange.node.submit(measured.request) as answer:
        tokens = (await _echoed(answer))[0]
        if tokens[: len(first)] == first:
            del tokens[: len(first)]
        longest = next((each.context_length for each in listings if answer.model in {each.id, *each.aliases}), 0)
        body = msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": longest})
        yield json_response(body, headers=served_by(answer))


@asynccontextmanager
async def detokenize(exchange: Exchange) -> AsyncIterator[Response]:
    """The text under llama-server's name for it and under vLLM's."""
    models = [each.id for each in exchange.node.models()]
    async with exchange.node.submit(detokenize_request(exchange.request.body, request_id=exchange.id, models=models)) as answer:
        text = (await _echoed(answer))[1]
        yield json_response(msgspec.json.encode({"content": text, "prompt": text}), headers=served_by(answer))


async def _echoed(answer: Answer) -> tuple[list[int], str]:
    """The tokens and the text of an answer. Raises InternalError when a serving node sends too much."""
    tokens: list[int] = []
    texts: list[str] = []
    size = 0
    async for batch in answer.events:
        for chunk in (event for event in batch if isinstance(event, Chunk)):
            size += 8 * len(chunk.token_ids) + len(chunk.text)
            if size > MAX_ANSWER:
                raise InternalError(f"The answer is longer than {MAX_ANSWER} bytes.")
            tokens += chunk.token_ids
            texts.append(chunk.text)
    return tokens, "".join(texts)
