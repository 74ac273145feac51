"""The draw of a seed against the vectors, which were computed without our code."""

import pytest

from protocol.vectors import Vector, load

np = pytest.importorskip("numpy")

from meshnode.worker.sampling import Sampler, uniform  # noqa: E402 - after the check for the extra

VECTORS = load("draw")


@pytest.mark.parametrize(
    "vector", VECTORS["uniform"], ids=lambda vector: f"seed {vector['seed']} {vector['choice']}:{vector['position']}"
)
def test_a_draw_is_that_of_the_vector(vector: Vector) -> None:
    drawn = uniform(vector["seed"], vector["choice"], vector["position"])

    assert drawn == vector["u"] == vector["numerator"] / 2**53


@pytest.mark.parametrize("vector", VECTORS["picks"], ids=lambda vector: vector["name"])
def test_tokens_are_picked_as_in_the_vector(vector: Vector) -> None:
    logits = np.array(vector["logits"], np.float32)
    wishes = {name: vector[name] for name in ("seed", "choice", "temperature", "top_p", "top_k")}
    sampler = Sampler(**wishes)

    assert [sampler.draw(logits, position) for position in range(len(vector["tokens"]))] == vector["tokens"]
