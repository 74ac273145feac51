"""Text to tokens and back: the requests of llama-server's and vLLM's `tokenize` and `detokenize` (pure).

Only who has the model has its tokenizer, so both are requests that draw nothing. The two servers take different fields on one
path: `content` is llama-server's, `prompt` and `messages` are vLLM's.
"""

from collections.abc import Sequence

import msgspec

from meshnode.api import body as body_of
from meshnode.api.openai import ChatMessages, chat_messages
from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import Request, Sampling
from meshnode.names import printable

MAX_TOKENS = 128 * 1024
"""In one request: a long context, and small enough to be sent at once."""


class _Tokenize(msgspec.Struct, frozen=True):
    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: ChatMessages | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class _Detokenize(msgspec.Struct, frozen=True):
    tokens: msgspec.Raw
    model: str | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A request for the tokens of a prompt, and whether the token that every prompt begins with is wanted among them."""

    request: Request
    with_first: bool


_TOKENIZE, _DETOKENIZE = msgspec.json.Decoder(_Tokenize), msgspec.json.Decoder(_Detokenize)


def tokenize_request(body: bytes, *, request_id: str, models: Sequence[str]) -> Measured:
    """`models` are those there are: where there is one, it need not be named. Raises InvalidRequest or Unsupported."""
    asked = body_of.decoded(body, _TOKENIZE)
    for name, wrong in {
        "with_pieces": asked.with_pieces,
        "return_token_strs": asked.return_token_strs,
        "parse_special": asked.parse_special is False,
    }.items():
        if wrong:
            raise Unsupported(f"`{name}` is not supported.", hint="Leave it out.", param=name)
    request = _nothing(request_id, _model(asked.model, models))
    if asked.messages is not None:
        return Measured(request=msgspec.structs.replace(request, messages=chat_messages(asked.messages)), with_first=True)
    if asked.content is not None:
        return Measured(request=msgspec.structs.replace(request, prompt=asked.content), with_first=bool(asked.add_special))
    if asked.prompt is not None:
        with_first = asked.add_special_tokens is not False
        return Measured(request=msgspec.structs.replace(request, prompt=asked.prompt), with_first=with_first)
    raise InvalidRequest("One of `content`, `prompt` and `messages` must be there.", param="prompt")


def detokenize_request(body: bytes, *, request_id: str, models: Sequence[str]) -> Request:
    """As `tokenize_request`."""
    asked = body_of.decoded(body, _DETOKENIZE)
    request = _nothing(request_id, _model(asked.model, models))
    return msgspec.structs.replace(request, prompt=token_ids(asked.tokens, "tokens"))


def token_ids(raw: msgspec.Raw, place: str) -> tuple[int, ...]:
    """Raises InvalidRequest."""
    text = body_of.text(raw, place) or "[]"
    try:
        ids: list[int] = msgspec.json.decode(text, type=list[int])
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`{place}` is wrong: {printable(str(error))}.", param=place) from None
    if len(ids) > MAX_TOKENS or any(not 0 <= token < 2**32 for token in ids):
        raise InvalidRequest(f"`{place}` must be at most {MAX_TOKENS} token ids.", param=place)
    return tuple(ids)


def first_token_request(measured: Request) -> Request:
    """What an empty prompt is made of, on the same model."""
    return msgspec.structs.replace(measured, id=f"{measured.id}-first", messages=(), prompt="")


def _nothing(request_id: str, model: str) -> Request:
    return Request(id=request_id, model=model, messages=(), sampling=Sampling(max_tokens=0), echo=True)


def _model(named: str | None, models: Sequence[str]) -> str:
    if named:
        return named
    if len(models) != 1:
        raise InvalidRequest(
            f"`model` is missing; there are {len(models)} to choose from.", hint="See /v1/models.", param="model"
        )
    return models[0]
