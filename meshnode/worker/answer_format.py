"""What a request says of the form of its answer, as a constraint (pure)."""

from collections.abc import Callable

from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import MAX_SCHEMA, ResponseFormat
from meshnode.names import printable
from meshnode.worker.constraint import Constraint, Grammars
from meshnode.worker.gbnf import GrammarError
from meshnode.worker.network import Endless
from meshnode.worker.schema import SchemaError, any_object, grammar_of

Constraints = Callable[[], Constraint]
"""Makes one for each answer."""

_SCHEMA = "response_format.json_schema.schema"


def constraints_of(asked: ResponseFormat, grammars: Grammars) -> Constraints | None:
    """None for plain text. Raises InvalidRequest, with the place in schema or grammar, or Unsupported for a kind unknown here."""
    if asked.kind == "text":
        return None
    if asked.kind == "json_object":
        return grammars.constraints(any_object())
    param = {"json_schema": _SCHEMA, "grammar": "grammar"}.get(asked.kind)
    if param is None:
        kind = printable(asked.kind, 40)
        raise Unsupported(f"This node's worker does not know answers of the form `{kind}`.", param="response_format.type")
    if asked.schema is None:
        raise InvalidRequest(f"`{param}` is missing.", param=param)
    if len(asked.schema) > MAX_SCHEMA or len(asked.schema.encode("utf-8", "replace")) > MAX_SCHEMA:
        raise InvalidRequest(f"`{param}` is larger than {MAX_SCHEMA} bytes.", param=param)
    try:
        return _by_schema(asked.schema, grammars) if asked.kind == "json_schema" else grammars.constraints(asked.schema)
    except (SchemaError, GrammarError) as error:
        raise InvalidRequest(f"`{param}` is wrong: {printable(str(error))}.", param=param) from None


def _by_schema(schema: str, grammars: Grammars) -> Constraints:
    """Raises SchemaError, also for what shows only in the grammar made of it."""
    grammar, places = grammar_of(schema)
    try:
        return grammars.constraints(grammar)
    except GrammarError as error:
        reason = "this leads to itself without end" if isinstance(error, Endless) else "the schema is too large up to here"
        raise SchemaError(places.get(error.rule, ""), reason) from None
