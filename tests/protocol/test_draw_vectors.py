"""The draw of a seed against the vectors, which were computed without our code."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from protocol.vectors import Vector, load

np = pytest.importorskip("numpy")

from meshnode.worker.penalties import Bias, Penalties  # noqa: E402 - after the check for the extra
from meshnode.worker.sampling import Logits, Sampler, uniform  # noqa: E402

VECTORS = load("draw")


@pytest.mark.parametrize(
    "vector", VECTORS["uniform"], ids=lambda vector: f"seed {vector['seed']} {vector['choice']}:{vector['position']}"
)
def test_a_draw_is_that_of_the_vector(vector: Vector) -> None:
    drawn = uniform(vector["seed"], vector["choice"], vector["position"])

    assert drawn == vector["u"] == vector["numerator"] / 2**53


def sampler_of(vector: Vector) -> Sampler:
    """The vector's names are those of a request's `sampling`; `ending` are the tokens that end an answer, which it forbids."""
    biases = dict(vector.get("logit_bias", ())) | dict.fromkeys(vector.get("ending", ()), -math.inf)
    names = {
        "repeat_penalty": "repeat",
        "repeat_last_n": "last",
        "presence_penalty": "presence",
        "frequency_penalty": "frequency",
    }
    return Sampler(
        **{
            name: vector[name]
            for name in ("seed", "choice", "temperature", "top_p", "top_k", "min_p", "typical_p")
            if name in vector
        },
        penalties=Penalties(**{ours: vector[name] for name, ours in names.items() if name in vector}),
        bias=Bias(biases) if biases else None,
    )


@dataclass(frozen=True)
class Among:
    """A constraint that never changes: one of these tokens."""

    tokens: Collection[int]
    complete: bool = False
    final: bool = False

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def masked(self, logits: Logits) -> Logits:
        row: Logits = np.full_like(logits, -np.inf)
        row[list(self.tokens)] = logits[list(self.tokens)]
        return row

    def accept(self, token: int) -> None:
        assert self.allows(token)


@pytest.mark.parametrize("vector", VECTORS["picks"], ids=lambda vector: vector["name"])
def test_tokens_are_picked_as_in_the_vector(vector: Vector) -> None:
    logits = np.array(vector["logits"], np.float32)
    tokens = list(vector.get("prompt", ()))
    for position in range(len(vector["tokens"])):
        constraint = Among(vector.get("allowed", range(len(logits))))
        token = sampler_of(vector).draw_within(constraint, logits, position, tokens)
        assert token is not None
        tokens.append(token)

    assert tokens == vector.get("prompt", []) + vector["tokens"]
