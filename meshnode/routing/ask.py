"""What the choice of a node needs to know of a request (pure)."""

import msgspec

from meshnode.inference import Priority, Request
from meshnode.names import ModelDigest
from meshnode.routing.prefix import BLOCK, chain_of

BYTES_PER_TOKEN = 4.0
"""Of English in UTF-8; 2 to 3 for other scripts. Only the model's own tokenizer knows, and the router need not have the model."""
TURN_TOKENS = 4
"""That a chat template writes around each message."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request in figures. `output_tokens` is what to expect of the answer, not its limit."""

    prompt_tokens: float
    output_tokens: float
    priority: Priority = Priority.DEFAULT
    chain: tuple[int, ...] = ()
    """Of its prompt's beginning; empty: affinity is of no interest."""
    block_tokens: float = BLOCK / BYTES_PER_TOKEN
    """Tokens in a block of the chain."""


def ask_of(request: Request, digest: ModelDigest, *, usual_output: float) -> Ask:
    """`usual_output`: tokens of an answer of this model so far, on average."""
    prompt = request.prompt if isinstance(request.prompt, str) else ""
    texts = (*(message.content for message in request.messages), *(request.inputs or ()), request.tools or "", prompt)
    tokens = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / BYTES_PER_TOKEN
    tokens += TURN_TOKENS * len(request.messages) + (len(request.prompt) if isinstance(request.prompt, tuple) else 0)
    resumed = sum(len(each.token_ids) for each in request.resume or ()) // max(1, request.n)
    limit = request.sampling.max_tokens
    expected = usual_output if limit is None else min(limit, usual_output)
    if request.inputs is not None:
        expected = 0.0  # embeddings draw nothing
    return Ask(
        prompt_tokens=tokens + resumed,
        output_tokens=max(1.0, expected - resumed) * max(1, request.n),
        priority=request.priority,
        chain=chain_of(request, digest),
    )
