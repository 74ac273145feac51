"""A schema as a grammar: what it accepts is valid, and what cannot be kept to is refused with its place."""

import datetime
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

pytest.importorskip("numpy")

from worker.json_texts import accepts, automaton_of, some_text

from meshnode.worker.gbnf import GrammarError
from meshnode.worker.schema import MAX_COUNT, MAX_SCHEMAS, SchemaError, grammar_of

Schema = Mapping[str, object]

NAMES = st.sampled_from(["a", "b", "ä", 'q"', "~/"])
SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size}, st.integers(0, 3), st.integers(0, 3)
    ),
    st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from([r"^[a-c]{2,3}$", r"x|^y", r"\d+\.\d", r"^(?:a|\"b)*\\$", r"[^a-z]\n", r"^\w\s."]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-1200, 1200),
        st.integers(0, 2000),
    ),
    st.builds(
        lambda low, size, kind: {"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": low + size},
        st.floats(-1200, 1200),
        st.integers(3, 2000),
        st.sampled_from(["integer", "number"]),
    ),
    st.builds(lambda low: {"type": "number", "minimum": low}, st.integers(-20, 20)),
    st.builds(lambda high: {"maximum": high}, st.integers(-20, 20)),
    st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text('a"\\\n\0ü', max_size=3)), min_size=1, max_size=3
    ).map(lambda values: {"enum": values}),
    st.just({"const": {"a": [1, None]}}),
    st.just({"type": ["integer", "null", "string"]}),
    st.just({}),
    st.just(True),
)


