"""What the engine asks of a loaded model (pure): `llama.LlamaRuntime` has it from llama.cpp, tests from a table."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from meshnode.worker.sampling import Logits


class NoRoom(Exception):
    """The KV cache has no room for a batch. Nothing was run and nothing has changed: free some and ask again."""


class Span(NamedTuple):
    """Consecutive tokens of one sequence in a batch; the last one's logits are wanted when `last`."""

    slot: int
    start: int
    tokens: Sequence[int]
    last: bool


class Runtime(Protocol):
    """A loaded model with `slots` sequences and `pool` tokens of KV cache.

    `unified`: any slot may take any part of the pool, and slots can share what begins alike. Otherwise each has its own equal
    part, and shares nothing. No sequence may be longer than `context_length`, which a slot's own part always holds, or the pool.
    """

    slots: int
    context_length: int
    pool: int
    unified: bool
    batch_size: int

    def decode(self, spans: Sequence[Span]) -> Sequence[Logits]:
        """Run one batch; the logits of every span with `last`, in order. They are valid until the next call. Raises NoRoom."""
        ...

    def cut(self, slot: int, length: int) -> bool:
        """Forget all but the first `length` tokens of a slot; False when the model cannot, and nothing has changed."""
        ...

    def copy(self, source: int, target: int, length: int) -> bool:
        """Let the empty slot `target` share the first `length` tokens of `source`; False when that cannot be had."""
        ...

    def save(self, slot: int, most: int) -> bytearray | None:
        """A copy of all that a slot holds, to be put back later; None when it is larger than `most` bytes, or there is none."""
        ...

    def restore(self, slot: int, saved: bytearray) -> bool:
        """Put into an empty slot what `save` gave; False when it does not fit, and the slot is still empty."""
        ...

    def piece(self, token: int) -> bytes:
        """The text of a token; empty for control tokens."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the model says with `token` that it is done."""
        ...
