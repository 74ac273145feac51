"""A grammar in GBNF, llama.cpp's notation (pure).

    rule     name ::= alternatives      `root` is where an answer begins; comments run from # to the end of the line
    item     "text"   [a-z]   [^"\\x00]   .   name   ( alternatives )      one after the other; alternatives stand between |
    repeat   item*  item+  item?  item{3}  item{3,}  item{3,5}

A rule goes on in the next line only within parentheses or after `|`. What llama.cpp's own parser does with hostile text is hang
(`"a"{5,3}`, a left recursion hidden behind an empty rule, rules that double), overflow the stack (deep parentheses), or take
gigabytes (a long text repeated). Here all is bounded, and an error names line and column. References to token ids are refused.
"""

import re
from dataclasses import dataclass

from meshnode.worker.utf8 import MAX_CODE_POINT, Ranges, complement

MAX_GRAMMAR = 512 * 1024
"""Bytes of GBNF. Grammars that people write have some hundreds; one made from a schema is several times as long as that."""
MAX_DEPTH = 64
"""Of parentheses."""
MAX_REPETITIONS = 32 * 1024
ROOT = "root"


class GrammarError(Exception):
    """This is not a grammar, or too large a one; `rule` is the one it was found in, empty before the first."""

    def __init__(self, reason: str, *, line: int, column: int, rule: str = "") -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.reason = reason
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Text:
    data: bytes


@dataclass(frozen=True, slots=True)
class Class:
    """One character of `ranges`."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Reference:
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences."""

    alternatives: "tuple[tuple[Item, ...], ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` from `low` to `high` times; None: without end."""

    item: "Item"
    low: int
    high: int | None
    at: int


Item = Text | Class | Reference | Choice | Repeat


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    body: Choice
    at: int


