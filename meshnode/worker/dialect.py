"""How a model writes what is not plain text: calls of tools, and what it thinks before it answers (pure).

Taken from its chat template, which shows the model its own earlier calls, and not from its name: whatever marks occur there are
the ones that it was trained on. As llama.cpp does it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshnode.tools import Choice, Tools
from meshnode.worker.calls import Body, Json, Kinds, Named, Tagged, Xml
from meshnode.worker.protocol import Region


@dataclass(frozen=True)
class Mark:
    """`open` begins a call and `close`, where the model does not forget it, ends it.

    `first` begins the first call of an answer up to its name, and `between` goes on to its arguments: with them a model can be
    made to call.
    """

    open: str
    close: str
    body: Callable[[Kinds], Body]
    first: str
    between: str


def _json(_kinds: Kinds) -> Body:
    return Json()


def _named(_kinds: Kinds) -> Body:
    return Named()


_HERMES = Mark("<tool_call>", "</tool_call>", Tagged, '<tool_call>\n{"name": "', '", "arguments": ')
_MARKS = (
    Mark("<function=", "</tool_call>", Xml, "<tool_call>\n<function=", ">\n"),
    _HERMES,
    Mark("[TOOL_CALLS]", "", _named, '[TOOL_CALLS][{"name": "', '", "arguments": '),
    Mark("<|python_tag|>", "", _json, '{"name": "', '", "parameters": '),
    Mark("<|tool_call|>", "<|/tool_call|>", _json, '<|tool_call|>[{"name": "', '", "arguments": '),
    Mark("<TOOLCALL>", "</TOOLCALL>", _json, '<TOOLCALL>[{"name": "', '", "arguments": '),
)
"""Qwen3-Coder; Hermes and Qwen; Mistral; Llama 3; Granite and Phi 4; Nemotron."""
_LATER_MISTRAL = Mark("[TOOL_CALLS]", "", _named, "[TOOL_CALLS]", "[ARGS]")
_UNMARKED = Mark("<tool_call>", "</tool_call>", Tagged, '{"name": "', '", "arguments": ')
"""Of a template that takes tools and has none of these: then a call is mostly JSON and nothing else."""
_INNER = ("[ARGS]", "[CALL_ID]")
_THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))


@dataclass(frozen=True)
class Dialect:
    marks: tuple[Mark, ...]
    """The first is the one with which the model is made to call."""
    thinking: tuple[str, str] | None = None
    """Where it begins and ends."""

    @property
    def texts(self) -> frozenset[str]:
        """Everything that the reader of an answer must see, should it be a control token."""
        marks = {text for mark in self.marks for text in (mark.open, mark.close, *_INNER)}
        return frozenset(text for text in (*marks, *(self.thinking or ())) if text)

    @property
    def short_ids(self) -> bool:
        """Mistral's templates take ids of nine letters and digits, and no others."""
        return any(mark.open == "[TOOL_CALLS]" for mark in self.marks)

    def thinks(self, prompt: Sequence[Region]) -> bool:
        """Whether the template has begun the model's thoughts for it."""
        return bool(self.thinking and prompt and prompt[-1].ours and prompt[-1].text.rstrip().endswith(self.thinking[0]))


def dialect_of(template: str, *, takes_tools: bool) -> Dialect:
    """Of the model with this chat template. If it takes no tools, the model is told to call as Hermes does (`fallback.py`)."""
    thinking = next((pair for pair in _THINKING if pair[1] in template), None)
    if not takes_tools:
        return Dialect((_HERMES,), thinking)
    marks = tuple(mark for mark in _MARKS if mark.open in template)
    if marks[:1] == (_MARKS[2],) and "[ARGS]" in template:
        marks = (_LATER_MISTRAL, *marks[1:])
    return Dialect(marks or (_UNMARKED,), thinking)


def opening(dialect: Dialect, tools: Tools, prompt: Sequence[Region]) -> tuple[tuple[Region, ...], str]:
    """What is put behind `prompt` so that the model has to call, if it has to; and how the answer has begun, with that, already.

    A name is the client's text. Thoughts that the template has begun are ended at once. What the model makes of the arguments is
    up to it.
    """
    thinking = dialect.thinking if dialect.thinks(prompt) else None
    if tools.choice not in (Choice.REQUIRED, Choice.FUNCTION):
        return (), thinking[0] if thinking else ""
    mark = dialect.marks[0]
    call = [Region(text=mark.first, ours=True)]
    if tools.choice is Choice.FUNCTION:
        call += [Region(text=tools.only, ours=False), Region(text=mark.between, ours=True)]
    closing = [Region(text=f"\n{thinking[1]}\n\n", ours=True)] if thinking else []
    return (*closing, *call), "".join(region.text for region in call)
