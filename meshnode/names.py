"""Identifiers and names: what they are, and which text is fit to be one (pure).

A name comes from people and from peers, so it is hostile text until `is_name` has seen it (security rule 23).
"""

import re
from typing import NewType

NodeId = NewType("NodeId", bytes)
"""First 16 bytes of SHA-256 over the node's raw Ed25519 public key."""
MeshId = NewType("MeshId", bytes)
"""First 8 bytes of SHA-256 over the public key of the mesh's certificate authority: for display and sorting, never for trust."""
ModelDigest = NewType("ModelDigest", bytes)
"""32 bytes, see `worker/digest.py`; empty for a model without known weights (behind a bridge)."""

_NAME = re.compile(r"[A-Za-z0-9._:/@-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def is_name(text: str) -> bool:
    """Whether `text` may name a node or a model."""
    return _NAME.fullmatch(text) is not None


def fit(text: str, limit: int = 64) -> str:
    """`text` made into a name of at most `limit` characters without `/`, `:` and `@`; empty when nothing of it is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:limit]


def is_model_reference(text: str) -> bool:
    """Whether `text` may ask for a model: a name, or `name#8hex` for these very weights."""
    name, mark, digits = text.partition("#")
    return is_name(name) and (not mark or re.fullmatch(r"[0-9a-f]{8}", digits) is not None)


def is_traceparent(text: str) -> bool:
    """Whether `text` is a W3C `traceparent` of version 00 (w3.org/TR/trace-context), which is all that we send."""
    return _TRACEPARENT.fullmatch(text) is not None


def printable(text: str, limit: int = 512) -> str:
    """`text` without control and direction-changing characters, cut to `limit`: safe for a terminal, a log or a header."""
    return _CONTROL.sub(" ", text[: 2 * limit])[:limit].strip()


def short(identifier: bytes) -> str:
    """The first 8 hexadecimal digits, as people see them in tables and in `name#8hex`."""
    return identifier.hex()[:8]
