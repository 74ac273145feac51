"""The hashes of prompts and their marks against the vectors, by our code and by the words of the specification."""

from hashlib import blake2b

import pytest

from meshnode.inference import Message, Request
from meshnode.names import ModelDigest
from meshnode.routing.prefix import Sketch, chain_of
from protocol.vectors import Vector, load

CHAINS = pytest.mark.parametrize("vector", load("chain")["chains"], ids=lambda vector: vector["name"])


@CHAINS
def test_a_prompt_has_the_chain_and_the_marks_of_the_vector(vector: Vector) -> None:
    messages = tuple(Message(**message) for message in vector["messages"])
    request = Request(id="r", model="m", messages=messages, tools=vector["tools"])
    digest = ModelDigest(bytes.fromhex(vector["digest"]))
    chain = chain_of(request, digest)

    assert [hashed.to_bytes(8, "little").hex() for hashed in chain] == vector["chain"]
    assert Sketch.of([chain], bytes.fromhex(vector["salt"])).frame("m", digest).marks.hex() == vector["marks"]


@CHAINS
def test_the_vector_is_what_the_specification_says(vector: Vector) -> None:
    text = (vector["tools"] or "").encode() + b"\x1e"
    for message in vector["messages"]:
        for field in ("role", "content", "tool_calls", "tool_call_id"):
            text += message.get(field, "").encode() + b"\x1f"
        text += b"\x1e"
    last = blake2b(bytes.fromhex(vector["digest"]), digest_size=8, person=b"meshnode-chain").digest()
    chain = [
        last := blake2b(text[start : start + 256], digest_size=8, key=last).digest() for start in range(0, len(text) - 255, 256)
    ]
    salt = bytes.fromhex(vector["salt"])
    factor, offset = int.from_bytes(salt[:8], "little") | 1, int.from_bytes(salt[8:], "little")
    marks = {(int.from_bytes(hashed, "little") * factor + offset) % 2**64 >> 32 for hashed in chain}

    assert [hashed.hex() for hashed in chain] == vector["chain"]
    assert b"".join(mark.to_bytes(4, "little") for mark in sorted(marks)).hex() == vector["marks"]
