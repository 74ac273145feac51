"""The one internal form of a request and of its answer: api, wire, dispatch, worker and bridges all speak it (pure).

A client's JSON becomes a `Request` at the node that it asked, and never travels further as JSON. The answer is a sequence of
events: any number of `Progress` and `Chunk`, then one `End`; a failure is an exception of `meshnode.errors` instead of `End`.
The types are msgspec structs because they cross process and machine borders; unknown fields of a newer peer are ignored.
"""

import base64
from enum import IntEnum, StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_CHOICES = 8
"""Of one request. Each takes a slot, and one client should not have them all for long: a guess."""
MAX_BIASES = 1024
"""In one request. OpenAI takes 300; each costs every token of the answer some nanoseconds."""

MAX_TOP_LOGPROBS = 20
"""OpenAI's bound."""
MAX_TOKEN_TEXT = 256
"""Bytes of a token's text beside its log-probability; longer ones, runs of blanks mostly, are cut. So twenty fit into a frame."""
MAX_INPUTS = 2048
"""Texts in one request for embeddings; OpenAI's bound."""
MAX_SCHEMA = 64 * 1024
"""Bytes of a schema or a grammar (security rule 15): ten times what people write."""
MAX_TOOL_CALLS = 128
"""In one choice of an answer; OpenAI's bound of tools in a request. What a model writes beyond stays text."""
MAX_TOOL_NAME = 128
"""MCP's bound, twice OpenAI's."""
MAX_ARGUMENTS_PIECE = 16 * 1024
"""Characters of a call's arguments in one event; there may be any number of them."""
LOWEST_LOGPROB = -9999.0
"""OpenAI's number for what is next to impossible: JSON has no infinity."""


class Priority(IntEnum):
    INTERACTIVE = 0
    DEFAULT = 1
    BATCH = 2


class Finish(StrEnum):
    """Why a choice ended; the words of OpenAI's `finish_reason`."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Phase(StrEnum):
    """What a request that has no token yet is waiting for."""

    QUEUED = "queued"
    LOADING = "loading"
    PREFILL = "prefill"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation. `name`, `tool_calls` and `tool_call_id` are OpenAI's; tool calls stay JSON text."""

    role: str
    content: str
    name: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None