def wider(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    properties = st.dictionaries(NAMES, inner, max_size=3)
    return st.one_of(
        st.builds(
            lambda properties, required, others: {
                "type": "object",
                "properties": properties,
                "required": required,
                **({} if others is None else {"additionalProperties": others}),
            },
            properties,
            st.lists(NAMES, max_size=2, unique=True),
            st.one_of(st.none(), inner),
        ),
        st.builds(
            lambda first, items, low, size: {
                "type": "array",
                "prefixItems": first,
                "items": items,
                "minItems": low,
                "maxItems": low + size,
            },
            st.lists(inner, max_size=2),
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        inner.map(lambda items: {"items": items, "minItems": 1}),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.builds(
            lambda one, other, required: {
                "type": "object",
                "properties": one,
                "allOf": [{"properties": other, "required": required}],
            },
            properties,
            properties,
            st.lists(NAMES, max_size=2, unique=True),
        ),
        st.builds(
            lambda one, other: {"oneOf": [one, {"type": "array", "items": other, "maxItems": 2}]},
            SCALARS,
            inner,
        ),
    )


SCHEMAS = st.recursive(SCALARS, wider, max_leaves=6)


def grammar(schema: object) -> str:
    return grammar_of(json.dumps(schema))[0]


FORMATS = FormatChecker(formats=["date", "uuid", "ipv4"])
FORMATS.checks("time", raises=ValueError)(lambda value: bool(datetime.time.fromisoformat(str(value)).tzinfo))
FORMATS.checks("date-time", raises=ValueError)(lambda value: bool(datetime.datetime.fromisoformat(str(value)).tzinfo))


def valid(schema: object, value: object) -> bool:
    return Draft202012Validator(schema, format_checker=FORMATS).is_valid(value)  # type: ignore[arg-type]  # booleans too


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32))
def test_what_the_grammar_of_a_schema_accepts_is_valid(schema: object, seed: int) -> None:
    try:
        made = grammar(schema)
    except SchemaError:
        assume(False)
    text = some_text(automaton_of(made), Random(seed))
    assume(text is not None)
    assert text is not None

    assert valid(schema, json.loads(text)), text


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**16), 10**16), st.integers(0, 10**16), st.integers(0, 2**32))
def test_whole_numbers_between_bounds_are_all_there_and_no_others(low: int, size: int, seed: int) -> None:
    most = 10**15 - 1
    schema = {"type": "integer", "minimum": low, "maximum": low + size}
    assume(low <= most and low + size >= -most)
    automaton = automaton_of(grammar(schema))
    rng = Random(seed)
    inside = rng.randint(max(low, -most), min(low + size, most))

    assert accepts(automaton, str(inside))
    assert not accepts(automaton, str(low - 1))
    assert not accepts(automaton, str(low + size + 1))


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "object"}, ["{}", "{ }", '{"a": 1, "b": [true]}', '{\n  "a": 1\n}'], ["", "[]", '{"a"}', '{"a":1,}', "{} "]),
        ({"type": "array"}, ["[]", "[1, 2]"], ["[1,]", "[,]"]),
        ({}, ["1", '"x"', "null", "[[]]", "-0.5e-10"], ["", "x", "01", ".5", "+1", "1e999"]),
        (
            {"type": "string"},
            ['""', '"\\u00e4\\n"', '"\\ud83d\\ude00"', '"世"'],
            ['"\n"', '"\\x"', '"\\ud83d"', '"\\ude00"', '"\t"'],
        ),
        ({"type": "string", "minLength": 2, "maxLength": 2}, ['"ab"', '"\\n世"', '"\\ud83d\\ude00x"'], ['"a"', '"abc"', '"\\n"']),
        ({"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
        (
            {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["b"]},
            ['{"a":1,"b":2}', '{"b": 2}'],
            ['{"a":1}', '{"b":1,"a":2}', "{}", '{"c":1,"b":1}'],
        ),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}}},
            ["{}", '{"a": 1}', '{"b": 2}', '{"a":1, "b":2}'],
            ['{"b": 2,"a": 1}'],
        ),
        (
            {"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}},
            ['{"x": 1}'],
            ['{"x": "1"}', '{"y": 1}'],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"y": 1, "z": 2}'], ['{"y": ""}']),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"y": 1}']),
        ({"prefixItems": [{"const": 1}, {"const": 2}]}, ["[1,2]"], ["[1]", "[1,2,3]", "[]"]),
        ({"items": [{"const": 1}]}, ["[1]"], ["[2]"]),
        ({"items": {"const": 1}, "minItems": 2, "maxItems": 3}, ["[1,1]", "[1, 1, 1]"], ["[1]", "[1,1,1,1]", "[]"]),
        ({"items": {"const": 1}, "maxItems": 0}, ["[]"], ["[1]"]),
        ({"enum": ["a", 1, None, {"b": []}]}, ['"a"', "1", "null", '{"b":[]}'], ['"b"', "2"]),
        ({"enum": ["a", 1, 2.0], "type": "integer"}, ["1", "2.0"], ['"a"']),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.25", "1"], ["1.1", "-0.1", "2"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.001", "1", "12.5"], ["0", "0.0", "-1"]),
        ({"type": "number", "minimum": -2.5, "exclusiveMaximum": 0}, ["-1.75", "-2", "-0.5"], ["-2.6", "0", "-0", "1"]),
        ({"type": "integer", "exclusiveMinimum": -1, "maximum": 10}, ["0", "10", "7"], ["-1", "11", "1.5"]),
        (
            {"type": "string", "format": "date"},
            ['"2024-02-29"', '"2023-12-31"'],
            ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"'],
        ),
        (
            {"type": "string", "format": "date-time"},
            ['"2024-01-01T23:59:59.5+02:00"'],
            ['"2024-01-01T24:00:00Z"', '"2024-01-01"'],
        ),
        ({"type": "string", "pattern": "^a.c$"}, ['"abc"', '"a\\"c"', '"a\\u0001c"'], ['"ac"', '"abcd"', '"a\\nc"']),
        ({"type": "string", "pattern": "b+|^c"}, ['"abbc"', '"c"', '"cx"', '"b"'], ['"ac"', '""']),
        ({"type": "string", "pattern": "^[^\\d]$"}, ['"a"', '"\\""'], ['"1"', '"٣"']),
        ({"type": "string", "pattern": ""}, ['""', '"x"'], ["x"]),
        ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}, ["1", "[[1], 2]"], ["null", "[null]"]),
        ({"$ref": "#/$defs/a~1b~0%25", "$defs": {"a/b~%": {"const": 5}}}, ["5"], ["6"]),
        ({"properties": {"n": {"description": "the next", "allOf": [{"$ref": "#"}]}}}, ['{"n": {"n": {}}}'], ['{"n": 1}']),
        (
            {"properties": {"n": {"$ref": "#", "required": ["m"]}, "m": {"const": 1}}},
            ['{"n":{"n":{"m":1},"m":1}}', "{}"],
            ['{"n":{}}', '{"n":{"n":{},"m":1}}'],
        ),
        (
            {
                "oneOf": [
                    {"properties": {"k": {"const": "a"}}, "required": ["k"], "type": "object"},
                    {"properties": {"k": {"enum": ["b"]}, "v": {}}, "required": ["k"], "type": "object"},
                ]
            },
            ['{"k":"a"}', '{"k":"b","v":1}'],
            ['{"k":"a","v":1}'],
        ),
        ({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 2, "minimum": 1}]}, ["5", "99", "1"], ["3", "0"]),
        ({"minLength": 1, "x-order": 3, "title": "t", "default": 5}, ['"a"'], ['""', "5"]),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_a_schema_accepts_what_is_valid_in_the_order_that_it_names(schema: Schema, right: list[str], wrong: list[str]) -> None:
    automaton = automaton_of(grammar(schema))

    assert [text for text in right if not accepts(automaton, text)] == []
    assert [text for text in wrong if accepts(automaton, text)] == []
    if not isinstance(schema.get("items"), list):  # as it was until draft 2019-09
        assert [text for text in right if not valid(schema, json.loads(text))] == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a/b": {"multipleOf": 3}}}, "at `/properties/a~1b/multipleOf`: `multipleOf` cannot be kept to"),
        ({"items": {"not": {}}}, "at `/items/not`"),
        ({"uniqueItems": True}, "at `/uniqueItems`"),
        ({"patternProperties": {"a": {}}}, "at `/patternProperties`"),
        ({"minProperties": 1}, "at `/minProperties`"),
        ({"if": {}}, "at `/if`"),
        (False, "at `/`: no value satisfies this"),
        ({"properties": {"a": 5}}, "at `/properties/a`: a schema is an object or a boolean"),
        ({"properties": []}, "at `/properties`: this must be an object"),
        ({"anyOf": {}}, "at `/anyOf`: this must be an array"),
        ({"anyOf": []}, "at `/anyOf`: there is nothing to choose from"),
        ({"type": "text"}, "at `/type`: the types are object,"),
        ({"type": []}, "at `/type`: the types are"),
        ({"$ref": "other.json#/a"}, "at `/$ref`: only references into the same schema"),
        ({"$ref": "#a"}, "at `/$ref`: only references by JSON pointer"),
        ({"$ref": "#/a"}, "at `/$ref`: this leads nowhere"),
        ({"properties": {"a": {"$id": "x"}}}, "at `/properties/a/$id`"),
        ({"minLength": -1}, f"at `/minLength`: this must be a whole number from 0 to {MAX_COUNT}"),
        ({"maxLength": 10**9}, f"at `/maxLength`: this must be a whole number from 0 to {MAX_COUNT}"),
        ({"maxItems": True}, "at `/maxItems`"),
        ({"minItems": 3, "maxItems": 2}, "at `/maxItems`: this is less than `minItems`"),
        ({"prefixItems": [{}], "items": False, "minItems": 2}, "no array has as many items"),
        ({"minimum": "1"}, "at `/minimum`: this must be a number"),
        ({"minimum": 0.25, "maximum": 0.75}, "at `/`: there is no whole number between the bounds"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "at `/`: no number is left"),
        ({"format": "email"}, "at `/format`: the formats that can be kept to are date,"),
        ({"format": "date", "minLength": 2}, "at `/format`"),
        ({"pattern": "(?=a)"}, "at `/pattern`: at character 3"),
        ({"pattern": r"a\b"}, "at `/pattern`: at character 2"),
        ({"pattern": "(a"}, "at `/pattern`: at character 3"),
        ({"pattern": "a$b"}, "at `/pattern`: at character 3"),
        ({"pattern": "a**"}, "at `/pattern`: at character 3"),
        ({"pattern": "[b-a]"}, "at `/pattern`"),
        ({"pattern": "a{3,2}"}, "at `/pattern`"),
        ({"pattern": "(" * 20}, "at `/pattern`"),
        ({"pattern": "a" * 2000}, "at `/pattern`: a pattern is a text of at most"),
        ({"enum": ["a"], "maxLength": 1}, "at `/maxLength`: this cannot be kept to beside `enum`"),
        ({"enum": ["a"], "type": "integer"}, "no value is left"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "at `/oneOf/1`: a value might satisfy this and another one"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "at `/oneOf/1`"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "at `/allOf/1/pattern`: this cannot be combined"),
        (
            {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
            "additionalProperties`: this",
        ),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "at `/allOf/1/type`"),
        ({"allOf": [{"$ref": "#"}, {"type": "string"}]}, "the references lead in a circle"),
        ({"required": ["a"], "additionalProperties": False}, "at `/properties/a`: no value satisfies this"),
    ],
    ids=lambda value: json.dumps(value)[:40] if not isinstance(value, str) else None,
)
def test_what_cannot_be_kept_to_is_refused_with_its_place(schema: object, said: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(said)):
        grammar(schema)


