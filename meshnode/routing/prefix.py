"""Which beginnings of prompts are cached where, told without telling the prompts (pure; design D22, security rule 19).

A prompt's *chain* is a row of 64-bit hashes, one for each whole block of 256 bytes of its canonical text, each made of the block
and the hash before it: two prompts share as many hashes as they share blocks. Router and server compute it alike, without a
tokenizer. Since a cached block has all blocks before it cached too, how far a chain is cached is found by halving.

A *sketch* is the set of hashes that a node holds in its cache, as 32-bit marks under a salt that the node draws at each start:
marks of two nodes, or of two lives of one, cannot be compared, and there is nothing to look up in a table made before. Whoever
has the salt can still test a guess of somebody's prompt, which is why a sketch is for direct peers only. A Bloom filter would
take 10 bits instead of 32, and five lookups instead of one: caches of a LAN's machines are small, choices are many.
"""

import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice

from meshnode.inference import Message, Request
from meshnode.names import ModelDigest
from meshnode.wire import messages
from meshnode.wire.codec import pack_ids

BLOCK = 256
"""Bytes; some 64 tokens of English."""
MAX_BLOCKS = 256
"""64 KiB of text, which take some 0.3 ms to hash. Two prompts that are alike for so long are told apart no further."""
MAX_MARKS = 2000
"""Of one model in a sketch: 500 KB of text, in 8 KB."""

_FIELD, _TURN = b"\x1f", b"\x1e"
_MASK = (1 << 64) - 1


def canonical(request: Request) -> Iterator[bytes]:
    """The text that the chain is made of: the tools, then role and content of each message; or the prompt that takes their place,
    its tokens as 32-bit little-endian integers."""
    match request.prompt:
        case str():
            yield request.prompt.encode("utf-8", "surrogatepass")
            return
        case tuple():
            # Whether they are tokens is the worker's to say; more than the chain's blocks hold are of no use.
            yield pack_ids(token & 0xFFFFFFFF for token in islice(request.prompt, MAX_BLOCKS * BLOCK // 4))
            return
    yield (request.tools or "").encode("utf-8", "surrogatepass") + _TURN
    for message in request.messages:
        yield from _turn(message)


def _turn(message: Message) -> Iterator[bytes]:
    for part in (message.role, message.content, message.tool_calls or "", message.tool_call_id or ""):
        yield part.encode("utf-8", "surrogatepass") + _FIELD
    yield _TURN


def chain(digest: ModelDigest, parts: Iterable[bytes]) -> tuple[int, ...]:
    """The hashes of the whole blocks of `parts`, joined; no more than `MAX_BLOCKS`. What is left over is no block."""
    hashes = []
    last = blake2b(digest, digest_size=8, person=b"meshnode-chain").digest()
    for block in islice(_blocks(parts), MAX_BLOCKS):
        last = blake2b(block, digest_size=8, key=last).digest()
        hashes.append(int.from_bytes(last, "little"))
    return tuple(hashes)


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        text = rest + part
        whole = len(text) - len(text) % BLOCK
        for start in range(0, whole, BLOCK):
            yield text[start : start + BLOCK]
        rest = text[whole:]


class Sketch:
    """What one node holds of one model, as of some moment. Never changed."""

    def __init__(self, salt: bytes, marks: frozenset[int]) -> None:
        self.salt = salt
        self.marks = marks
        # Multiply and shift: one multiplication spreads hashes evenly, and a mark fits 2^32 of them.
        self._factor = int.from_bytes(salt[:8], "little") | 1
        self._offset = int.from_bytes(salt[8:], "little")

    @classmethod
    def of(cls, chains: Iterable[tuple[int, ...]], salt: bytes) -> "Sketch":
        """Of cached chains, the most useful ones first; what is beyond `MAX_MARKS` is left out."""
        empty = cls(salt, frozenset())
        marks: set[int] = set()
        for hashed in (block for chain in chains for block in chain):
            marks.add(empty._mark(hashed))
            if len(marks) == MAX_MARKS:
                break
        return cls(salt, frozenset(marks))

    def _mark(self, hashed: int) -> int:
        return (hashed * self._factor + self._offset & _MASK) >> 32

    def blocks(self, chain: tuple[int, ...]) -> int:
        """How many blocks of `chain` are cached, from its beginning, if with each all before it are.

        A full sketch takes one unknown hash in two million for its own.
        """
        marks, factor, offset = self.marks, self._factor, self._offset
        if not chain or (chain[0] * factor + offset & _MASK) >> 32 not in marks:
            return 0
        low, high = 1, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if (chain[middle - 1] * factor + offset & _MASK) >> 32 in marks:
                low = middle
            else:
                high = middle - 1
        return low

    def frame(self, name: str, digest: ModelDigest) -> messages.Sketch:
        """As it travels, of the model of that name and digest."""
        marks = struct.pack(f"<{len(self.marks)}I", *sorted(self.marks))
        return messages.Sketch(name=name, digest=digest, salt=self.salt, marks=marks)

    @classmethod
    def read(cls, frame: messages.Sketch) -> "Sketch":
        """The sketch in a frame that was decoded, so that its lengths are right."""
        return cls(frame.salt, frozenset(struct.unpack(f"<{len(frame.marks) // 4}I", frame.marks)))


def chain_of(request: Request, digest: ModelDigest) -> tuple[int, ...]:
    """The chain of the request's prompt for the model of that digest."""
    return chain(digest, canonical(request))
