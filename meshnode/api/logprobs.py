"""Log-probabilities as OpenAI's chat completions show them (pure)."""

from collections.abc import Iterable

import msgspec

from meshnode.inference import Alternative, TokenLogprob


def entry(token: TokenLogprob) -> bytes:
    """One token of `content` as JSON."""
    return msgspec.json.encode(fields(token))


def fields(token: TokenLogprob) -> dict[str, object]:
    """The same, before it is encoded."""
    return {**_shown(token), "top_logprobs": [_shown(other) for other in token.top]}


def shown(entries: Iterable[bytes]) -> bytes:
    """A choice's `logprobs` as JSON."""
    return b'{"content":[%b],"refusal":null}' % b",".join(entries)


def _shown(token: TokenLogprob | Alternative) -> dict[str, object]:
    """`bytes` are exact; `token` shows part of a character as U+FFFD."""
    return {"token": token.text.decode(errors="replace"), "logprob": token.logprob, "bytes": list(token.text)}
