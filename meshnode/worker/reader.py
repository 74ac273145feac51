"""What a model writes, taken apart as it grows: its thoughts, its text, its calls of tools (pure).

    start --mark of thoughts--> thinking --their end--> open --JSON without a mark--> call --decided--> closing --> open
                                                          `--anything else--> text --mark of a call--> call

A call is shown once it is whole and known to be one; what only began like one is shown as the text that it is. So nobody ever has
to take an argument back, at the price that a long one comes at once. What comes out joined is the same however the text was cut,
and nothing is lost but marks, and blanks beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import blake2b

from meshnode.inference import MAX_ARGUMENTS_PIECE, MAX_TOOL_CALLS, Resume, ToolCall
from meshnode.worker.calls import Body, Json, Kinds, Made
from meshnode.worker.dialect import Mark
from meshnode.worker.text import overlap

_BETWEEN = "; \t\r\n"
"""Of calls without an end mark; Llama 3 writes semicolons."""
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Form:
    """How an answer is to be read."""

    thinking: tuple[str, str] | None = None
    marks: tuple[Mark, ...] = ()
    kinds: Kinds = field(default_factory=dict)
    """Of the tools that the model may call; without any there are no calls."""
    parallel: bool = True
    begun: str = ""
    """How the prompt has begun the answer already."""
    seed: str = ""
    """The ids of calls come from this, and are different where it is."""
    short_ids: bool = False
    controls: Mapping[int, bytes] = field(default_factory=dict)
    """The control tokens that are marks here, and their texts."""

    @property
    def plain(self) -> bool:
        return not self.thinking and not self.kinds


PLAIN = Form()
"""All of it is text."""


@dataclass(frozen=True)
class Said:
    """What a piece of the model's output came to."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, later: "Said") -> "Said":
        return Said(self.text + later.text, self.reasoning + later.reasoning, self.calls + later.calls)


NOTHING = Said()


class _Place(Enum):
    START = auto()
    THINKING = auto()
    OPEN = auto()
    TEXT = auto()
    CALL = auto()
    CLOSING = auto()


