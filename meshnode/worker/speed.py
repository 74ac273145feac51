"""How fast this model is here: tokens read and steps made in a second, as measured (pure).

Reading is taken to cost the same for each token, wherever it stands: its true cost grows with the length before it, slowly, and a
running average follows. A step of decoding is measured for each number of streams apart, since more streams cost little more.
"""

MIN_PREFILL = 32
"""Prompt tokens in a step, at least, and that a measurement needs: fewer would read all weights for next to nothing."""
FIRST_PREFILL = 128
"""Prompt tokens in a step before the speed is known."""
SHARED_STEP_S = 0.15
"""Aim for a step in which prompts are read while somebody decodes: the gap that all of those see. Less costs the reader time."""
STEP_S = 1.0
"""Bound on a step in which nobody decodes: so long may a cancel or a new request wait. Fast models have read a batch before."""
_MEMORY = 0.9
"""Weight of the past in the running averages of decoding, some ten steps."""
_READ_MEMORY = 0.5
"""The same of reading, whose steps are long and few."""


class Speed:
    def __init__(self) -> None:
        self.prefill_rate = 0.0
        """Prompt tokens read in a second when nothing else is done; 0 before the first measurement."""
        self.tokens_per_s = 0.0
        """Of all streams together while decoding; kept while idle, 0 before the first token."""
        self._steps: dict[int, float] = {}
        """Seconds of a step with so many streams and nothing else."""

    def measure(self, took: float, *, decoded: int, read: int) -> None:
        """A step took so many seconds, with a row each for `decoded` streams and `read` tokens of prompts."""
        took = max(took, 1e-6)
        if read >= MIN_PREFILL:
            rate = read / max(took - self.step_s(decoded), took / 4)
            self.prefill_rate = _mixed(self.prefill_rate, rate, _READ_MEMORY)
        if decoded and not read:
            self._steps[decoded] = _mixed(self._steps.get(decoded, 0.0), took, _MEMORY)
            self.tokens_per_s = _mixed(self.tokens_per_s, decoded / took, _MEMORY)

    def step_s(self, streams: int) -> float:
        """Of a step for so many streams: as measured, or for the next smaller number, or the smallest; 0: nothing is known."""
        if streams in self._steps or not self._steps or not streams:
            return self._steps.get(streams, 0.0)
        return self._steps[max((known for known in self._steps if known < streams), default=min(self._steps))]

    def line(self) -> tuple[float, float]:
        """Seconds of a step with one stream, and what each further one adds: through the fewest and the most measured."""
        if not self._steps:
            return 0.0, 0.0
        fewest, most = min(self._steps), max(self._steps)
        first = self._steps[fewest]
        more = max(0.0, self._steps[most] - first) / (most - fewest) if most > fewest else 0.0
        return max(0.0, first - more * (fewest - 1)), more

    def prefill_room(self, decoding: int) -> int:
        """Prompt tokens that a step may read beside so many decoding streams."""
        if not self.prefill_rate:
            return FIRST_PREFILL
        seconds = SHARED_STEP_S - self.step_s(decoding) if decoding else STEP_S
        return max(MIN_PREFILL, int(self.prefill_rate * seconds))


def _mixed(past: float, now: float, memory: float) -> float:
    return memory * past + (1 - memory) * now if past else now
