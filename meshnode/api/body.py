"""A request's JSON body into a dialect's types, and what is wrong with it by name (pure)."""

import re
from collections.abc import Collection
from typing import TypeVar

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.names import printable

ABSENT = msgspec.Raw()
MAX_JSON_TEXT = 1024 * 1024
"""Of a part that stays JSON text. It holds the loop up for some 0.1 s at most; the 8 MiB of a body would for seconds."""
MAX_IGNORED = 16
"""Names that an answer lists."""

_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_FIELD = re.compile(r"required field `(\w+)`")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,40}", re.ASCII)

T = TypeVar("T")


def decoded(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Raises InvalidRequest, whose `param` names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(f"The request's body is not valid JSON ({reason}).") from None


def _named(reason: str) -> InvalidRequest:
    """The decoder says `Expected ... - at `$.field[...]``, where an index is only dots; a missing field stands in the words."""
    at = _AT.search(reason)
    place = at[1].replace("[...]", "") if at else ""
    if missing := _FIELD.search(reason):
        place = f"{place}.{missing[1]}".lstrip(".")
    words = printable(reason[: at.start()] if at else reason)
    if not place:
        return InvalidRequest(f"The request's body is wrong: {words}.")
    return InvalidRequest(f"`{place}` is wrong: {words}.", param=place)


def text(raw: msgspec.Raw, place: str, *, limit: int = MAX_JSON_TEXT) -> str | None:
    """JSON text as it came, for the worker to read; None when it says nothing. Raises InvalidRequest."""
    if len(bytes(raw)) > limit:
        raise InvalidRequest(f"`{place}` is larger than {limit} bytes.", param=place)
    try:
        found = bytes(raw).decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"`{place}` is not UTF-8.", param=place) from None
    return None if found in ("", "null") else found


def says_something(raw: msgspec.Raw) -> bool:
    """Whether a field that stays unread holds more than nothing, an empty text, list or object."""
    return bytes(raw).strip() not in (b"", b"null", b'""', b"[]", b"{}")


def json_text(raw: msgspec.Raw, kind: object, place: str, *, limit: int = MAX_JSON_TEXT) -> str | None:
    """As `text`, of this kind.

    The decoder passes over raw JSON without a look at its strings, so it is decoded here once, to be sure that the worker can.
    """
    found = text(raw, place, limit=limit)
    if found is None:
        return None
    try:
        value = msgspec.json.decode(found, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`{place}` is wrong: {printable(str(error))}.", param=place) from None
    return found if value else None


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def ignored(body: bytes, honoured: Collection[str]) -> tuple[str, ...]:
    """The fields of a valid body that do nothing here, sorted: those that are not `honoured` and say something.

    Of a body over `MAX_JSON_TEXT` none are told: so many fields as fit into one would hold the loop up.
    """
    if len(body) > MAX_JSON_TEXT:
        return ()
    try:
        fields = _FIELDS.decode(body)
    except (ValueError, RecursionError):  # in a part that the decoder of the dialect passed over
        return ()
    names = sorted(name for name in fields.keys() - set(honoured) if bytes(fields[name]) != b"null" and _PLAIN.fullmatch(name))
    return tuple(names[:MAX_IGNORED])


def fields(body: type[msgspec.Struct]) -> frozenset[str]:
    """The names that a type of body reads."""
    return frozenset(body.__struct_encode_fields__)
