"""Which JSON Schemas exclude each other, as far as can be told at a glance (pure)."""

from collections.abc import Mapping, Sequence

import msgspec

Schema = Mapping[str, object]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def apart(one: Schema, other: Schema) -> bool:
    """Whether surely no value satisfies both."""
    kinds = _kinds(one), _kinds(other)
    if kinds[0].isdisjoint(kinds[1]):
        return True
    values = _values(one), _values(other)
    if values[0] is not None and values[1] is not None:
        return values[0].isdisjoint(values[1])
    if kinds[0] | kinds[1] != {"object"}:
        return False
    return any(
        mine is not None and (theirs := _marks(other).get(name)) is not None and mine.isdisjoint(theirs)
        for name, mine in _marks(one).items()
    )


def _kinds(schema: Schema) -> frozenset[str]:
    if (values := _listed(schema)) is not None:
        return frozenset[str]().union(*map(kinds_of, values))
    asked = schema.get("type")
    kinds = frozenset(map(str, asked if isinstance(asked, list) else [asked])) if asked is not None else frozenset(TYPES)
    return kinds | {"integer"} if "number" in kinds else kinds


def _marks(schema: Schema) -> dict[str, frozenset[object] | None]:
    """By property that must be there, the values that it may have."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {name: _values(value) for name, value in properties.items() if name in required and isinstance(value, dict)}


def _values(schema: Schema) -> frozenset[object] | None:
    values = _listed(schema)
    return None if values is None else frozenset(map(key, values))


def _listed(schema: Schema) -> Sequence[object] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def key(value: object) -> object:
    """Equal for values that are equal in JSON."""
    if isinstance(value, dict | list):
        return msgspec.json.encode(value, order="deterministic")
    return isinstance(value, bool), value


def kinds_of(value: object) -> frozenset[str]:
    match value:
        case None:
            return frozenset(("null",))
        case bool():
            return frozenset(("boolean",))
        case int():
            return frozenset(("integer", "number"))
        case float():
            return frozenset(("integer", "number") if value.is_integer() else ("number",))
        case str():
            return frozenset(("string",))
        case list():
            return frozenset(("array",))
        case _:
            return frozenset(("object",))
