"""Fields that do nothing are told, as far as that is safe."""

import json

import pytest

from meshnode.api import body
from meshnode.api.openai import chat_request
from meshnode.errors import Unsupported

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def asked_with(**fields: object) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


def test_bookkeeping_and_unknown_fields_are_listed_and_empty_ones_are_not() -> None:
    asked = chat_request(asked_with(user="me", metadata={}, store=None, seed=1, best_of_breed=1), request_id="r1", created=1)

    assert asked.ignored == ("best_of_breed", "metadata", "user")


@pytest.mark.parametrize("name", ["a\r\nb", "é", "x" * 41, ""])
def test_a_name_that_is_no_name_is_not_listed(name: str) -> None:
    assert body.ignored(asked_with(**{name: 1}), CHAT) == ()


def test_there_is_an_end_to_the_list_and_to_the_body_that_is_looked_at() -> None:
    many = asked_with(**{f"field{number}": 1 for number in range(100)})

    assert len(body.ignored(many, CHAT)) == body.MAX_IGNORED
    assert body.ignored(asked_with(field="x" * body.MAX_JSON_TEXT), CHAT) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x"}),
        ("web_search_options", {"a": 1}),
    ],
)
def test_what_would_change_the_answer_and_cannot_be_done_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(Unsupported) as caught:
        chat_request(asked_with(**{name: value}), request_id="r1", created=1)

    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "thinking", "ignored"),
    [
        ({}, None, ()),
        ({"reasoning_effort": "none"}, False, ()),
        ({"reasoning_effort": "high"}, None, ("reasoning_effort",)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, ()),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, True, ()),
    ],
)
def test_thinking_can_be_forbidden_in_the_words_of_the_field(
    fields: dict[str, object], thinking: bool | None, ignored: tuple[str, ...]
) -> None:
    asked = chat_request(asked_with(**fields), request_id="r1", created=1)

    assert (asked.request.thinking, asked.ignored) == (thinking, ignored)


def test_text_is_the_only_modality() -> None:
    chat_request(asked_with(modalities=["text"]), request_id="r1", created=1)
    with pytest.raises(Unsupported, match="modalities"):
        chat_request(asked_with(modalities=["text", "audio"]), request_id="r1", created=1)
