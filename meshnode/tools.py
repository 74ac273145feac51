"""What a request says about tools: OpenAI's `tools`, `tool_choice` and the calls of earlier turns, read from their JSON (pure).

Between nodes all three stay JSON text. The node that was asked reads them to refuse what is wrong by name; the one that serves
reads them again, since a peer may send anything, and acts on them. `strict` is passed over: nothing here binds a model's
arguments to a schema.
"""

import re
from collections.abc import Container
from enum import StrEnum
from typing import Any, Literal, TypeVar

import msgspec

from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import MAX_TOOL_CALLS, MAX_TOOL_NAME
from meshnode.names import printable

MAX_TOOLS = 128
"""OpenAI's bound."""
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_TOOL_NAME}}}", re.ASCII)
"""MCP's rule; OpenAI's is the same without the dot and up to 64."""

Shape = TypeVar("Shape")


class Choice(StrEnum):
    """The words of OpenAI's `tool_choice`; `function` is a certain one."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    FUNCTION = "function"


class Tools(msgspec.Struct, frozen=True):
    """The tools that the model may call in this answer; none with `Choice.NONE`."""

    names: tuple[str, ...] = ()
    choice: Choice = Choice.NONE
    only: str = ""
    """The one that it must call, with `Choice.FUNCTION`."""


class Called(msgspec.Struct, frozen=True):
    name: str
    arguments: str = ""
    """As the client has it: JSON text, mostly."""


class Call(msgspec.Struct, frozen=True):
    """A call in the message of an assistant, as a client sends it back."""

    function: Called
    id: str = ""
    type: Literal["function"] = "function"


class _Function(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str


class _Tool(msgspec.Struct, frozen=True):
    function: _Function


class _Name(msgspec.Struct, frozen=True):
    name: str


class _Named(msgspec.Struct, frozen=True):
    function: _Name


_Objects = list[dict[str, object]]


def calls(text: str, place: str) -> tuple[Call, ...]:
    """The calls in a message's `tool_calls`. Raises InvalidRequest for `place`.

    Other fields are passed over without a look at them: a message may hold many calls, and the loop waits for this.
    """
    made: list[Call] = _decoded(text, list[Call] | None, place) or []
    if len(made) > MAX_TOOL_CALLS:
        raise InvalidRequest(f"`{place}` holds {len(made)} calls; at most {MAX_TOOL_CALLS} are allowed.", param=place)
    return tuple(made)


def calls_text(made: tuple[Call, ...]) -> str:
    """`made` as the `tool_calls` of a message, with what we know of them alone."""
    return msgspec.json.encode(made).decode()


def names(text: str) -> tuple[str, ...]:
    """The names of a request's `tools`. Raises InvalidRequest or Unsupported, whose `param` names the place."""
    # As plain objects first: who uses the text later must know that all of it can be read, unknown fields too.
    offered: _Objects = _decoded(text, _Objects | None, "tools") or []
    if len(offered) > MAX_TOOLS:
        raise InvalidRequest(f"`tools` holds {len(offered)}; at most {MAX_TOOLS} are allowed.", param="tools")
    found: dict[str, None] = {}
    for index, tool in enumerate(offered):
        place = f"tools[{index}]"
        kind = _converted(tool, _Kind, place).type
        if kind != "function":
            message = f"`{place}` is of type `{printable(kind, 64)}`, which is not supported."
            raise Unsupported(message, hint="Offer functions.", param=f"{place}.type")
        name = _converted(tool, _Tool, place).function.name
        _check_name(name, found, f"{place}.function.name")
        found[name] = None
    return tuple(found)


def kinds(text: str) -> dict[str, dict[str, object]]:
    """For each of `tools` the JSON schema type of each of its arguments, as far as it says one. `names` must have taken them."""
    found: dict[str, dict[str, object]] = {}
    for tool in msgspec.json.decode(text, type=list[_Tool]):
        properties = (tool.function.parameters or {}).get("properties")
        known = properties.items() if isinstance(properties, dict) else ()
        found[tool.function.name] = {name: schema.get("type") for name, schema in known if isinstance(schema, dict)}
    return found


def _check_name(name: str, others: Container[str], place: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"`{place}` must be 1 to {MAX_TOOL_NAME} letters, digits, `_`, `-` and `.`.", param=place)
    if name in others:
        raise InvalidRequest(f"`{place}` is `{name}`, as another tool's is.", param=place)


def requested(offered: tuple[str, ...], tool_choice: str | None) -> Tools:
    """What `tool_choice` makes of the tools of these names. Raises InvalidRequest or Unsupported for it."""
    choice, only = _choice(tool_choice) if tool_choice is not None else (Choice.AUTO, "")
    if not offered and choice in (Choice.REQUIRED, Choice.FUNCTION):
        raise InvalidRequest("`tool_choice` wants a tool to be called, and `tools` has none.", param="tool_choice")
    if only and only not in offered:
        message = f"`tool_choice` names `{printable(only, MAX_TOOL_NAME)}`, which is not among `tools`."
        raise InvalidRequest(message, param="tool_choice")
    if not offered or choice is Choice.NONE:
        return Tools()
    return Tools(names=offered, choice=choice, only=only)


def _choice(text: str) -> tuple[Choice, str]:
    place = "tool_choice"
    asked: str | dict[str, object] = _decoded(text, str | dict[str, object], place)
    if isinstance(asked, str):
        if asked not in (Choice.NONE, Choice.AUTO, Choice.REQUIRED):
            raise InvalidRequest("`tool_choice` must be `none`, `auto`, `required` or a function.", param=place)
        return Choice(asked), ""
    kind = _converted(asked, _Kind, place).type
    if kind != "function":
        message = f"`{place}` is of type `{printable(kind, 64)}`, which is not supported."
        raise Unsupported(message, hint="Name one function.", param=f"{place}.type")
    only = _converted(asked, _Named, place).function.name
    if not only:
        raise InvalidRequest(f"`{place}.function.name` is empty.", param=f"{place}.function.name")
    return Choice.FUNCTION, only


def _decoded(text: str, kind: object, place: str) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`{place}` is wrong: {printable(str(error))}.", param=place) from None


def _converted(value: object, kind: type[Shape], place: str) -> Shape:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`{place}` is wrong: {printable(str(error))}.", param=place) from None