_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_BOUNDS = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(?:(,)[ \t]*([0-9]{1,9})?[ \t]*)?\}")
_HEX = {"x": re.compile("[0-9a-fA-F]{2}"), "u": re.compile("[0-9a-fA-F]{4}"), "U": re.compile("[0-9a-fA-F]{8}")}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def wrong(text: str, at: int, reason: str, rule: str = "", *, kind: type[GrammarError] = GrammarError) -> GrammarError:
    """The error for what stands at this index of `text`."""
    line = text.count("\n", 0, at) + 1
    return kind(reason, line=line, column=at - (text.rfind("\n", 0, at) + 1) + 1, rule=rule)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rule = ""
        self._depth = 0
        if len(text) > MAX_GRAMMAR or len(text.encode("utf-8", "replace")) > MAX_GRAMMAR:
            raise self._wrong(f"the grammar is larger than {MAX_GRAMMAR} bytes")

    def rules(self) -> list[Rule]:
        self._skip(_BLANK)
        rules: dict[str, Rule] = {}
        while self._at < len(self._text):
            rule = self._one_rule()
            if rule.name in rules:
                raise wrong(self._text, rule.at, f"the rule `{rule.name[:64]}` is there already")
            rules[rule.name] = rule
        if ROOT not in rules:
            raise self._wrong(f"there is no rule `{ROOT}`, where an answer would begin")
        return list(rules.values())

    def _one_rule(self) -> Rule:
        at = self._at
        self._rule = self._name()
        self._skip(_SPACE)
        self._take("::=")
        self._skip(_BLANK)
        body = self._alternatives()
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._wrong(f"{self._seen()} cannot stand here")
        self._skip(_BLANK)
        return Rule(self._rule, body, at)

    def _alternatives(self) -> Choice:
        alternatives = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            self._skip(_BLANK)
            alternatives.append(self._sequence())
        return Choice(tuple(alternatives))

    def _sequence(self) -> tuple[Item, ...]:
        items: list[Item] = []
        while (seen := self._peek()) not in {"", "|", ")", "\r", "\n"}:
            if seen in {"*", "+", "?", "{"}:
                if not items:
                    raise self._wrong(f"`{seen}` has nothing before it to repeat")
                if isinstance(items[-1], Repeat):
                    raise self._wrong("a repetition is repeated only within parentheses")
                items[-1] = self._repeat(items[-1])
            else:
                items.append(self._item(seen))
            self._skip(_BLANK if self._depth else _SPACE)
        return tuple(items)

    def _item(self, seen: str) -> Item:
        at = self._at
        if seen == '"':
            return self._literal()
        if seen == "[":
            return self._class()
        if seen == "(":
            return self._group()
        if seen == ".":
            self._at += 1
            return Class(complement(()))
        if seen in {"<", "!"}:
            raise self._wrong("references to tokens are not supported")
        return Reference(self._name(), at)

    def _group(self) -> Choice:
        self._at += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"more than {MAX_DEPTH} parentheses within each other")
        self._skip(_BLANK)
        body = self._alternatives()
        self._take(")")
        self._depth -= 1
        return body

    def _literal(self) -> Text:
        self._at += 1
        characters = []
        while self._peek() != '"':
            characters.append(self._character())
        self._at += 1
        return Text("".join(characters).encode())

    def _class(self) -> Class:
        at = self._at
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while self._peek() != "]":
            low = high = ord(self._character())
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = ord(self._character())
            if high < low:
                raise self._wrong("the range goes backwards")
            ranges.append((low, high))
        self._at += 1
        if not ranges and not negated:
            raise wrong(self._text, at, "a class without any character", self._rule)
        return Class(complement(complement(ranges)) if not negated else complement(ranges))

    def _character(self) -> str:
        seen = self._peek()
        if not seen:
            raise self._wrong("the grammar ends in the middle of a text or a class")
        self._at += 1
        if seen != "\\":
            return self._real(seen)
        kind = self._peek()
        self._at += 1
        if digits := kind in _HEX and _HEX[kind].match(self._text, self._at):
            self._at = digits.end()
            code = int(digits[0], 16)
            return self._real(chr(code) if code <= MAX_CODE_POINT else "")
        if kind not in _ESCAPES:
            self._at -= 2
            raise self._wrong("no such escape; there are " + r"\n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH")
        return _ESCAPES[kind]

    def _real(self, character: str) -> str:
        if not character or 0xD800 <= ord(character) <= 0xDFFF:
            raise self._wrong("this stands for no character")
        return character

    def _repeat(self, item: Item) -> Repeat:
        at = self._at
        if times := _TIMES.get(self._text[at]):
            self._at += 1
            return Repeat(item, *times, at)
        bounds = _BOUNDS.match(self._text, at)
        if not bounds:
            raise self._wrong("a repetition is {3}, {3,} or {3,5}")
        self._at = bounds.end()
        low = int(bounds[1])
        high = low if not bounds[2] else int(bounds[3]) if bounds[3] else None
        if high is not None and high < low:
            raise wrong(self._text, at, f"at least {low} times and at most {high} is never", self._rule)
        if max(low, high or 0) > MAX_REPETITIONS:
            raise wrong(self._text, at, f"more than {MAX_REPETITIONS} repetitions", self._rule)
        return Repeat(item, low, high, at)

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        if not name:
            raise self._wrong(f"{self._seen()} cannot stand here")
        self._at = name.end()
        return name[0]

    def _take(self, wanted: str) -> None:
        if not self._text.startswith(wanted, self._at):
            raise self._wrong(f"`{wanted}` is missing before {self._seen()}")
        self._at += len(wanted)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _seen(self) -> str:
        return "the end" if self._at >= len(self._text) else ascii(self._text[self._at])

    def _skip(self, spaces: re.Pattern[str]) -> None:
        found = spaces.match(self._text, self._at)
        assert found
        self._at = found.end()

    def _wrong(self, reason: str) -> GrammarError:
        return wrong(self._text, self._at, reason, self._rule)


def rules(text: str) -> list[Rule]:
    """The rules of the grammar `text`, `ROOT` among them. Raises GrammarError."""
    return _Parser(text).rules()
