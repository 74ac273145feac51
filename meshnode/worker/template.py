"""A model's own chat template: code by a stranger, run in a sandbox, on text that must not pass for the template's own (pure).

Two dangers, two answers.

**The template.** Jinja's sandbox keeps it from Python, not from memory and time: `{{ 'a' * 300000000 }}` takes over a GiB while
it compiles. So this module only ever runs in the renderer process, which is limited and killed (`renderer.py`, security rule
16); here, operators, filters and methods that amplify are bounded or absent, and the output is capped.

**The messages.** A message that holds `<|im_end|>` must not end its turn; nor must a tool's description, or an argument. What
comes from a client is `Content` (`content.py`), which marks itself wherever it is mixed with other text. The output is cut at the
marks into regions; `prompt.py` lets only the template's regions name control tokens. A template that takes a marked text apart
again is refused by name, not guessed at.
"""

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2.filters
import jinja2.sandbox
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from meshnode.inference import Message
from meshnode.worker.content import MAX_DEPTH, Broken, Content, Marks, Refused, check, contents, texts
from meshnode.worker.conversation import decoded, values
from meshnode.worker.protocol import Region

MAX_TEMPLATE = 64 * 1024
"""Bytes of source; the longest published ones have about 20 KiB."""
MAX_OUTPUT = 16 * 1024 * 1024
"""Characters of a rendered prompt: twice the largest request body."""
MAX_WIDTH = 256
"""Of padding and indentation."""


_KEEPING = ("strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "replace", "removeprefix", "removesuffix")
_CUTTING = ("split", "rsplit", "splitlines", "partition", "rpartition")
_TELLING = (
    "startswith",
    "endswith",
    "find",
    "rfind",
    "index",
    "count",
    "isspace",
    "isdigit",
    "isalpha",
    "isalnum",
    "isupper",
    "islower",
)


def _plain(value: object) -> object:
    return value.raw if isinstance(value, Content) else value


def _bounded(text: str) -> str:
    if len(text) > MAX_OUTPUT:
        raise Broken("its text grows without bound")
    return text


def _method(text: str, name: str) -> Callable[..., object]:
    """A str method for templates: of Content it gives Content, and it cannot amplify."""

    def call(*args: object, **kwargs: object) -> object:
        if name == "replace" and len(args) > 1:
            _check_replace(text, str(_plain(args[0])), str(args[1]))
        if not isinstance(text, Content):
            return getattr(text, name)(*(args if name in _TELLING else map(_mixed, args)), **kwargs)
        result = getattr(text.raw, name)(*map(_plain, args), **kwargs)
        if name in _KEEPING:
            return text.like(result)
        return [text.like(piece) for piece in result] if name in _CUTTING else result

    return call


def _mixed(value: object) -> object:
    return str(value) if isinstance(value, Content) else value


def _check_replace(text: str, old: str, new: str) -> None:
    if (text.count(old) + 1) * len(new) + len(text) > MAX_OUTPUT:
        raise Broken("its text grows without bound")


def _format(form: str, *args: object, **kwargs: object) -> str:
    """`'{}'.format(value)`: no widths, no attributes."""
    if isinstance(form, Content) or re.search(r"[{][^}]*[^}\w]", form):
        raise Broken("it formats with more than names")
    return _bounded(form.format(*map(_mixed, args), **{key: _mixed(value) for key, value in kwargs.items()}))


def _apply(name: str) -> Callable[..., object]:
    """The str method `name` as a filter."""
    return lambda value, *args: _method(value if isinstance(value, str) else str(value), name)(*args)


def _indent(value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, str) and width > MAX_WIDTH:
        raise Broken("it indents too far")
    pad = width if isinstance(width, str) else " " * width
    text = str(value)
    if len(pad) > MAX_WIDTH or len(text) + len(pad) * text.count("\n") > MAX_OUTPUT:
        raise Broken("it indents too far")
    lines = [pad + line if line.strip() or blank else line for line in text.split("\n")]
    return "\n".join(lines) if first else "\n".join(lines).removeprefix(pad)


def _join(value: Sequence[object], d: object = "", attribute: str | None = None) -> str:
    items = [item.get(attribute, "") if attribute and isinstance(item, Mapping) else item for item in value]
    texts = list(map(str, items))
    if sum(map(len, texts)) + len(str(d)) * len(texts) > MAX_OUTPUT:
        raise Broken("its text grows without bound")
    return str(d).join(texts)


def _tojson(value: object, indent: int | None = None, **options: Any) -> str:
    """As chat templates expect it: not for HTML, so nothing but JSON is escaped. Content stays marked inside the quotes.

    So `ensure_ascii` is ignored: it would escape the marks too.
    """
    if indent is not None and not 0 <= indent <= 16:
        raise Broken("it indents too far")
    options = {key: options[key] for key in ("sort_keys", "separators") if key in options}
    pieces, length = [], 0
    for piece in _JSON(indent=indent, ensure_ascii=False, **options).iterencode(value):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_OUTPUT:
            raise Broken("its text grows without bound")
    return "".join(pieces)


class _JSON(json.JSONEncoder):
    def iterencode(self, o: object, _one_shot: bool = False) -> Iterator[str]:
        return super().iterencode(_marked(o, 0))


def _marked(value: object, depth: int) -> object:
    """`value` with every Content as the marked str that it becomes in text."""
    if depth > MAX_DEPTH + 2:
        raise Broken("it nests too deep")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _marked(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, depth + 1) for item in value]
    return value