class Bias(msgspec.Struct, frozen=True, array_like=True):
    """What is added to the logit of one token."""

    token: int
    bias: float


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn, in the order of `worker/sampling.py`. None means the worker's default for the model."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    """Of the answer, per choice; None means until the context is full. 0: only count the prompt, of whatever length."""
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[Bias, ...] = ()
    """Of several for one token the last counts."""
    ignore_eos: bool = False
    """Never draw what ends an answer: it goes on to its limit."""


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Asked for: the log-probability of each token, and of the `top` likeliest ones, at most `MAX_TOP_LOGPROBS`."""

    top: int = 0


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is text, json_object, json_schema or grammar; `schema` is the schema as JSON text, or the grammar in GBNF."""

    kind: str = "text"
    schema: str | None = None


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Continue an answer that another node began: replay `token_ids` in silence, then emit only what is beyond `emitted`."""

    token_ids: tuple[int, ...]
    emitted_chars: int
    emitted_reasoning: int = 0
    emitted_arguments: int = 0

    @property
    def emitted(self) -> tuple[int, int, int]:
        """Characters of text, of reasoning, and of the arguments of all calls together: arguments are never empty."""
        return self.emitted_chars, self.emitted_reasoning, self.emitted_arguments


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One generation to run. `id` is unique in the mesh and is what logs and `x-request-id` show."""

    id: str
    model: str
    """As resolved: a model's name, without `@node` or aliases of other nodes."""
    messages: tuple[Message, ...]
    prompt: str | tuple[int, ...] | None = None
    """In place of messages and a template: the model goes on with this very text, in which it may name control tokens, or with
    these very tokens."""
    echo: bool = False
    """With `max_tokens` 0: the answer is the prompt itself, as text and tokens."""
    sampling: Sampling = Sampling()
    n: int = 1
    tools: str | None = None
    """JSON text of OpenAI's `tools`."""
    tool_choice: str | None = None
    """JSON text of OpenAI's `tool_choice`."""
    parallel_tool_calls: bool = True
    """Whether an answer may call several tools; else it ends with the first call."""
    thinking: bool | None = None
    """Whether the model shall think before it answers, where its template leaves us the choice. None: as the template has it."""
    response_format: ResponseFormat = ResponseFormat()
    logprobs: Logprobs | None = None
    priority: Priority = Priority.DEFAULT
    deadline_ms: int | None = None
    """How long the caller will still wait, counted from when the request was sent on."""
    caller: str = ""
    """Entry node and API key id, for fairness only."""
    hops: int = 0
    """0 at the entry node, 1 at a peer; a request with 1 is never forwarded."""
    worker_deaths: int = 0
    """How many workers died under it (security rule 15)."""
    expected_ms: int | None = None
    """When the asker thinks that the first token will come from the peer that it sends this to; None: it made no estimate."""
    bounces: int = 0
    """How often a peer gave it back."""
    resume: tuple[Resume, ...] | None = None
    """Where to go on, for each of the `n` choices; None: from the start."""
    inputs: Annotated[tuple[str, ...], Meta(max_length=MAX_INPUTS)] | None = None
    """Texts to embed; then there are no messages. Choice i of the answer is the vector of text i, see `vector_text`."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Token counts. `cached_tokens` of the prompt were found in the KV cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Where the time went, in milliseconds, measured by the worker."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Progress(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="progress"):
    """Still at it: sent at least every few seconds before the first token, so that a busy node can be told from a dead one."""

    phase: Phase
    done: int = 0
    total: int = 0


TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
TokenText = Annotated[bytes, Meta(max_length=MAX_TOKEN_TEXT)]
LogProbability = Annotated[float, Meta(ge=LOWEST_LOGPROB, le=0)]


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A token that could have been drawn. `text` are bytes since a token may be part of a character."""

    token: TokenId
    text: TokenText
    logprob: LogProbability


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely the model thought a token that was drawn, before any filter, and the likeliest ones."""

    token: TokenId
    text: TokenText
    logprob: LogProbability
    top: Annotated[tuple[Alternative, ...], Meta(max_length=MAX_TOP_LOGPROBS)] = ()


class ToolCall(msgspec.Struct, frozen=True, array_like=True):
    """A piece of the call of a tool. The first piece of an `index` has `id` and `name`; later ones only add to `arguments`."""

    index: Annotated[int, Meta(ge=0, le=MAX_TOOL_CALLS - 1)]
    id: Annotated[str, Meta(max_length=128)]
    name: Annotated[str, Meta(max_length=MAX_TOOL_NAME)]
    arguments: Annotated[str, Meta(max_length=MAX_ARGUMENTS_PIECE)]
    """JSON text, or a part of it."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="chunk"):
    """A piece of choice `choice`. `text` may be empty while a character or a possible stop string is held back.

    `token_ids` are the tokens drawn since the last chunk, held-back text included. `finish` is set on the choice's last chunk.
    `logprobs`, where asked for, are those of `token_ids`, without the token that ends the answer. What the model thinks before it
    answers is `reasoning` and no part of the text, and neither are its calls of tools. `stop` tells beside `finish` which of the
    request's stop strings ended the choice, if one did.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop: int | None = None


class End(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="end"):
    """The answer is complete: every choice has had its `finish`."""

    usage: Usage
    timings: Timings = Timings()


Event = Progress | Chunk | End


def vector_text(values: bytes) -> str:
    """A vector as the text of an answer: base64 of its little-endian single-precision numbers, as OpenAI's API shows it.

    So embeddings take the way of all answers, with the same credit, limits and failover, for a third more bytes.
    """
    return base64.b64encode(values).decode()