def nested(depth: int, keyword: str) -> Schema:
    schema: dict[str, object] = {}
    for _ in range(depth):
        schema = {keyword: [schema, schema]} if keyword in {"anyOf", "allOf"} else {keyword: schema}
    return schema


HOSTILE = {
    "not JSON": "{",
    "deep JSON": '{"items":' * 100_000,
    "deep": json.dumps(nested(200, "items")),
    "twice as many alternatives each time": json.dumps(
        {
            "$ref": "#/$defs/a0",
            "$defs": {f"a{n}": {"type": "array", "anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 4} for n in range(40)},
        }
    ),
    "doubling allOf": json.dumps(
        {"$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}, "$ref": "#/$defs/a0"}
    ),
    "many": json.dumps({"properties": {f"p{n}": {"type": "null"} for n in range(MAX_SCHEMAS)}}),
    "many alternatives that exclude each other": json.dumps({"oneOf": [{"const": n} for n in range(1500)]}),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_schema_is_refused_soon(text: str) -> None:
    began = time.process_time()
    with pytest.raises(SchemaError):
        grammar_of(text)

    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {
            "items": {"items": {}, "minItems": 10_000},
            "minItems": 10_000,
            "prefixItems": [{"type": "string", "minLength": 9_999}] * 9,
        },
    ],
    ids=["itself", "itself or null", "large"],
)
def test_what_shows_only_in_the_grammar_has_a_place_too(schema: Schema) -> None:
    made, places = grammar_of(json.dumps(schema))
    with pytest.raises(GrammarError) as caught:
        automaton_of(made)

    assert caught.value.rule in places


KEYWORDS = (
    *("type", "items", "properties", "$ref", "anyOf", "enum", "allOf", "oneOf", "const", "required", "pattern", "format"),
    *("minLength", "prefixItems", "maximum", "additionalProperties", "string"),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.sampled_from(["#", "string", "#/items"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_any_json_is_a_schema_or_refused(schema: object) -> None:
    with suppress(SchemaError, GrammarError):
        automaton_of(grammar(schema))
