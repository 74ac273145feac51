"""The call of a tool in the words of a model: where it ends, and what it says (pure).

A body is fed piece by piece until it has decided: `calls` are what it holds, or None when it is no call after all, and then `raw`
is the text that it took. Where it decides depends on the text alone, never on how it was cut, and every character is looked at
once. Arguments stay as the model wrote them, once they are known to be a JSON object.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

import msgspec

from meshnode.inference import MAX_TOOL_NAME

Made = tuple[str, str]
"""A call's name and arguments."""
Kinds = Mapping[str, Mapping[str, object]]
"""For each tool the JSON schema type of each of its arguments, as far as it says one."""

_BLANK = re.compile(r"\s*")
_BRACKET = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_MODEL_NAME = re.compile(rf"[^\s\x00-\x1f\x7f]{{1,{MAX_TOOL_NAME}}}")
_HEADER = re.compile(r"(?P<name>[^\s\[{]+)\s*(\[CALL_ID\][^\[{]*)?(\[ARGS\])?\s*")
_MAX_HEADER = 2 * MAX_TOOL_NAME
_CLOSE = "</function>"
_MALFORMED = (ValueError, RecursionError, KeyError, OverflowError)


class _JsonEnd:
    """Finds the end of a JSON object or array whose text comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """The place just behind the value's last bracket, if that is in `text`."""
        at = 0
        if self._escaped and text:
            self._escaped, at = False, 1
        while match := (_IN_STRING if self._in_string else _BRACKET).search(text, at):
            at = match.end()
            match match[0]:
                case "\\":
                    self._escaped = at == len(text)
                    at += 1
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth <= 0:
                        return at
        return None


class Body(ABC):
    """What follows a mark that begins a call."""

    def __init__(self) -> None:
        self.calls: tuple[Made, ...] | None = None
        self._taken: list[str] = []

    @property
    def raw(self) -> str:
        """All that was taken."""
        return "".join(self._taken)

    def push(self, text: str) -> int | None:
        """How much of `text` belongs to the body, once that is decided; before, all of it does."""
        used = self._advance(text)
        self._taken.append(text if used is None else text[:used])
        if used is not None:
            with suppress(*_MALFORMED):
                self.calls = self._read(self.raw)
        return used

    @abstractmethod
    def _advance(self, text: str) -> int | None: ...

    @abstractmethod
    def _read(self, raw: str) -> tuple[Made, ...]:
        """Raises one of _MALFORMED."""


class Json(Body):
    """A JSON object that is a call, or an array of them. With `known`, which is for JSON without a mark, of these tools alone."""

    def __init__(self, known: Collection[str] | None = None) -> None:
        super().__init__()
        self._known = known
        self._opener = ""
        self._begun = False
        self._end = _JsonEnd()

    def _advance(self, text: str) -> int | None:
        at = 0
        while not self._begun:
            at = _behind_blanks(text, at)
            if at == len(text):
                return None
            # What is no call is found out early, since nobody sees it until then.
            if text[at] not in {"": "{[", "{": '"', "[": "{"}[self._opener]:
                return at
            self._begun = bool(self._opener)
            if not self._begun:
                self._opener = text[at]
                self._end.find(text[at])
                at += 1
        end = self._end.find(text[at:])
        return None if end is None else at + end

    def _read(self, raw: str) -> tuple[Made, ...]:
        calls = tuple(_calls(msgspec.json.decode(raw, type=_Object | list[_Object])))
        if not calls or (self._known is not None and any(name not in self._known for name, _ in calls)):
            raise ValueError("no call")
        return calls


class Xml(Body):
    """`name> <parameter=p>value</parameter> ... </function>`, as Qwen3-Coder writes it after `<function=`."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self._kinds = kinds
        self._tail = ""

    def _advance(self, text: str) -> int | None:
        seen = self._tail + text
        found = seen.find(_CLOSE)
        if found < 0:
            self._tail = seen[-len(_CLOSE) + 1 :]
            return None
        return found + len(_CLOSE) - len(self._tail)

    def _read(self, raw: str) -> tuple[Made, ...]:
        name, _, rest = raw.removesuffix(_CLOSE).partition(">")
        kinds = self._kinds.get(_checked_name(name), {})
        values = {key: _value(text, kinds.get(key)) for key, text in _parameters(rest)}
        return ((name, msgspec.json.encode(values).decode()),)


class Tagged(Body):
    """What `<tool_call>` holds: JSON, or `<function=` and what follows it."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self._json = Json()
        self._xml = Xml(kinds)
        self._before = ""
        self._inner: Body | None = None

    def _advance(self, text: str) -> int | None:
        if self._inner is not None:
            return self._inner.push(text)
        mark = "<function="
        seen = self._before + text
        at = _behind_blanks(seen, 0)
        alike = _common(seen[at:], mark)
        if at + alike == len(seen) and alike < len(mark):
            self._before = seen[at:]
            return None
        if 0 < alike < len(mark):
            return at + alike - len(self._before)
        self._inner, at = (self._xml, at + alike) if alike else (self._json, at)
        used = self._inner.push(seen[at:])
        return None if used is None else at + used - len(self._before)

    def _read(self, raw: str) -> tuple[Made, ...]:
        if self._inner is None or self._inner.calls is None:
            raise ValueError("no call")
        return self._inner.calls


