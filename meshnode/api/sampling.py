"""How a chat request says that tokens are to be drawn: OpenAI's fields, and llama-server's beside them (pure)."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from meshnode.api.bounds import Bounds, check_bounds
from meshnode.errors import InvalidRequest
from meshnode.inference import MAX_BIASES, Bias, Sampling
from meshnode.names import printable

_ABSENT = msgspec.Raw(b"null")
_MANY = 2**31 - 1
BOUNDS: Mapping[str, Bounds] = {
    "max_tokens": Bounds(1, _MANY),
    "max_completion_tokens": Bounds(1, _MANY),
    "temperature": Bounds(0, 2),
    "top_p": Bounds(0, 1),
    "top_k": Bounds(0, _MANY),
    "seed": Bounds(-(2**63), 2**63 - 1),
    "min_p": Bounds(0, 1),
    "typical_p": Bounds(0, 1, excluded=True),
    "repeat_penalty": Bounds(0.1, 10),
    "repeat_last_n": Bounds(-1, _MANY),
    "presence_penalty": Bounds(-2, 2),
    "frequency_penalty": Bounds(-2, 2),
}
"""OpenAI's where it has the field; that a repetition penalty is of no use beyond 10, either way, is a guess."""
_BIAS = Bounds(-100, 100)
_MAX_BIAS_JSON = 64 * 1024
"""Twice what the most biases take."""
_TOKEN = re.compile(r"[0-9]{1,10}", re.ASCII)


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a request's body that is about drawing. `top_k` and all from `min_p` to `ignore_eos` are llama-server's."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: msgspec.Raw = _ABSENT
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    ignore_eos: bool | None = None


def sampling(asked: Fields) -> Sampling:
    """Raises InvalidRequest, whose `param` names the field."""
    for name, bounds in BOUNDS.items():
        check_bounds(name, getattr(asked, name), bounds)
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        max_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        stop=_stop(asked.stop or ()),
        min_p=asked.min_p,
        typical_p=asked.typical_p,
        repeat_penalty=asked.repeat_penalty,
        repeat_last_n=asked.repeat_last_n,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=_logit_bias(asked.logit_bias),
        ignore_eos=bool(asked.ignore_eos),
    )


def _stop(asked: str | Sequence[str]) -> tuple[str, ...]:
    """An empty one stands for none: it would end every answer before it begins."""
    return tuple(text for text in ([asked] if isinstance(asked, str) else asked) if text)


def _logit_bias(asked: msgspec.Raw) -> tuple[Bias, ...]:
    """Which tokens the model has is for the worker to say."""
    biases = _decoded(asked)
    if len(biases) > MAX_BIASES:
        raise InvalidRequest(f"`logit_bias` names {len(biases)} tokens; at most {MAX_BIASES} are allowed.", param="logit_bias")
    for token, bias in biases.items():
        if not _TOKEN.fullmatch(token):
            message = f"`logit_bias` is from token ids to numbers; `{printable(token, 40)}` is no token id."
            raise InvalidRequest(message, param="logit_bias")
        check_bounds(f"logit_bias[{token}]", bias, _BIAS)
    return tuple(Bias(int(token), bias) for token, bias in biases.items())


def _decoded(asked: msgspec.Raw) -> dict[str, float]:
    """Apart from the body, and only if it is small: what fits into 8 MiB takes nearly a second."""
    if len(bytes(asked)) > _MAX_BIAS_JSON:
        raise InvalidRequest(f"`logit_bias` is larger than {_MAX_BIAS_JSON} bytes.", param="logit_bias")
    try:
        return msgspec.json.decode(asked, type=dict[str, float] | None) or {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`logit_bias` is wrong: {printable(str(error))}.", param="logit_bias") from None
