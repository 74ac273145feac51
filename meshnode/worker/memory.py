"""How much memory a model will take, before it is loaded, and what is free for it (pure).

    weights    the file's size: mapped, or copied into another order, never both for long
    KV cache   bytes of a token over all layers x context x slots, and the state of recurrent layers x slots
    buffers    4 x rows x (vocabulary + 3 x width + hidden) + 2 x rows x context x slots
    program    the child and its renderer, and what llama.cpp keeps of each token of the vocabulary

The first two are exact (llama.cpp prints the same). The third follows `llama_context::graph_reserve`: the largest tensor of a
batch are the logits of all its rows in 32-bit floats, as of Qwen 2.5 with 152 k tokens, 297 MiB of 305; beside them lie some
rows of activations and the mask of the attention in 16-bit floats. Over models of 1 to 560 MiB llama.cpp's own figure is 64 to
95 % of ours. The fourth was measured: 42 MiB for Python with llama.cpp, 24 for the renderer, 310 to 430 bytes a token. After a
request, what the processes of these models really had was 54 to 87 % of the sum: never more, and less for small ones, whose
buffers are hardly used.
"""

from collections.abc import Iterable
from typing import NamedTuple

from meshnode.worker.compute import KvType
from meshnode.worker.gguf import Facts
from meshnode.worker.machine import human

ROWS = 512
"""Of one batch: `llama.BATCH`, of which the parent knows nothing."""
PROGRAM_BYTES = 80 * 1024 * 1024
TOKEN_BYTES = 450


class Need(NamedTuple):
    """Bytes that a model takes once it is loaded and at work."""

    weights: int
    kv_cache: int
    buffers: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = f"{human(self.weights)} weights, {human(self.kv_cache)} KV cache, {human(self.buffers)} buffers"
        return f"{human(self.total)}: {parts}, {human(self.program)} for the program"


class Held(NamedTuple):
    """A loaded model: what it was estimated to need, and what its process has in memory of its own (mapped files left out)."""

    need: int
    resident: int


def need(facts: Facts, *, slots: int, context_length: int, kv_type: KvType = KvType.F16) -> Need:
    """Of a model with so many slots of `context_length` tokens each, on the processor."""
    context = slots * context_length
    return Need(
        weights=facts.size,
        kv_cache=round(facts.kv_bytes_per_token * context * kv_type.bits / 16) + facts.state_bytes_per_slot * slots,
        buffers=ROWS * (4 * (facts.vocabulary + 3 * facts.width + facts.hidden) + 2 * context),
        program=PROGRAM_BYTES + TOKEN_BYTES * facts.vocabulary,
    )


def free(available: int, held: Iterable[Held]) -> int:
    """What is left for another model of the `available` bytes that the system tells.

    It counts as available what loaded models still need: weights that are mapped look like any other cached file, and buffers are
    taken only when they are first used.
    """
    return available - sum(max(0, each.need - each.resident) for each in held)
