"""From OpenAI's older completions request to ours (pure): plain prompts, which no chat template touches.

A list of prompts is one request for each. What is known and cannot be honoured is refused by name: `suffix`, `best_of`, and
`echo` of token ids or with `logprobs`, which asks how likely the prompt was.
"""

import re
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from meshnode import inference
from meshnode.api import body as body_of
from meshnode.api.body import ABSENT
from meshnode.api.bounds import Bounds, check_bounds
from meshnode.api.completion import Identity
from meshnode.api.dialect import Asked
from meshnode.api.openai import Format, StreamOptions, response_format, wants_usage
from meshnode.api.sampling import Fields, sampling
from meshnode.api.text_completion import Echo, TextStream, text_completion
from meshnode.api.tokens import token_ids
from meshnode.errors import InvalidRequest, Unsupported
from meshnode.names import printable

MAX_PROMPTS = 64
"""In one request; each of them is one in the mesh."""
_MAX_TOKENS = 16
"""OpenAI's default, and vLLM's: older clients count on a short answer."""


class _Body(Fields, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    prompt: msgspec.Raw = ABSENT
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None
    grammar: str | None = None
    """llama-server's, as `response_format` is vLLM's."""
    response_format: Format | None = None


_DECODER = msgspec.json.Decoder(_Body)
_HONOURED = body_of.fields(_Body)


def completion_request(body: bytes, *, request_id: str, created: int) -> Asked:
    """`created` is in Unix seconds. Raises InvalidRequest or Unsupported, whose `param` names the field."""
    asked = body_of.decoded(body, _DECODER)
    check_bounds("n", asked.n, Bounds(1, inference.MAX_CHOICES))
    check_bounds("logprobs", asked.logprobs, Bounds(0, inference.MAX_TOP_LOGPROBS))
    _refuse(asked)
    prompts = _prompts(asked.prompt)
    texts = tuple(prompt for prompt in prompts if isinstance(prompt, str))
    if asked.echo and texts != prompts:
        raise Unsupported("`echo` of token ids is not supported.", hint="Send the prompt as text.", param="echo")
    count = asked.n or 1
    requests = tuple(
        inference.Request(
            id=f"{request_id}-{index}" if index else request_id,
            model=asked.model,
            messages=(),
            prompt=prompt,
            sampling=_sampling(asked),
            n=count,
            response_format=response_format(asked.response_format, asked.grammar),
            logprobs=None if asked.logprobs is None else inference.Logprobs(top=asked.logprobs),
        )
        for index, prompt in enumerate(prompts)
    )
    identity = Identity(id=f"cmpl-{request_id}", created=created)
    echo = Echo(prompts=texts if asked.echo else (), n=count)
    stream = TextStream(identity, include_usage=wants_usage(asked.stream_options), echo=echo) if asked.stream else None
    whole = partial(text_completion, identity=identity, echo=echo)
    return Asked(requests=requests, stream=stream, whole=whole, ignored=body_of.ignored(body, _HONOURED))


def _sampling(asked: _Body) -> inference.Sampling:
    drawn = sampling(asked)
    return msgspec.structs.replace(drawn, max_tokens=_MAX_TOKENS) if drawn.max_tokens is None else drawn


def _refuse(asked: _Body) -> None:
    wrong = {
        "suffix": (bool(asked.suffix), "Put the model's own marks for it into the prompt."),
        "best_of": (asked.best_of not in (None, asked.n or 1), "Ask for `n`, and choose yourself."),
        "echo": (bool(asked.echo) and asked.logprobs is not None, "Leave out `logprobs`, or `echo`."),
    }
    for name, (is_wrong, hint) in wrong.items():
        if is_wrong:
            raise Unsupported(f"`{name}` is not supported.", hint=hint, param=name)


def _prompts(raw: msgspec.Raw) -> tuple[str | tuple[int, ...], ...]:
    """A text, or several; or the same as token ids."""
    if not bytes(raw):
        raise InvalidRequest("`prompt` is missing.", param="prompt")
    beginning = bytes(raw)[:64].translate(None, b" \t\r\n")
    if re.match(rb"\[[-0-9]", beginning):
        return (token_ids(raw, "prompt"),)
    kind = list[msgspec.Raw] if beginning.startswith(b"[[") else str | list[str]
    try:
        found: str | list[str] | list[msgspec.Raw] = msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`prompt` is wrong: {printable(str(error))}.", param="prompt") from None
    if isinstance(found, str):
        return (found,)
    if not 1 <= len(found) <= MAX_PROMPTS:
        raise InvalidRequest(f"`prompt` holds {len(found)} prompts; 1 to {MAX_PROMPTS} are allowed.", param="prompt")
    return tuple(each if isinstance(each, str) else token_ids(each, "prompt") for each in found)
