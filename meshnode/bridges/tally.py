"""What a remote has done for us since this node started."""

from dataclasses import dataclass


@dataclass
class Tally:
    active: int = 0
    requests: int = 0
    tokens: int = 0
    """Of answers."""
    errors: int = 0

    def began(self) -> None:
        self.active += 1
        self.requests += 1

    def ended(self, *, ok: bool | None, tokens: int) -> None:
        self.active -= 1
        self.tokens += tokens
        self.errors += ok is False
