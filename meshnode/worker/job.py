"""What the engine is asked to generate (pure)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshnode.inference import Priority, Resume
from meshnode.worker.reader import PLAIN, Form
from meshnode.worker.sampling import Constraint, Sampler


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prompt and the answers to it, as `Engine.submit` takes it."""

    stream: int
    prompt: Sequence[int]
    sampler: Sampler
    """Of the first choice; those of the others differ in their `choice` alone."""
    n: int = 1
    """How many choices are wanted."""
    max_tokens: int | None = None
    """Of each choice."""
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives are wanted beside each token's log-probability; None: not even that."""
    constraint: Callable[[], Constraint] | None = None
    """Makes what a choice must follow; it changes with every token."""
    priority: Priority = Priority.DEFAULT
    form: Form = PLAIN
    """How the answers are to be read."""
    chain: tuple[int, ...] = ()
    """Hashes of the prompt's text, block by block (design D22): by them others learn what is cached here."""
    resume: tuple[Resume, ...] | None = None
    """Of each choice: what another node has drawn already."""
