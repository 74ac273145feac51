"""Ollama's error object (pure)."""

import msgspec

from meshnode.errors import MeshnodeError


def error_object(error: MeshnodeError) -> bytes:
    """As JSON: a text, the hint in it."""
    return msgspec.json.encode({"error": str(error)})
