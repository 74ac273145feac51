"""The endpoints about API keys, for admins. A key's text is in the answer that makes it, and nowhere else."""

import time

import msgspec

from meshnode.api.exchange import Exchange, json_response, plain
from meshnode.api.http import Response
from meshnode.errors import InvalidRequest, NotFound
from meshnode.keys import Wanted, shown
from meshnode.names import printable


@plain
def listed(exchange: Exchange) -> Response:
    return json_response(msgspec.json.encode({"keys": [shown(key) for key in exchange.keys]}))


@plain
def new(exchange: Exchange) -> Response:
    try:
        wanted = msgspec.json.decode(exchange.request.body or b"{}", type=Wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        hint = "It may hold scope (use or admin), requests_per_minute and tokens_per_minute."
        raise InvalidRequest(f"The body is wrong: {printable(str(error))}.", hint=hint) from error
    key, text = exchange.keys.new(wanted, now=time.time())
    return json_response(msgspec.json.encode({**shown(key), "key": text}), headers=(("cache-control", "no-store"),))


@plain
def revoke(exchange: Exchange) -> Response:
    key = exchange.keys.revoke(exchange.rest)
    if key is None:
        raise NotFound(f"There is no key {printable(exchange.rest, 64)}.", hint="See: meshnode key list")
    return json_response(msgspec.json.encode(shown(key)))
