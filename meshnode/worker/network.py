"""The network of a grammar: its rules as nodes that read one byte each (pure).

Each rule is entered by `Call` and left by `Return`, as a subroutine is; `automaton.py` runs it. A repetition is written out, but
what is repeated becomes a rule, so that each time takes a node or two. A rule that can begin with itself is refused: it would be
entered for ever. llama.cpp does not see all such, and takes time that doubles with every rule for looking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import assert_never

from meshnode.worker.gbnf import ROOT, Choice, Class, GrammarError, Item, Reference, Repeat, Rule, Text, rules, wrong
from meshnode.worker.utf8 import Ranges, byte_ranges

MAX_NODES = 32 * 1024
"""Of a network: some 5 MB."""


class Endless(GrammarError):
    """A rule that can begin with itself."""


@dataclass(frozen=True, slots=True)
class Read:
    """Take one byte from `low` to `high` and go on at `node`, for one of the edges (low, high, node)."""

    edges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Go on at any of these."""

    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Enter a rule, and go on at `then` when it returns."""

    rule: int
    then: int


@dataclass(frozen=True, slots=True)
class Return:
    pass


Node = Read | Split | Call | Return
RETURN = 0
"""The node that every rule ends with."""


@dataclass(frozen=True, slots=True)
class Network:
    nodes: Sequence[Node]
    starts: Sequence[int]
    """By rule, where it begins."""
    root: int


class _Compiler:
    """Backwards, so that where a node leads is known when it is made."""

    def __init__(self, text: str, rules: Sequence[Rule]) -> None:
        self._text = text
        self._rules = rules
        self._ids = {rule.name: index for index, rule in enumerate(rules)}
        self._nodes: list[Node] = [Return()]
        self._starts: list[int] = [RETURN] * len(rules)
        self._classes: dict[Ranges, int] = {}
        self._now = rules[0]

    def network(self) -> Network:
        for index, rule in enumerate(self._rules):
            self._now = rule
            self._starts[index] = self._compile(rule.body, RETURN)
        self._check_left_recursion()
        return Network(tuple(self._nodes), tuple(self._starts), self._ids[ROOT])

    def _add(self, node: Node) -> int:
        if len(self._nodes) >= MAX_NODES:
            reason = f"the grammar is too large up to here: more than {MAX_NODES} parts, repetitions written out"
            raise wrong(self._text, self._now.at, reason, self._now.name)
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _compile(self, item: Item, then: int) -> int:
        match item:
            case Text(data):
                for byte in reversed(data):
                    then = self._add(Read(((byte, byte, then),)))
                return then
            case Class(ranges):
                return self._class(ranges, then)
            case Reference(name, at):
                if name not in self._ids:
                    raise wrong(self._text, at, f"there is no rule `{name[:64]}`", self._now.name)
                return self._add(Call(self._ids[name], then))
            case Choice(alternatives):
                starts = tuple(self._sequence(items, then) for items in alternatives)
                return starts[0] if len(starts) == 1 else self._add(Split(starts))
            case Repeat():
                return self._repeat(item, then)

    def _sequence(self, items: tuple[Item, ...], then: int) -> int:
        for item in reversed(items):
            then = self._compile(item, then)
        return then

    def _class(self, ranges: Ranges, then: int) -> int:
        """ASCII in one node; anything else takes several, and is a rule of its own, shared by all places where it stands."""
        if not ranges or ranges[-1][1] < 0x80:
            return self._add(Read(tuple((low, high, then) for low, high in ranges)))
        if ranges not in self._classes:
            starts = []
            for sequence in byte_ranges(ranges):
                node = RETURN
                for low, high in reversed(sequence):
                    node = self._add(Read(((low, high, node),)))
                starts.append(node)
            self._classes[ranges] = self._rule(self._add(Split(tuple(starts))))
        return self._add(Call(self._classes[ranges], then))

    def _rule(self, start: int) -> int:
        self._starts.append(start)
        return len(self._starts) - 1

    def _repeat(self, repeat: Repeat, then: int) -> int:
        body = self._shared(repeat)

        def once(then: int) -> int:
            return self._add(Call(body, then)) if body is not None else self._compile(repeat.item, then)

        if repeat.high is None:
            start = self._add(Split(()))  # filled in when what it leads to is there
            self._nodes[start] = Split((once(start), then))
        else:
            start = then
            for _ in range(repeat.high - repeat.low):
                start = self._add(Split((once(start), then)))
        for _ in range(repeat.low):
            start = once(start)
        return start

    def _shared(self, repeat: Repeat) -> int | None:
        """What is written out many times becomes a rule, so that each time takes a node or two."""
        many = (repeat.high or repeat.low + 1) > 1
        return (
            self._rule(self._compile(repeat.item, RETURN)) if many and isinstance(repeat.item, Text | Choice | Repeat) else None
        )

    def _check_left_recursion(self) -> None:
        """A rule that can reach itself before a byte is read would be entered for ever."""
        try:
            TopologicalSorter(_Beginnings(self._nodes, self._starts).calls()).prepare()
        except CycleError as error:
            named = [index for index in error.args[1] if index < len(self._rules)]
            rule = self._rules[min(named)] if named else self._now
            raise wrong(
                self._text, rule.at, f"the rule `{rule.name[:64]}` can begin with itself", rule.name, kind=Endless
            ) from None


class _Beginnings:
    """Which rules a rule can enter before a byte is read. Every node is looked at once, for it is of one rule only."""

    def __init__(self, nodes: Sequence[Node], starts: Sequence[int]) -> None:
        self._nodes = nodes
        self._starts = starts
        self._calls: dict[int, set[int]] = {rule: set() for rule in range(len(starts))}
        self._waiting: dict[int, list[tuple[int, int]]] = {rule: [] for rule in range(len(starts))}
        """By rule, callers and where they go on, should it turn out that it can be empty."""
        self._empty: set[int] = set()

    def calls(self) -> dict[int, set[int]]:
        """By rule, the rules that it can enter so."""
        seen: set[tuple[int, int]] = set()
        todo = list(enumerate(self._starts))
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += self._following(*here)
        return self._calls

    def _following(self, rule: int, node: int) -> Sequence[tuple[int, int]]:
        match self._nodes[node]:
            case Read():
                return ()
            case Split(nodes=following):
                return [(rule, each) for each in following]
            case Call(rule=callee, then=then):
                self._calls[rule].add(callee)
                self._waiting[callee].append((rule, then))
                return [(rule, then)] if callee in self._empty else ()
            case Return():
                self._empty.add(rule)
                return self._waiting[rule]
            case other:
                assert_never(other)


def network(text: str) -> Network:
    """The network of the grammar `text`. Raises GrammarError."""
    return _Compiler(text, rules(text)).network()
