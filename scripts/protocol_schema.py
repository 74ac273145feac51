"""The JSON Schema of what nodes exchange, made from the types in `meshnode/wire` (pure).

JSON has no byte strings: in a value that the schema describes they are lower-case hex, marked by `contentEncoding: base16`.
Fields after those known are allowed everywhere, as the protocol demands; of those with a default the last ones may be missing.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec
from msgspec import inspect as types_of

from meshnode.gossip.member import Model
from meshnode.inference import Request
from meshnode.wire.codec import FIRST_OPTIONAL_KIND
from meshnode.wire.messages import PROTOCOL_MAX, Frame

Schema = dict[str, Any]

_HEX = "^([0-9a-f]{2})*$"
_REFERENCE = "#/$defs/"
_IGNORED = "Ignored"
_DESCRIPTION = (
    "One frame, as a decoded msgpack array whose byte strings are written in hex. Request is the body of a stream, Model the "
    "value of a record's key `model/...`. Rules about several frames or values, and which text is a name or an address, are in "
    "SPEC.md."
)


def _bounds(**bounds: float | None) -> Schema:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _doubled(length: int | None) -> int | None:
    return None if length is None else 2 * length


def _of(kind: types_of.Type) -> Schema:
    """The schema of any type that occurs in a frame."""
    match kind:
        case types_of.Metadata():
            return _of(kind.type)
        case types_of.StructType():
            return {"$ref": f"{_REFERENCE}{kind.cls.__name__}"}
        case types_of.UnionType():
            return {"anyOf": [_of(option) for option in kind.types]}
        case types_of.VarTupleType() | types_of.ListType():
            return {
                "type": "array",
                "items": _of(kind.item_type),
                **_bounds(minItems=kind.min_length, maxItems=kind.max_length),
            }
        case types_of.BytesType():
            bounds = _bounds(minLength=_doubled(kind.min_length), maxLength=_doubled(kind.max_length))
            return {"type": "string", "contentEncoding": "base16", "pattern": _HEX, **bounds}
        case types_of.StrType():
            return {"type": "string", **_bounds(minLength=kind.min_length, maxLength=kind.max_length)}
        case types_of.IntType():
            return {"type": "integer", **_bounds(minimum=kind.ge, maximum=kind.le)}
        case types_of.FloatType():
            return {"type": "number", **_bounds(minimum=kind.ge, maximum=kind.le)}
        case types_of.EnumType():
            return {"enum": [member.value for member in kind.cls]}
        case types_of.BoolType():
            return {"type": "boolean"}
        case types_of.NoneType():
            return {"type": "null"}
        case _:
            raise NotImplementedError(f"a type that no frame had so far: {kind!r}")


def _default(field: types_of.Field) -> Schema:
    if field.default_factory is not msgspec.NODEFAULT:
        return {"default": msgspec.to_builtins(field.default_factory())}
    if field.default is msgspec.NODEFAULT:
        return {}
    return {"default": msgspec.to_builtins(field.default)}


def _field(field: types_of.Field) -> Schema:
    return {"title": field.name, **_of(field.type), **_default(field)}


def _struct(kind: types_of.StructType) -> Schema:
    about = {"title": kind.cls.__name__, "description": inspect.cleandoc(kind.cls.__doc__ or "")}
    if not kind.array_like:
        properties = {field.encode_name: _field(field) for field in kind.fields}
        required = [field.encode_name for field in kind.fields if field.required]
        return {**about, "type": "object", "properties": properties, "required": required}
    tag: list[Schema] = [] if kind.tag is None else [{"title": "kind" if isinstance(kind.tag, int) else "tag", "const": kind.tag}]
    items = tag + [_field(field) for field in kind.fields]
    return {**about, "type": "array", "prefixItems": items, "minItems": len(tag) + sum(field.required for field in kind.fields)}


def _structs(kind: types_of.Type) -> Iterator[types_of.StructType]:
    """Every struct within `kind`, itself first."""
    match kind:
        case types_of.Metadata():
            yield from _structs(kind.type)
        case types_of.StructType():
            yield kind
            for field in kind.fields:
                yield from _structs(field.type)
        case types_of.UnionType():
            for option in kind.types:
                yield from _structs(option)
        case types_of.VarTupleType() | types_of.ListType():
            yield from _structs(kind.item_type)


def build() -> Schema:
    """The whole schema."""
    frames: tuple[type[msgspec.Struct], ...] = get_args(Frame)
    found = [struct for root in (*frames, Request, Model) for struct in _structs(types_of.type_info(root))]
    definitions = {struct.cls.__name__: _struct(struct) for struct in found}
    kinds = {"type": "integer", "minimum": FIRST_OPTIONAL_KIND, "maximum": 127}
    definitions[_IGNORED] = {
        "title": _IGNORED,
        "description": "A frame that who does not know its kind steps over.",
        "type": "array",
        "prefixItems": [{"title": "kind", **kinds}],
        "minItems": 1,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"meshnode protocol {PROTOCOL_MAX}",
        "description": _DESCRIPTION,
        "anyOf": [{"$ref": f"{_REFERENCE}{name}"} for name in (*(frame.__name__ for frame in frames), _IGNORED)],
        "$defs": definitions,
    }


def unhex(value: Any, kind: Schema, definitions: Mapping[str, Schema]) -> Any:
    """`value`, as a vector writes it, with the byte strings that `kind` says it has."""
    if "$ref" in kind:
        return unhex(value, definitions[kind["$ref"].removeprefix(_REFERENCE)], definitions)
    if value is None:
        return None
    if "anyOf" in kind:
        return unhex(value, next(option for option in kind["anyOf"] if option.get("type") != "null"), definitions)
    if "contentEncoding" in kind:
        return bytes.fromhex(value)
    if isinstance(value, list):
        kinds = kind.get("prefixItems") or [kind.get("items", {})] * len(value)
        return [unhex(item, kinds[index] if index < len(kinds) else {}, definitions) for index, item in enumerate(value)]
    return value
