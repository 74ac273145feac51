"""From what a request says of its answer's form to a constraint, or to words that name the place."""

import json

import pytest

pytest.importorskip("numpy")

from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import MAX_SCHEMA, ResponseFormat
from meshnode.worker.answer_format import constraints_of
from meshnode.worker.constraint import Constraint, Grammars
from meshnode.worker.vocabulary import Vocabulary

LETTERS = Vocabulary([bytes([byte]) for byte in range(256)], ())


def constraint(kind: str, schema: object = None) -> Constraint | None:
    text = schema if schema is None or isinstance(schema, str) else json.dumps(schema)
    made = constraints_of(ResponseFormat(kind=kind, schema=text), Grammars(LETTERS))
    return made() if made else None


def takes(held: Constraint | None, text: str) -> bool:
    assert held is not None
    for byte in text.encode():
        if not held.allows(byte):
            return False
        held.accept(byte)
    return held.complete


def test_plain_text_needs_no_constraint() -> None:
    assert constraint("text") is None


def test_each_form_is_followed() -> None:
    assert takes(constraint("json_object"), '{"a": [1]}')
    assert not takes(constraint("json_object"), "[1]")
    assert takes(constraint("json_schema", {"enum": ["a", "b"]}), '"b"')
    assert not takes(constraint("json_schema", {"enum": ["a", "b"]}), '"c"')
    assert takes(constraint("grammar", 'root ::= "a"+'), "aaa")
    assert not takes(constraint("grammar", 'root ::= "a"+'), "ab")


@pytest.mark.parametrize(
    ("kind", "schema", "param", "said"),
    [
        ("json_schema", None, "response_format.json_schema.schema", "is missing"),
        (
            "json_schema",
            {"items": {"not": {}}},
            "response_format.json_schema.schema",
            "is wrong: at `/items/not`: ",
        ),
        (
            "json_schema",
            {"items": {"$ref": "#/items"}},
            "response_format.json_schema.schema",
            "at `/items`: this leads",
        ),
        ("json_schema", "{", "response_format.json_schema.schema", "this is not JSON"),
        (
            "json_schema",
            {"prefixItems": [{"minLength": 9_999}, {"minLength": 9_999}, {"minLength": 9_999}, {"minLength": 9_999}]},
            "response_format.json_schema.schema",
            "at `/prefixItems/3`: the schema is too large up to here",
        ),
        ("json_schema", " " * (MAX_SCHEMA + 1), "response_format.json_schema.schema", "is larger than"),
        ("grammar", None, "grammar", "is missing"),
        ("grammar", 'root ::= "a', "grammar", "`grammar` is wrong: line 1, column 12: "),
        ("grammar", "#" + "世" * (MAX_SCHEMA // 2), "grammar", "is larger than"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_place(kind: str, schema: object, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint(kind, schema)

    assert caught.value.param == param
    assert said in caught.value.message


def test_a_form_that_is_not_known_is_named() -> None:
    with pytest.raises(Unsupported, match="of the form `xml`") as caught:
        constraint("xml")

    assert caught.value.param == "response_format.type"


def test_control_characters_of_a_schema_stay_out_of_the_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint("json_schema", {"properties": {"\x1b[31m" * 500: False}, "required": ["\x1b[31m" * 500]})

    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 700