def _strftime_now(form: str) -> str:
    if len(form) > MAX_WIDTH:
        raise Broken("its date format is too long")
    return datetime.now().astimezone().strftime(form)


def _raise_exception(message: object) -> None:
    raise Refused(str(_plain(message))[:200])


def _escape(value: object) -> str:
    return value.like(html.escape(value.raw)) if isinstance(value, Content) else html.escape(str(value))


_FILTERS: dict[str, Callable[..., object]] = {
    name: jinja2.filters.FILTERS[name]
    for name in (
        "abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "list", "map", "max",
        "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "sum", "unique",
    )
} | {name: _apply(name) for name in ("lower", "upper", "title", "capitalize", "replace")} | {
    "trim": _apply("strip"), "indent": _indent, "join": _join, "tojson": _tojson, "e": _escape, "escape": _escape,
    "safe": lambda value: value, "string": lambda value: value if isinstance(value, str) else str(value),
}  # fmt: skip
"""The filters that published templates use; all others are unknown here."""


class _GenerationTag(Extension):
    """`{% generation %}`, with which some templates show training what to learn: here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _concat(texts: Iterable[object]) -> str:
    """Join what blocks, macros and `~` put together."""
    return _join(list(texts))


class _Concat(NodeTransformer):
    """`~` as a filter of ours, since jinja2 offers no other way to bound it; no template can spell the filter's name."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "~", [], [], None, None, lineno=node.lineno)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag])
        self.filters = _FILTERS | {"~": _concat}
        allowed = ("range", "dict", "namespace", "cycler", "joiner")
        self.globals = {name: self.globals[name] for name in allowed}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Concat().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums of ordinary length, numbers of ordinary size, and `'%s' % value` without widths."""
        if operator == "+":
            if isinstance(left, str | list) and isinstance(right, str | list) and len(left) + len(right) > MAX_OUTPUT:
                raise Broken("its text grows without bound")
            return left + right
        if operator == "%" and type(left) is str:
            if re.search(r"%[^sdr%]", left):
                raise Broken("it formats with widths")
            return _bounded(left % (tuple(map(_mixed, right)) if isinstance(right, tuple) else _mixed(right)))
        limit = 64 if operator == "**" else 2**63
        if not all(isinstance(value, int | float) and abs(value) <= limit for value in (left, right)):
            raise Broken(f"it uses {operator} on what is no small number")
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self._of_text(obj, attribute) if isinstance(obj, str) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) and isinstance(argument, str):
            return self._of_text(obj, argument)
        return super().getitem(obj, argument)

    def _of_text(self, text: str, name: str) -> object:
        """An attribute of text: one of the methods that templates need, refused by name, or undefined as in any template."""
        if name == "join":
            return lambda items: _join(items, text)
        if name == "format":
            return lambda *args, **kwargs: _format(text, *args, **kwargs)
        if name in _KEEPING + _CUTTING + _TELLING:
            return _method(text, name)
        if hasattr(str, name):
            raise Broken(f"it uses {name!r} of a text")
        return self.undefined(obj=text.raw if isinstance(text, Content) else text, name=name)


class Template:
    """A compiled template. Raises Broken when it is not fit to be one."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE:
            raise Broken(f"it is longer than {MAX_TEMPLATE // 1024} KiB")
        self._source = source
        self._variables = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": True, "documents": None}
        try:
            self._template = _Sandbox().from_string(source)
        except Broken:
            raise
        except Exception as error:  # a hostile source fails in ways of its own: recursion, memory, overflow
            raise Broken(_reason(error)) from error

    def render(self, messages: Sequence[Message], tools: str | None = None, thinking: bool | None = None) -> tuple[Region, ...]:
        """The prompt that `messages` make, with the tools of this JSON text, and with or without thoughts where it can do both.

        Raises Refused when the template does, Broken when it fails, InvalidRequest for calls that are none.

        Arguments of earlier calls are objects, as other engines have them too; a few templates want them as text, and fail on
        objects.
        """
        offered = decoded(tools) if tools is not None else None
        try:
            return self._render([*values(messages, parsed=True)], offered, thinking)
        except Broken:
            if all(message.tool_calls is None for message in messages):
                raise
            return self._render([*values(messages, parsed=False)], offered, thinking)

    def _render(self, messages: list[dict[str, object]], tools: object, thinking: bool | None) -> tuple[Region, ...]:
        check([tools, *(message.get("tool_calls") for message in messages)])
        marks = Marks([self._source, *texts(messages), *texts(tools)])
        seed = Content()
        seed.marks = marks
        pieces, length = [], 0
        try:
            given = {"messages": contents(messages, seed), "tools": contents(tools, seed)}
            if thinking is not None:
                given["enable_thinking"] = thinking  # Qwen's name, which others took over; they ask whether it is defined
            for piece in self._template.generate(**given, **self._variables):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_OUTPUT:
                    raise Broken("its output is too long")
        except (Refused, Broken):
            raise
        except Exception as error:  # as above
            raise Broken(_reason(error)) from error
        return tuple(marks.cut("".join(pieces)))


def _reason(error: Exception) -> str:
    """What went wrong, without any text of a message: jinja2's own errors name places in the template."""
    if isinstance(error, TemplateError) and error.message:
        return error.message[:200]
    return f"it fails with {type(error).__name__}"
