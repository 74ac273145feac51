"""The endpoints behind `meshnode drain` and `meshnode explain`, for who has the node's secret."""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from meshnode.api.exchange import Exchange, json_response, plain
from meshnode.api.http import Response
from meshnode.errors import InvalidRequest
from meshnode.inference import Request, Sampling
from meshnode.names import printable

MAX_TOKENS = 1 << 24
"""To ask about: more than any model reads."""
Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Wanted = TypeVar("Wanted")


class _Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    on: bool = True
    hand_over: bool = False


class _Explain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    prompt_tokens: Tokens = 100
    max_tokens: Tokens | None = None


@plain
def drain(exchange: Exchange) -> Response:
    wanted = _wanted(exchange, _Drain, '{"on": BOOLEAN, "hand_over": BOOLEAN}')
    return json_response(msgspec.json.encode(exchange.node.drain(wanted.on, hand_over=wanted.hand_over)))


@plain
def explain(exchange: Exchange) -> Response:
    wanted = _wanted(exchange, _Explain, '{"model": NAME, "prompt_tokens": NUMBER}')
    request = Request(id=exchange.id, model=wanted.model, messages=(), sampling=Sampling(max_tokens=wanted.max_tokens))
    return json_response(msgspec.json.encode(exchange.node.explain(request, prompt_tokens=wanted.prompt_tokens)))


def _wanted(exchange: Exchange, kind: type[Wanted], form: str) -> Wanted:
    try:
        return msgspec.json.decode(exchange.request.body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body must be {form}: {printable(str(error))}.") from error
