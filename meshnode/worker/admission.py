"""Whether what a request asks is possible, and how its tokens are drawn: the request's wishes before the file's."""

import math
import secrets
from collections.abc import Collection
from hashlib import blake2b
from typing import TypeVar

import msgspec

from meshnode import tools
from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import MAX_BIASES, MAX_CHOICES, MAX_TOP_LOGPROBS, Request, Sampling
from meshnode.worker import sampling
from meshnode.worker.gguf import Facts
from meshnode.worker.penalties import DEFAULT_LAST, Bias, Penalties

Number = TypeVar("Number", int, float)


def seed(request: Request) -> str:
    """Of the ids of its calls. A client may give all its requests the same id, but a conversation grows."""
    return f"{request.id}/{blake2b(msgspec.msgpack.encode(request.messages), digest_size=16).hexdigest()}"


def wanted_tools(request: Request) -> tools.Tools:
    """The tools for this answer, once everything about tools is known to be right: a peer may send anything."""
    for index, message in enumerate(request.messages):
        if message.tool_calls is not None:
            tools.calls(message.tool_calls, f"messages[{index}].tool_calls")
    names = tools.names(request.tools) if request.tools is not None else ()
    return tools.requested(names, request.tool_choice)


def check(request: Request) -> None:
    """Refuse by name what this worker cannot do yet, and values that make no sense."""
    formed = request.response_format.kind != "text"
    unsupported = {"response_format": formed and bool(wanted_tools(request).names)}
    asked = request.sampling
    invalid = {
        "n": not 1 <= request.n <= MAX_CHOICES,
        "resume": request.resume is not None
        and (len(request.resume) != request.n or any(min(each.emitted) < 0 for each in request.resume)),
        "echo": request.echo and request.sampling.max_tokens != 0,
        "messages": [bool(request.messages), request.prompt is not None, request.inputs is not None].count(True) != 1,
        "temperature": asked.temperature is not None and not asked.temperature >= 0,
        "top_p": asked.top_p is not None and not 0 < asked.top_p <= 1,
        "top_k": asked.top_k is not None and asked.top_k < 0,
        "max_tokens": asked.max_tokens is not None and asked.max_tokens < 0,
        "stop": not all(asked.stop),
        "logprobs": request.logprobs is not None and not 0 <= request.logprobs.top <= MAX_TOP_LOGPROBS,
        "min_p": not _within(asked.min_p, 0, 1),
        "typical_p": asked.typical_p == 0 or not _within(asked.typical_p, 0, 1),
        "repeat_penalty": not _within(asked.repeat_penalty, 0.1, 10),
        "repeat_last_n": asked.repeat_last_n is not None and asked.repeat_last_n < -1,
        "presence_penalty": not _within(asked.presence_penalty, -2, 2),
        "frequency_penalty": not _within(asked.frequency_penalty, -2, 2),
        "logit_bias": len(asked.logit_bias) > MAX_BIASES or not all(_within(each.bias, -100, 100) for each in asked.logit_bias),
    }
    for param in (name for name, wrong in unsupported.items() if wrong):
        raise Unsupported(f"This node's worker does not support {param!r} together with tools yet.", param=param)
    for param in (name for name, wrong in invalid.items() if wrong):
        raise InvalidRequest(f"The value of {param!r} is not possible.", param=param)


def _within(value: float | None, low: float, high: float) -> bool:
    """Also for none; never for one that is not a number."""
    return value is None or low <= value <= high


def check_tokens(request: Request, vocabulary: int) -> None:
    """Refuse by its id a token that the model does not have."""
    named = {
        "logit_bias": (each.token for each in request.sampling.logit_bias),
        "resume": (token for each in request.resume or () for token in each.token_ids),
        "prompt": request.prompt if isinstance(request.prompt, tuple) else (),
    }
    for param, tokens in named.items():
        for token in (token for token in tokens if not 0 <= token < vocabulary):
            message = f"{param!r} names token {token}; this model's are 0 to {vocabulary - 1}."
            raise InvalidRequest(message, param=param)


def sampler(asked: Sampling, facts: Facts, ending: Collection[int] = ()) -> sampling.Sampler:
    """The request's wishes before the file's before llama.cpp's. `ending` are the tokens with which the model ends an answer."""
    biases = {each.token: each.bias for each in asked.logit_bias} | (dict.fromkeys(ending, -math.inf) if asked.ignore_eos else {})
    return sampling.Sampler(
        seed=secrets.randbits(64) if asked.seed is None else asked.seed,
        temperature=_first(asked.temperature, facts.temperature, sampling.DEFAULT_TEMPERATURE),
        top_p=_first(asked.top_p, facts.top_p, sampling.DEFAULT_TOP_P),
        top_k=_first(asked.top_k, facts.top_k, sampling.DEFAULT_TOP_K),
        min_p=_first(asked.min_p, 0.0),
        typical_p=_first(asked.typical_p, 1.0),
        penalties=Penalties(
            repeat=_first(asked.repeat_penalty, 1.0),
            last=_first(asked.repeat_last_n, DEFAULT_LAST),
            presence=_first(asked.presence_penalty, 0.0),
            frequency=_first(asked.frequency_penalty, 0.0),
        ),
        bias=Bias(biases) if biases else None,
    )


def _first(*values: Number | None) -> Number:
    return next(value for value in values if value is not None)
