"""A runtime that is a table of what to say, and checks what the engine does with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from meshnode.worker.runtime import NoRoom, Span
from meshnode.worker.sampling import Logits

VOCABULARY = 128
END = 127
"""The token that ends an answer; token t < 127 is the letter chr(t)."""


@dataclass
class Table:
    """A runtime in which the token after n tokens of a sequence is a function of all of them."""

    slots: int = 2
    context_length: int = 40
    unified: bool = True
    pool: int = 0
    """Tokens; 0: the context of every slot."""
    batch_size: int = 16
    answer: str = "HELLO"
    can_cut: bool = True
    seconds_per_token: float = 0.0
    now: float = 0.0
    steps: list[list[Span]] = field(default_factory=list)
    cells: dict[int, list[int]] = field(default_factory=dict)
    """The KV cache, by slot: cells, which slots may share, with a token each. Checked against what the engine believes."""
    contents: list[int] = field(default_factory=list)
    refusals: int = 0
    """So many batches of several sequences find no room although there is some."""
    can_restore: bool = True
    broken: set[int] = field(default_factory=set)
    """Slots whose logits cannot be drawn from."""

    def __post_init__(self) -> None:
        self.pool = self.pool or self.slots * self.context_length

    @property
    def used(self) -> int:
        return len({cell for cells in self.cells.values() for cell in cells})

    def kept(self, slot: int) -> list[int]:
        return [self.contents[cell] for cell in self.cells.setdefault(slot, [])]

    def clock(self) -> float:
        return self.now

    def decode(self, spans: Sequence[Span]) -> list[Logits]:
        assert 0 < sum(len(span.tokens) for span in spans) <= self.batch_size
        assert len({span.slot for span in spans}) == len(spans)
        if self.refusals and len(spans) > 1:
            self.refusals -= 1
            raise NoRoom
        self.steps.append(list(spans))
        self.now += self.seconds_per_token * sum(len(span.tokens) for span in spans)
        logits = [logits for span in spans for logits in self._run(span)]
        assert self.used <= self.pool
        return logits

    def _run(self, span: Span) -> list[Logits]:
        cells = self.cells.setdefault(span.slot, [])
        assert span.start == len(cells), "positions follow each other"
        cells += range(len(self.contents), len(self.contents) + len(span.tokens))
        self.contents += span.tokens
        assert len(cells) <= self.context_length
        if not span.last:
            return []
        logits = np.zeros(VOCABULARY, np.float32)
        logits[self.next_token(self.kept(span.slot))] = 1
        return [np.zeros(0, np.float32) if span.slot in self.broken else logits]

    def next_token(self, kept: list[int]) -> int:
        """A prompt ends with 0, the answer follows it."""
        said = len(kept) - 1 - max(index for index, token in enumerate(kept) if token == 0)
        return ord(self.answer[said]) if said < len(self.answer) else END

    def cut(self, slot: int, length: int) -> bool:
        if length and not self.can_cut:
            return False
        del self.cells.setdefault(slot, [])[length:]
        return True

    def copy(self, source: int, target: int, length: int) -> bool:
        if not self.unified:
            return False
        assert not self.cells.get(target)
        assert 0 < length <= len(self.cells[source])
        self.cells[target] = self.cells[source][:length]
        return True

    def save(self, slot: int, most: int) -> bytearray | None:
        saved = bytearray(self.kept(slot))
        return saved if 0 < len(saved) <= most else None

    def restore(self, slot: int, saved: bytearray) -> bool:
        if self.can_restore:
            assert not self.cells.get(slot)
            self._run(Span(slot, 0, list(saved), False))
            assert self.used <= self.pool
        return self.can_restore

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def ends(self, token: int) -> bool:
        return token == END