class Reader:
    """One choice of an answer. `complete` turns true when nothing further is wanted of it.

    What the asker has already of an answer that it wants to go on is not shown again.
    """

    def __init__(self, form: Form, choice: int = 0, resume: Resume | None = None) -> None:
        self.complete = False
        self.called = 0
        """How many calls there were."""
        self._form = form
        self._plain = form.plain
        self._choice = choice
        self._place = _Place.START
        self._held = ""
        self._blank = ""
        """Blanks that are text only if text follows."""
        self._trimming = False
        """Blanks are not even that: they come after a mark."""
        self._mark: Mark | None = None
        self._body: Body = Json()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._shown = resume.emitted if resume else None
        if form.begun:
            self.push(form.begun)

    def push(self, text: str) -> Said:
        """What may be shown now that `text` was written."""
        if self._plain:
            return Said(text) if self._shown is None else self._beyond(Said(text))
        self._held += text
        while not self.complete and self._step():
            pass
        return self._said()

    def finish(self) -> Said:
        """The rest: what was held back did not become anything else."""
        if self._place is _Place.THINKING:
            self._show_thought(self._held)
        elif not self.complete:
            if self._place is _Place.CALL:
                self._held = self._refused() + self._held
            if self._held or not self.called:
                self._text += (self._blank, self._held)
        self._held = self._blank = ""
        return self._said()

    def _said(self) -> Said:
        said = Said(text="".join(self._text), reasoning="".join(self._reasoning), calls=tuple(self._calls))
        self._text, self._reasoning, self._calls = [], [], []
        return self._beyond(said) if self._shown else said

    def _beyond(self, said: Said) -> Said:
        assert self._shown is not None
        chars, reasoning, arguments = self._shown
        self._shown = (
            max(0, chars - len(said.text)),
            max(0, reasoning - len(said.reasoning)),
            max(0, arguments - sum(len(call.arguments) for call in said.calls)),
        )
        calls = []
        for call in said.calls:
            if len(call.arguments) > arguments:  # they are an object, so never empty
                calls.append(ToolCall(call.index, "", "", call.arguments[arguments:]) if arguments else call)
            arguments = max(0, arguments - len(call.arguments))
        return Said(text=said.text[chars:], reasoning=said.reasoning[reasoning:], calls=tuple(calls))

    def _step(self) -> bool:
        """Whether it was a step: the same text is then to be looked at from where it led to."""
        match self._place:
            case _Place.START:
                return self._start()
            case _Place.THINKING:
                return self._think()
            case _Place.OPEN:
                return self._open()
            case _Place.TEXT:
                return self._read()
            case _Place.CALL:
                return self._call()
            case _Place.CLOSING:
                return self._close()

    def _start(self) -> bool:
        self._set_blanks_aside()
        if self._form.thinking and self._held:
            mark = self._form.thinking[0]
            if self._held.startswith(mark):
                self._held, self._blank, self._trimming = self._held.removeprefix(mark), "", True
                return self._go(_Place.THINKING)
            if mark.startswith(self._held):
                return False
        return self._go(_Place.OPEN) if self._held else False

    def _think(self) -> bool:
        assert self._form.thinking
        mark = self._form.thinking[1]
        thought, found, rest = self._held.partition(mark)
        if not found:
            keep = overlap(thought, mark)
            thought, rest = thought[: len(thought) - keep], thought[len(thought) - keep :]
        self._held = rest
        self._show_thought(thought)
        if not found:
            return False
        self._blank, self._trimming = "", True
        return self._go(_Place.OPEN)

    def _show_thought(self, text: str) -> None:
        """Without the blanks at the end, and those at the beginning."""
        whole = text.lstrip() if self._trimming else self._blank + text
        shown = whole.rstrip()
        self._trimming = self._trimming and not shown
        self._reasoning.append(shown)
        self._blank = whole[len(shown) :]

    def _open(self) -> bool:
        self._set_blanks_aside()
        if not self._held:
            return False
        self._trimming = False
        marks = self._marks()
        if marks and self._held[0] in "{[":
            if any(mark.startswith(self._held) and mark != self._held for mark in marks):
                return False
            if not any(self._held.startswith(mark) for mark in marks):
                self._mark, self._body = None, Json(known=self._form.kinds)
                return self._go(_Place.CALL)
        return self._go(_Place.TEXT)

    def _read(self) -> bool:
        marks = self._marks()
        found = [(at, -len(mark), mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        at, _, opened = min(found, default=(len(self._held), 0, ""))
        keep = 0 if opened else max((overlap(self._held, mark) for mark in marks), default=0)
        whole = self._blank + self._held[: at - keep]
        shown = whole.rstrip() if marks else whole
        self._text.append(shown)
        self._blank = whole[len(shown) :]
        self._held = self._held[at - keep :].removeprefix(opened)
        if not opened:
            return False
        self._mark = next(mark for mark in self._form.marks if mark.open == opened)
        self._body = self._mark.body(self._form.kinds)
        return self._go(_Place.CALL)

    def _call(self) -> bool:
        used = self._body.push(self._held)
        if used is None:
            self._held = ""
            return False
        self._held = self._held[used:]
        made = self._body.calls
        if made is None or self.called + len(made) > MAX_TOOL_CALLS:
            self._text += (self._blank, self._refused())
            self._blank = ""
            return self._go(_Place.TEXT)
        self._blank = ""
        for name, arguments in made if self._form.parallel else made[:1]:
            self._show_call((name, arguments))
        self.complete = not self._form.parallel
        return self._go(_Place.CLOSING)

    def _refused(self) -> str:
        """The text of a call that is none."""
        return (self._mark.open if self._mark else "") + self._body.raw

    def _show_call(self, made: Made) -> None:
        name, arguments = made
        first, rest = arguments[:MAX_ARGUMENTS_PIECE], arguments[MAX_ARGUMENTS_PIECE:]
        self._calls.append(ToolCall(self.called, self._id(self.called), name, first))
        for at in range(0, len(rest), MAX_ARGUMENTS_PIECE):
            self._calls.append(ToolCall(self.called, "", "", rest[at : at + MAX_ARGUMENTS_PIECE]))
        self.called += 1

    def _id(self, index: int) -> str:
        """The same again, should another node go on with this answer."""
        digest = blake2b(f"{self._form.seed}/{self._choice}/{index}".encode(), digest_size=12)
        if not self._form.short_ids:
            return f"call_{digest.hexdigest()}"
        number = int.from_bytes(digest.digest())
        return "".join(_ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(9))

    def _close(self) -> bool:
        self._set_blanks_aside(_BETWEEN)
        mark = self._mark.close if self._mark else ""
        if mark and self._held.startswith(mark):
            self._held, self._blank = self._held.removeprefix(mark), ""
        elif not self._held or (mark and mark.startswith(self._held)):
            return False
        return self._go(_Place.OPEN)

    def _marks(self) -> tuple[str, ...]:
        """Which may still begin a call."""
        if not self._form.kinds or self.called >= MAX_TOOL_CALLS:
            return ()
        return tuple(mark.open for mark in self._form.marks)

    def _set_blanks_aside(self, blanks: str | None = None) -> None:
        rest = self._held.lstrip(blanks)
        self._blank += "" if self._trimming else self._held[: len(self._held) - len(rest)]
        self._held = rest

    def _go(self, place: _Place) -> bool:
        self._place = place
        return True
