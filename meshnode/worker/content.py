"""Text of a client inside of a template: it stays apart from the template's own, whatever the template does with it (pure).

It is a `Content`, a str that stays Content through everything that only trims, cuts or recases it, and that marks itself wherever
it is mixed with other text: it writes an opening and a closing mark around itself. The marks are two private code points that
occur in none of the texts and not in the template, so nobody can forge one.
"""

import re
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

from meshnode.worker.protocol import Region

MAX_DEPTH = 64
"""Of tools and of arguments; schemas that people write have a dozen levels."""
MAX_VALUES = 20_000
"""In all of them together, since all streams of the model wait while a template writes them: at most half a second. A hundred
tools that people wrote have 5,000."""
_PRIVATE_USE = (0xF0000, 0xFFFFD)


class Refused(Exception):
    """The template itself raised: these messages are not what it takes."""


class Broken(Exception):
    """The template does not compile, does what it may not, or is too large; the text says which."""


class Marks:
    """The two code points of one render."""

    def __init__(self, texts: Iterable[str]) -> None:
        used = set().union(*texts)
        free = (chr(point) for point in range(*_PRIVATE_USE) if chr(point) not in used)
        try:
            self.open, self.close = next(free), next(free)
        except StopIteration:
            raise Refused("the messages use every private character there is") from None

    def cut(self, output: str) -> Iterator[Region]:
        ours = True
        for piece in re.split(f"([{self.open}{self.close}])", output):
            if piece in (self.open, self.close):
                if ours != (piece == self.open):
                    raise Broken("it takes text apart that holds a message")
                ours = not ours
            elif piece:
                yield Region(text=piece, ours=ours)
        if not ours:
            raise Broken("it takes text apart that holds a message")


class Content(str):
    """Text that came from a message. Mixed with anything it becomes a plain str with marks around what was Content."""

    __slots__ = ("marks",)
    marks: Marks

    def like(self, text: str) -> "Content":
        content = Content(text)
        content.marks = self.marks
        return content

    @property
    def raw(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.marks.open}{self.raw}{self.marks.close}" if self else ""

    def __repr__(self) -> str:
        return str(self.like(repr(self.raw)))

    def __format__(self, spec: str) -> str:
        return str(self.like(format(self.raw, spec)))

    def __add__(self, other: str) -> str:
        return str(self) + str(other)

    def __radd__(self, other: str) -> str:
        return str(other) + str(self)

    def __getitem__(self, key: SupportsIndex | slice) -> "Content":
        return self.like(self.raw[key])

    def __iter__(self) -> Iterator["Content"]:
        return map(self.like, self.raw)


def check(values: list[object]) -> None:
    """Raises Refused for tools and arguments that nest too deep or are too many values."""
    count = 0
    for _ in range(MAX_DEPTH):
        values = [inner for value in values for inner in _inside(value)]
        count += len(values)
        if count > MAX_VALUES:
            raise Refused(f"their tools and arguments are more than {MAX_VALUES} values")
        if not values:
            return
    raise Refused(f"their tools or arguments nest deeper than {MAX_DEPTH}")


def _inside(value: object) -> Iterable[object]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()


def texts(value: object) -> Iterator[str]:
    """Every text in `value`, whose depth is known to be bounded; keys too."""
    match value:
        case str():
            yield value
        case dict():
            yield from value
            for item in value.values():
                yield from texts(item)
        case list():
            for item in value:
                yield from texts(item)


def contents(value: object, seed: Content) -> object:
    """`value` with every text in it as Content."""
    match value:
        case str():
            return seed.like(value)
        case dict():
            return {seed.like(key): contents(item, seed) for key, item in value.items()}
        case list():
            return [contents(item, seed) for item in value]
        case _:
            return value
