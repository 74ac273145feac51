"""Messages and tools as the chat templates of the field expect to find them (pure)."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgspec

from meshnode.inference import Message
from meshnode.tools import Call, calls
from meshnode.worker.content import Refused


def values(messages: Sequence[Message], *, parsed: bool) -> Iterator[dict[str, object]]:
    """As the templates of the field expect them: only the keys that there are, and a result with the name of its tool."""
    names: dict[str, str] = {}
    for message in messages:
        told: dict[str, object] = {"role": message.role, "content": message.content}
        if message.tool_calls is not None:
            made = calls(message.tool_calls, "messages")
            names |= {call.id: call.function.name for call in made}
            told["tool_calls"] = [_call(call, parsed=parsed) for call in made]
        if message.tool_call_id is not None:
            told["tool_call_id"] = message.tool_call_id
        name = message.name if message.name is not None else names.get(message.tool_call_id or "")
        if name is not None:
            told["name"] = name
        yield told


def _call(call: Call, *, parsed: bool) -> dict[str, object]:
    arguments: object = call.function.arguments
    if parsed:
        with suppress(Refused):
            arguments = decoded(call.function.arguments or "{}")
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}


def decoded(text: str) -> object:
    """Not by `json`, which lets halves of surrogate pairs pass."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise Refused("they hold what is no JSON") from None
