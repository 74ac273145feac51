"""From a JSON Schema to a grammar of which every text satisfies the schema (pure).

The promise is one way: what the grammar accepts is valid, not all that is valid is accepted. Properties come in the order in
which the schema names them; an object with properties has no others, be they allowed or not; of an array's fixed first items none
is left out. What cannot be kept to is refused, with a JSON pointer to the keyword, never ignored; keywords that JSON Schema does
not know are ignored, as it wants. References lead into the same document, and may be recursive.
"""

import math
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import msgspec

from meshnode.worker.apart import apart, key, kinds_of
from meshnode.worker.json_rules import FORMATS, RULES, numbers, quote, whole_numbers
from meshnode.worker.merge import Clash, merged
from meshnode.worker.pattern import PatternError, pattern_rule

MAX_SCHEMAS = 2000
"""Subschemas looked at, one that is combined with several others each time."""
MAX_DEPTH = 64
MAX_COUNT = 10_000
"""Of characters or items that a schema may ask for or limit to."""

Value = object
Schema = Mapping[str, Value]

_REFUSED = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties", "contains", "minContains", "maxContains", "unevaluatedProperties", "unevaluatedItems"),
    *("additionalItems", "multipleOf", "$dynamicRef", "$recursiveRef"),
)
_OF_TYPES = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "string": frozenset(("pattern", "format", "minLength", "maxLength")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_KNOWN = frozenset(("$ref", "allOf", "anyOf", "oneOf", "enum", "const", "type")).union(*_OF_TYPES.values())


class SchemaError(Exception):
    """The schema is wrong, or cannot be kept to, at `pointer`."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(f"at `{pointer or '/'}`: {reason}")


def grammar_of(text: str) -> tuple[str, Mapping[str, str]]:
    """The grammar of a schema in JSON text, and by rule of the grammar the pointer to where it comes from. Raises SchemaError."""
    try:
        schema = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError("", f"this is not JSON: {error}") from None
    return _Converter(schema).grammar()


def any_object() -> str:
    """The grammar of JSON objects of any content."""
    return _text({"root": "object", **RULES})


def _text(rules: Mapping[str, str]) -> str:
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


class _Converter:
    def __init__(self, root: Value) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._pointers: dict[str, str] = {}
        self._references: dict[str, str] = {}
        """Rules by the place that a reference leads to, or by what several schemas are together."""
        self._pending: list[tuple[str, Value, str]] = []
        """Rules that have a name and no body yet, their schemas and where these are."""
        self._seen = 0

    def grammar(self) -> tuple[str, Mapping[str, str]]:
        root = self._visit(self._root, "", 0)
        while self._pending:
            name, schema, at = self._pending.pop()
            self._rules[name] = self._visit(schema, at, 0)
        return _text({"root": root, **self._rules, **RULES}), self._pointers

    def _visit(self, schema: Value, at: str, depth: int) -> str:
        """The item of a grammar for `schema`, mostly the name of a rule."""
        self._seen += 1
        if self._seen > MAX_SCHEMAS:
            raise SchemaError(at, f"up to here there are more than {MAX_SCHEMAS} schemas, those counted again that are combined")
        if depth > MAX_DEPTH:
            raise SchemaError(at, f"schemas lie more than {MAX_DEPTH} deep within each other")
        minded = self._minded(schema, at)
        if not minded:
            return "value"
        if minded.keys() == {"$ref"}:
            return self._later(*self._resolved(minded["$ref"], at))
        return self._named(self._body(minded, at, depth), at)

    def _named(self, body: str, at: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        self._pointers[name] = at
        return name

    def _minded(self, schema: Value, at: str) -> Schema:
        """`schema` without what says nothing about values."""
        if schema is True:
            return {}
        if schema is False:
            raise SchemaError(at, "no value satisfies this")
        if not isinstance(schema, dict):
            raise SchemaError(at, "a schema is an object or a boolean")
        for keyword in _REFUSED:
            if keyword in schema:
                raise SchemaError(f"{at}/{keyword}", f"`{keyword}` cannot be kept to")
        if "$id" in schema and at:
            raise SchemaError(f"{at}/$id", "only the whole schema may have an `$id`")
        return {keyword: value for keyword, value in schema.items() if keyword in _KNOWN}

    def _later(self, schema: Value, at: str, key: str | None = None) -> str:
        """The rule for `schema`, made once: so references may be recursive. `key` says which it is; None: that at this place."""
        key = at if key is None else key
        if key not in self._references:
            self._references[key] = self._named("", at)
            self._pending.append((self._references[key], schema, at))
        return self._references[key]

    def _resolved(self, reference: Value, at: str) -> tuple[Value, str]:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaError(f"{at}/$ref", "only references into the same schema (#/...) can be followed")
        target = self._root
        pointer = unquote(reference[1:])
        for raw in pointer.split("/")[1:]:
            step = raw.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and step in target:
                target = target[step]
            elif isinstance(target, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(target):
                target = target[int(step[:9])]
            else:
                raise SchemaError(f"{at}/$ref", "this leads nowhere")
        if pointer and not pointer.startswith("/"):
            raise SchemaError(f"{at}/$ref", "only references by JSON pointer (#/...) can be followed")
        return target, pointer

    def _body(self, schema: Schema, at: str, depth: int) -> str:
        if "$ref" in schema or "allOf" in schema:
            combined = self._flat(schema, at, 0)
            return self._later(combined, at, key=_json(combined))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._alternatives(schema, keyword, at, depth)
        if "enum" in schema or "const" in schema:
            return _literals(schema, at)
        return " | ".join(self._typed(kind, schema, at, depth) for kind in _types(schema, at))

    def _flat(self, schema: Value, at: str, depth: int) -> Schema:
        """One schema in place of a reference or `allOf` and what stands beside it."""
        self._seen += 1
        if depth > MAX_DEPTH or self._seen > MAX_SCHEMAS:
            raise SchemaError(at, "the references lead in a circle, or through too many schemas")
        minded = self._minded(schema, at)
        if "$ref" not in minded and "allOf" not in minded:
            return minded
        whole: Schema = {keyword: value for keyword, value in minded.items() if keyword not in {"$ref", "allOf"}}
        if "$ref" in minded:
            target, where = self._resolved(minded["$ref"], at)
            whole = self._merged(whole, self._flat(target, where, depth + 1), at)
        for index, member in enumerate(_list(minded.get("allOf", []), f"{at}/allOf")):
            where = f"{at}/allOf/{index}"
            whole = self._merged(whole, self._flat(member, where, depth + 1), where)
        return whole

    def _merged(self, one: Schema, other: Schema, at: str) -> Schema:
        try:
            return merged(one, other)
        except Clash as clash:
            raise SchemaError(f"{at}/{clash}", "this cannot be combined with what else must hold here") from None

    def _alternatives(self, schema: Schema, keyword: str, at: str, depth: int) -> str:
        rest = {each: value for each, value in schema.items() if each != keyword}
        options = _list(schema[keyword], f"{at}/{keyword}")
        if not options:
            raise SchemaError(f"{at}/{keyword}", "there is nothing to choose from")
        places = [f"{at}/{keyword}/{index}" for index in range(len(options))]
        if keyword == "oneOf":
            self._check_apart(options, places)
        if rest:
            options = [self._merged(rest, self._flat(each, where, 0), where) for each, where in zip(options, places, strict=True)]
        return " | ".join(self._visit(each, where, depth + 1) for each, where in zip(options, places, strict=True))

    def _check_apart(self, options: Sequence[Value], places: Sequence[str]) -> None:
        """Exactly one of them may hold, so no value may satisfy two."""
        flat = [self._flat(each, where, 0) for each, where in zip(options, places, strict=True)]
        self._seen += len(flat) ** 2 // 16
        if self._seen > MAX_SCHEMAS:
            raise SchemaError(places[0], "there are too many of these to tell them apart")
        for index, one in enumerate(flat):
            for other in flat[:index]:
                if not apart(one, other):
                    raise SchemaError(places[index], "a value might satisfy this and another one of `oneOf`; `anyOf` allows that")

    def _typed(self, kind: str, schema: Schema, at: str, depth: int) -> str:
        match kind:
            case "object":
                return self._object(schema, at, depth)
            case "array":
                return self._array(schema, at, depth)
            case "string":
                return _string(schema, at)
            case "integer" | "number":
                return _number(kind, schema, at)
            case "null":
                return '"null"'
            case _:
                return kind

    def _object(self, schema: Schema, at: str, depth: int) -> str:
        properties = dict(_map(schema.get("properties", {}), f"{at}/properties"))
        required = list(map(str, _list(schema.get("required", []), f"{at}/required")))
        others = schema.get("additionalProperties", True)
        for name in required:
            properties.setdefault(name, others)
        if not properties:
            if others is False:
                return '"{" ws "}"'
            value = self._visit(others, f"{at}/additionalProperties", depth + 1)
            pair = f'string ":" ws {value}'
            return f'"{{" ws ( {pair} ( "," ws {pair} )* ws )? "}}"'
        needed = set(required)
        members = [
            (f'{quote(_json(name))} ":" ws {self._visit(value, _below(f"{at}/properties", name), depth + 1)}', name in needed)
            for name, value in properties.items()
            if name in needed or value is not False
        ]
        return self._members(members, at)

    def _members(self, members: Sequence[tuple[str, bool]], at: str) -> str:
        """In this order; those that are not required may be missing. A rule each for the rest with and without one before it."""
        first, later = "", ""
        for index in range(len(members) - 1, -1, -1):
            member, required = members[index]
            begin = f"{member} {later}".rstrip()
            follow = f'"," ws {begin}'
            if not required:
                begin = f"{begin} | {first}" if first else begin
                follow = f"{follow} | {later}" if later else f'{follow} | ""'
            first, later = self._named(begin, at), self._named(follow, at)
        some = f'"{{" ws {first} ws "}}"'
        return some if any(required for _, required in members) else f'"{{" ws ( {first} ws )? "}}"'

    def _array(self, schema: Schema, at: str, depth: int) -> str:
        fixed, items = schema.get("prefixItems", []), schema.get("items")
        if isinstance(items, list):
            fixed, items = items, None  # until draft 2019-09
        if schema.get("uniqueItems", False) is not False:
            raise SchemaError(f"{at}/uniqueItems", "`uniqueItems` cannot be kept to")
        low, high = _bounds(schema, "minItems", "maxItems", at)
        first = [
            self._visit(each, f"{at}/prefixItems/{index}", depth + 1)
            for index, each in enumerate(_list(fixed, f"{at}/prefixItems")[:high])
        ]
        low, high = max(low - len(first), 0), None if high is None else high - len(first)
        if items is False or (fixed and items is None and not low):
            high = 0
        if high is not None and high < low:
            raise SchemaError(at, "no array has as many items as are asked for")
        item = "" if high == 0 else self._visit(True if items is None else items, f"{at}/items", depth + 1)
        return f'"[" ws {_items(first, item, low, high)} "]"'


def _items(first: Sequence[str], item: str, low: int, high: int | None) -> str:
    """The items `first`, then `low` to `high` of `item`."""
    comma = ' "," ws '
    if not first:
        if high == 0:
            return ""
        most = "" if high is None else high - 1
        some = f'{item} ( "," ws {item} ){{{max(low - 1, 0)},{most}}} ws'
        return some if low else f"( {some} )?"
    more = "" if high == 0 else f' ( "," ws {item} ){{{low},{"" if high is None else high}}}'
    return f"{comma.join(first)}{more} ws"


def _types(schema: Schema, at: str) -> Sequence[str]:
    """Those that are named; else those that the keywords are about."""
    if "type" not in schema:
        kinds = [kind for kind in _OF_TYPES if kind != "integer" and _OF_TYPES[kind] & schema.keys()]
        assert kinds, "what is minded is a reference, a choice, a literal, or about some type"
        return kinds
    asked = schema["type"]
    kinds = [str(kind) for kind in (asked if isinstance(asked, list) else [asked])]
    if not kinds or not set(kinds) <= _OF_TYPES.keys():
        raise SchemaError(f"{at}/type", f"the types are {', '.join(_OF_TYPES)}")
    return [kind for kind in dict.fromkeys(kinds) if kind != "integer" or "number" not in kinds]


def _literals(schema: Schema, at: str) -> str:
    beside = schema.keys() - {"enum", "const", "type"}
    if beside:
        raise SchemaError(f"{at}/{min(beside)}", "this cannot be kept to beside `enum` or `const`")
    values = _list(schema["enum"], f"{at}/enum") if "enum" in schema else [schema["const"]]
    if "const" in schema:
        values = [value for value in values if key(value) == key(schema["const"])]
    if "type" in schema:
        kinds = _types(schema, at)
        values = [value for value in values if not kinds_of(value).isdisjoint(kinds)]
    if not values:
        raise SchemaError(at, "no value is left")
    return " | ".join(quote(_json(value)) for value in values)


def _string(schema: Schema, at: str) -> str:
    low, high = _bounds(schema, "minLength", "maxLength", at)
    special = [keyword for keyword in ("pattern", "format") if keyword in schema]
    if len(special) + (low > 0 or high is not None) > 1:
        raise SchemaError(f"{at}/{special[0]}", f"`{special[0]}` cannot be kept to beside another limit of the text")
    if "format" in schema:
        known = FORMATS.get(str(schema["format"]))
        if known is None:
            raise SchemaError(f"{at}/format", f"the formats that can be kept to are {', '.join(FORMATS)}")
        return rf'"\"" {known} "\""'
    if "pattern" in schema:
        try:
            return rf'"\"" {pattern_rule(schema["pattern"])} "\""'
        except PatternError as error:
            raise SchemaError(f"{at}/pattern", str(error)) from None
    if low == 0 and high is None:
        return "string"
    return rf'"\"" char{{{low},{"" if high is None else high}}} "\""'


def _number(kind: str, schema: Schema, at: str) -> str:
    limits = {keyword: _limit(schema, keyword, at) for keyword in _OF_TYPES["number"] if keyword in schema}
    if not limits:
        return kind
    low, high = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
    above, below = limits.get("exclusiveMinimum", -math.inf), limits.get("exclusiveMaximum", math.inf)
    if kind == "integer":
        least = low if above == -math.inf else max(low, math.floor(above) + 1)
        most = high if below == math.inf else min(high, math.ceil(below) - 1)
        found = whole_numbers(least, most)
    else:
        found = numbers(max(low, above), min(high, below), above=above >= low, below=below <= high)
    if found is None:
        raise SchemaError(at, "there is no whole number between the bounds" if kind == "number" else "no number is left")
    return found


def _limit(schema: Schema, keyword: str, at: str) -> float:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SchemaError(f"{at}/{keyword}", "this must be a number")
    return value


def _bounds(schema: Schema, least: str, most: str, at: str) -> tuple[int, int | None]:
    found = []
    for keyword in (least, most):
        value = schema.get(keyword)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT):
            raise SchemaError(f"{at}/{keyword}", f"this must be a whole number from 0 to {MAX_COUNT}; leave it out for none")
        found.append(value)
    low, high = found[0] or 0, found[1]
    if high is not None and high < low:
        raise SchemaError(f"{at}/{most}", f"this is less than `{least}`")
    return low, high


def _list(value: Value, at: str) -> list[Value]:
    if not isinstance(value, list):
        raise SchemaError(at, "this must be an array")
    return value


def _map(value: Value, at: str) -> Mapping[str, Value]:
    if not isinstance(value, dict):
        raise SchemaError(at, "this must be an object")
    return value


def _json(value: Value) -> str:
    return msgspec.json.encode(value).decode()


def _below(pointer: str, step: str) -> str:
    return f"{pointer}/{step.replace('~', '~0').replace('/', '~1')}"