class Named(Body):
    """Mistral's: an array of JSON calls, or, as its later models write it, `name[ARGS]{...}`."""

    def __init__(self) -> None:
        super().__init__()
        self._json = Json()
        self._header = ""
        self._arguments: _JsonEnd | None = None
        self._is_json = False

    def _advance(self, text: str) -> int | None:
        if self._is_json:
            return self._json.push(text)
        if self._arguments is not None:
            return self._arguments.find(text)
        seen = self._header + text
        if (first := seen.lstrip()[:1]) in ("[", "{") and first:
            self._is_json = True
            used = self._json.push(seen)
            return None if used is None else used - len(self._header)
        at = seen.find("{", 0, _MAX_HEADER)
        if at >= 0:
            self._arguments = _JsonEnd()
            end = self._arguments.find(seen[at:])
            return None if end is None else at + end - len(self._header)
        if len(seen) >= _MAX_HEADER:
            return _MAX_HEADER - len(self._header)
        self._header = seen
        return None

    def _read(self, raw: str) -> tuple[Made, ...]:
        if self._is_json:
            if self._json.calls is None:
                raise ValueError("no call")
            return self._json.calls
        header, brace, rest = raw.partition("{")
        match = _HEADER.fullmatch(header.lstrip())
        if not match:
            raise ValueError("no name")
        return ((_checked_name(match["name"]), _arguments(msgspec.Raw((brace + rest).encode()))),)


_Object = dict[str, msgspec.Raw]


def _behind_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match
    return match.end()


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next(
        (at for at, (ours, theirs) in enumerate(zip(one, other, strict=False)) if ours != theirs), min(len(one), len(other))
    )


def _calls(said: _Object | list[_Object]) -> Iterator[Made]:
    if isinstance(said, list):
        for each in said:
            yield from _calls(each)
    elif "tool_calls" in said:
        yield from map(_call, msgspec.json.decode(said["tool_calls"], type=list[_Object]))
    elif "tool_call" in said:
        yield _call(msgspec.json.decode(said["tool_call"], type=_Object))
    else:
        yield _call(said)


def _call(said: _Object) -> Made:
    """`arguments`, or `parameters` as Llama says; also in OpenAI's form, inside of `function`."""
    if "name" not in said:
        said = msgspec.json.decode(said["function"], type=_Object)
    name = _checked_name(msgspec.json.decode(said["name"], type=str))
    return name, _arguments(said["arguments"] if "arguments" in said else said["parameters"])


def _checked_name(name: str) -> str:
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError("no name")
    return name


def _arguments(raw: msgspec.Raw) -> str:
    """As the model wrote them; some put the object into a string."""
    value = msgspec.json.decode(raw, type=dict[str, object] | str | None)
    if value is None:
        return "{}"
    if isinstance(value, str):
        msgspec.json.decode(value, type=dict[str, object])
        return value
    return bytes(raw).decode()


def _parameters(text: str) -> Iterator[tuple[str, str]]:
    """Raises ValueError where there is anything between them. One line break on each side of a value is the form's."""
    at = _behind_blanks(text, 0)
    while at < len(text):
        if not text.startswith("<parameter=", at):
            raise ValueError("no parameter")
        key, value = text.index("=", at) + 1, text.index(">", at) + 1
        end = text.index("</parameter>", value)
        yield text[key : value - 1], text[value:end].removeprefix("\n").removesuffix("\n")
        at = _behind_blanks(text, end + len("</parameter>"))


def _value(text: str, kind: object) -> object:
    """Everything is text in this form, so a number is one where the tool does not want a string."""
    if kind == "string":
        return text
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return text
