"""A regular expression of JSON Schema as the inside of a JSON text in GBNF (pure).

Of ECMA's expressions: characters, classes, `.`, groups, alternatives, repetitions, `^` at the beginning and `$` at the end of the
whole or of one of its outermost alternatives. What the result accepts matches the expression, also as Python reads it: `\\d`,
`\\w` and `\\s` stand for ASCII alone, and so does a class of everything but them. The rest is refused.
"""

import re

from meshnode.worker.json_rules import quote
from meshnode.worker.utf8 import Ranges, complement

MAX_PATTERN = 1000
_MAX_DEPTH = 16

_ASCII = ((0, 0x7F),)
_NAMED: dict[str, Ranges] = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x09, 0x0D), (0x20, 0x20)),
}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_ESCAPED = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))
"""What stands in a JSON text only with a backslash before it, or as a number; and the one that we write so."""
_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_QUANTIFIER = re.compile(r"[*+?]|\{[0-9]{1,4}(?:,[0-9]{0,4})?\}")
_CODE = {"x": re.compile("[0-9a-fA-F]{2}"), "u": re.compile("[0-9a-fA-F]{4}")}


class PatternError(Exception):
    """What cannot be kept to, and at which character."""


def pattern_rule(pattern: object) -> str:
    """The inside of a JSON text that matches `pattern` somewhere. Raises PatternError."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise PatternError(f"a pattern is a text of at most {MAX_PATTERN} characters")
    return _Reader(pattern).whole()


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def whole(self) -> str:
        alternatives = []
        while True:
            begins = self._taken("^")
            items = self._sequence()
            ends = self._taken("$")
            alternatives.append(" ".join(["" if begins else "char*", items, "" if ends else "char*"]).strip() or '""')
            if not self._taken("|"):
                break
        if self._at < len(self._pattern):
            raise self._wrong()
        return f"( {' | '.join(alternatives)} )"

    def _alternatives(self) -> str:
        alternatives = [self._sequence()]
        while self._taken("|"):
            alternatives.append(self._sequence())
        return f"( {' | '.join(each or _NOTHING for each in alternatives)} )"

    def _sequence(self) -> str:
        items = []
        while self._peek() not in {"", "|", ")", "$"}:
            item = self._item()
            if quantifier := _QUANTIFIER.match(self._pattern, self._at):
                self._at = quantifier.end()
                low, comma, high = quantifier[0].strip("{}").partition(",")
                if comma and high and int(high) < int(low):
                    raise self._wrong()
                item += quantifier[0]
                self._taken("?")  # lazy ones match no other texts
            items.append(item)
        return " ".join(items)

    def _item(self) -> str:
        if self._taken("("):
            return self._group()
        if self._taken("["):
            return _spelt(self._class())
        if self._taken("."):
            return _spelt(complement(_LINE_ENDS))
        if self._peek() in set("^*+?{}]"):
            raise self._wrong()
        return _spelt(self._character())

    def _group(self) -> str:
        if self._taken("?") and not self._taken(":"):
            raise self._wrong()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong()
        inside = self._alternatives()
        if not self._taken(")"):
            raise self._wrong()
        self._depth -= 1
        return inside

    def _class(self) -> Ranges:
        negated = self._taken("^")
        ranges: list[tuple[int, int]] = []
        ascii_only = False
        while not self._taken("]"):
            ascii_only = ascii_only or self._pattern[self._at : self._at + 2] in {rf"\{name}" for name in _NAMED}
            part = self._character()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in {"", "]"}:
                self._at += 1
                last = self._character()
                if not _single(part) or not _single(last) or last[0][0] < part[0][0]:
                    raise self._wrong()
                part = ((part[0][0], last[0][0]),)
            ranges += part
        if negated:
            return complement([*ranges, *complement(_ASCII)] if ascii_only else ranges)
        return complement(complement(ranges))

    def _character(self) -> Ranges:
        seen = self._peek()
        if not seen:
            raise self._wrong()
        self._at += 1
        if seen != "\\":
            return ((ord(seen), ord(seen)),)
        kind = self._peek()
        self._at += 1
        if kind in _NAMED:
            return _NAMED[kind]
        if code := kind in _CODE and _CODE[kind].match(self._pattern, self._at):
            self._at = code.end()
            return complement(complement([(int(code[0], 16), int(code[0], 16))]))
        if kind in _CONTROLS:
            return ((ord(_CONTROLS[kind]), ord(_CONTROLS[kind])),)
        if not kind or kind.isalnum():
            self._at -= 2
            raise self._wrong()
        return ((ord(kind), ord(kind)),)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _taken(self, wanted: str) -> bool:
        taken = self._peek() == wanted
        self._at += taken
        return taken

    def _wrong(self) -> PatternError:
        return PatternError(f"at character {self._at + 1}, the pattern is wrong or more than can be kept to")


_NOTHING = '""'


def _single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _spelt(ranges: Ranges) -> str:
    """One character of `ranges` as JSON writes it."""
    outside = complement(ranges)
    plain = complement([*outside, *_ESCAPED])
    parts = [f"[{''.join(f'{_escaped(low)}-{_escaped(high)}' for low, high in plain)}]"] if plain else []
    for low, high in complement([*outside, *complement(_ESCAPED)]):
        for code in range(low, high + 1):
            parts.append(quote(f"\\{_SHORT[chr(code)]}" if chr(code) in _SHORT else f"\\u{code:04x}"))
    return f"( {' | '.join(parts)} )" if parts else "[^\\x00-\\U0010FFFF]"


def _escaped(code: int) -> str:
    return f"\\U{code:08X}"
