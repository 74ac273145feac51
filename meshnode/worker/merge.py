"""Two JSON Schemas that must both hold, as one (pure)."""

from collections.abc import Callable, Mapping

Schema = Mapping[str, object]


class Clash(Exception):
    """The keyword that cannot be combined."""


def merged(one: Schema, other: Schema) -> Schema:
    """A schema that values satisfy only if they satisfy both, which have neither references nor `allOf`. Raises Clash."""
    _check_closed(one, other)
    _check_closed(other, one)
    whole = dict(one)
    for keyword, value in other.items():
        whole[keyword] = (
            value if keyword not in whole or _same(whole[keyword], value) else _joined(keyword, whole[keyword], value)
        )
    return whole


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _joined(keyword: str, one: object, other: object) -> object:
    if keyword in _EXTREME and _number(one) and _number(other):
        return _EXTREME[keyword](one, other)
    if keyword == "required" and isinstance(one, list) and isinstance(other, list):
        return [*one, *(name for name in other if name not in one)]
    if keyword == "properties" and isinstance(one, dict) and isinstance(other, dict):
        both = {name: {"allOf": [one[name], other[name]]} for name in one.keys() & other.keys()}
        return one | other | both
    if keyword == "type" and (kinds := _common_types(one, other)):
        return kinds
    if keyword == "additionalProperties" and isinstance(one, bool) and isinstance(other, bool):
        return False
    raise Clash(keyword)


def _check_closed(one: Schema, other: Schema) -> None:
    """What `one` says of properties that it does not name would be about those that only `other` names."""
    if one.get("additionalProperties", True) is True:
        return
    mine, theirs = one.get("properties", {}), other.get("properties", {})
    if not isinstance(mine, dict) or not isinstance(theirs, dict) or not theirs.keys() <= mine.keys():
        raise Clash("additionalProperties")


def _common_types(one: object, other: object) -> list[str]:
    mine, theirs = _types(one), _types(other)
    return [kind for kind in mine if kind in theirs or (kind == "integer" and "number" in theirs)] + [
        kind for kind in theirs if kind == "integer" and "number" in mine and "integer" not in mine
    ]


def _types(value: object) -> list[str]:
    return [str(kind) for kind in (value if isinstance(value, list) else [value])]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_EXTREME: Mapping[str, Callable[..., object]] = {
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
}
