"""OpenAI's error object (pure)."""

import msgspec

from meshnode.errors import MeshnodeError


def error_object(error: MeshnodeError) -> bytes:
    """As JSON, the hint in its message."""
    return msgspec.json.encode({"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}})
