"""Frames and requests against the vectors: by our codec, and by a second msgpack implementation that knows nothing of it."""

from itertools import chain
from typing import get_args

import msgspec
import ormsgpack
import pytest
from jsonschema import Draft202012Validator

from meshnode.errors import InvalidRequest, PeerError
from meshnode.wire import codec
from meshnode.wire.messages import Frame
from protocol.vectors import PROTOCOL, Vector, frame_files, load, readable

FILES = frame_files()
KINDS = {frame.__name__: frame.__struct_config__.tag for frame in get_args(Frame)}
SCHEMA = msgspec.json.decode((PROTOCOL / "schema.json").read_bytes())


def named(vectors: list[Vector]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector["name"])


def of_frames(section: str) -> list[Vector]:
    return [
        {**vector, "type": name, "name": f"{name}: {vector['name']}"} for name, file in FILES.items() for vector in file[section]
    ]


def validator(definition: str) -> Draft202012Validator:
    return Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{definition}"}]})


def test_every_kind_has_valid_and_invalid_vectors_that_name_it() -> None:
    assert {name: file["kind"] for name, file in FILES.items()} == KINDS
    assert all(file["valid"] and file["invalid"] for file in FILES.values())


@named(of_frames("valid"))
def test_a_valid_frame_is_read_alike_by_another_implementation_and_by_ours(vector: Vector) -> None:
    raw = bytes.fromhex(vector["hex"])

    (frame,) = codec.decode(raw)

    assert readable(ormsgpack.unpackb(raw)) == vector["value"]
    assert type(frame).__name__ == vector["type"]
    if vector.get("canonical", True):
        assert codec.encode(frame) == raw
    else:
        assert codec.decode(codec.encode(frame)) == [frame]


@named(of_frames("valid"))
def test_a_valid_frame_satisfies_the_schema_of_its_kind_and_of_any_frame(vector: Vector) -> None:
    assert not list(validator(vector["type"]).iter_errors(vector["value"]))
    assert not list(Draft202012Validator(SCHEMA).iter_errors(vector["value"]))


@named([*of_frames("invalid"), *load("growth")["invalid"], *load("malformed")["invalid"]])
def test_an_invalid_message_closes_the_link_with_the_code_and_the_words_that_the_vector_names(vector: Vector) -> None:
    with pytest.raises(PeerError) as refusal:
        codec.decode(bytes.fromhex(vector["hex"]))

    assert refusal.value.close_code == vector["close_code"]
    assert vector["error"] in refusal.value.message


@named(load("growth")["valid"])
def test_what_a_later_version_may_add_is_stepped_over(vector: Vector) -> None:
    frames = codec.decode(bytes.fromhex(vector["hex"]))

    known = chain.from_iterable(readable_frames(codec.encode(frame)) for frame in frames)
    assert list(known) == vector["value"]


def readable_frames(message: bytes) -> list[object]:
    return [readable(ormsgpack.unpackb(message))]


@named(load("request")["valid"])
def test_a_valid_request_is_read_alike_by_another_implementation_and_by_ours(vector: Vector) -> None:
    raw = bytes.fromhex(vector["hex"])

    request = codec.decode_request(raw)

    assert ormsgpack.unpackb(raw) == vector["value"]
    assert codec.decode_request(codec.encode_request(request)) == request
    assert not list(validator("Request").iter_errors(vector["value"]))


@named(load("request")["invalid"])
def test_an_invalid_request_is_answered_with_the_code_and_the_words_that_the_vector_names(vector: Vector) -> None:
    with pytest.raises(InvalidRequest, match=vector["error"]) as refusal:
        codec.decode_request(bytes.fromhex(vector["hex"]))

    assert refusal.value.code == vector["code"]


def test_a_request_with_every_key_is_what_ours_writes() -> None:
    (vector,) = (vector for vector in load("request")["valid"] if vector["name"] == "every key")
    raw = bytes.fromhex(vector["hex"])

    assert codec.encode_request(codec.decode_request(raw)) == raw
