"""The rules of JSON in GBNF, and fragments for its texts, numbers and formats (pure).

Some JSON is left out on purpose: escapes that spell half of a surrogate pair, which strict readers refuse; numbers of more digits
or larger exponents than a double holds; blanks without end, in which a small model can lose itself.
"""

import math
from collections.abc import Iterator

RULES = {
    "value": 'object | array | string | number | boolean | "null"',
    "object": '"{" ws ( pair ( "," ws pair )* ws )? "}"',
    "pair": 'string ":" ws value',
    "array": '"[" ws ( value ( "," ws value )* ws )? "]"',
    "string": r'"\"" char* "\""',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" ( ["\\/bfnrt] | "u" unit )',
    "unit": r'[0-9A-CEFa-cef] hex{3} | [dD] [0-7] hex{2} | [dD] [89ABab] hex{2} "\\u" [dD] [C-Fc-f] hex{2}',
    "hex": "[0-9A-Fa-f]",
    "boolean": '"true" | "false"',
    "integer": '"-"? ( "0" | [1-9] [0-9]{0,14} )',
    "number": "integer fraction? ( [eE] [-+]? [0-9]{1,2} )?",
    "fraction": '"." [0-9]{1,16}',
    "decimals": '"." [0-9]{1,6}',
    "ws": r'( " " | "\n" " "{0,32} )?',
    "date": '[1-9] [0-9]{3} "-" day | leap "-02-29"',
    "day": '( "0" [13578] | "1" [02] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] )'
    ' | ( "0" [469] | "11" ) "-" ( "0" [1-9] | [12] [0-9] | "30" ) | "02-" ( "0" [1-9] | "1" [0-9] | "2" [0-8] )',
    "leap": '[1-9] [0-9] ( "0" [48] | [2468] [048] | [13579] [26] ) | ( [2468] [048] | [13579] [26] ) "00"',
    "minute": '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9]',
    "time": 'minute ":" [0-5] [0-9] ( "." [0-9]{1,6} )? ( "Z" | [-+] minute )',
    "byte": '"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9]? [0-9]',
}
"""A date is of the years from 1000 to 9999."""

FORMATS = {
    "date": "date",
    "time": "time",
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
    "ipv4": 'byte "." byte "." byte "." byte',
}
"""JSON Schema's formats that can be kept to."""

_MAX_WHOLE = 10**15 - 1
"""Beyond, a double does not tell neighbours apart."""
_MAX_DIVIDED = 10**9 - 1
"""Beyond, six decimals could be rounded over a bound."""


def quote(text: str) -> str:
    """`text` as an item of a grammar."""
    escaped = (f"\\{each}" if each in '"\\' else f"\\x{ord(each):02X}" if each < " " or each == "\x7f" else each for each in text)
    return f'"{"".join(escaped)}"'


def whole_numbers(low: float, high: float) -> str | None:
    """Whole numbers from `low` to `high`, both included and perhaps infinite; None when there are none."""
    first, last = math.ceil(max(low, -_MAX_WHOLE)), math.floor(min(high, _MAX_WHOLE))
    parts = []
    if last >= 0 and last >= first:
        parts.append(_choice(_naturals(max(first, 0), last)))
    if first < 0:
        parts.append(f'"-" {_choice(_naturals(max(-last, 1), -first))}' if last >= first else "")
    return _choice(part for part in parts if part) if any(parts) else None


def numbers(low: float, high: float, *, above: bool, below: bool) -> str | None:
    """Numbers from `low` to `high`; these two are out when `above` and `below`. None when there is no whole number among them.

    Not all of them: next to a bound that is no whole number, the fractions beyond the last whole one are left out.
    """
    parts = [_decimals(max(low, 0), high, above=above and low >= 0, below=below)] if high >= 0 else []
    if low < 0:
        negative = _decimals(max(-high, 0), -low, above=below and high <= 0, below=above)
        parts.append(negative and f'"-" {negative}')
    return _choice(part for part in parts if part) if any(parts) else None


def _decimals(low: float, high: float, *, above: bool, below: bool) -> str | None:
    """Of numbers that are not negative."""
    first, last = math.ceil(low), math.floor(min(high, _MAX_WHOLE))
    above, below = above and first == low, below and last == high
    split = min(last - 1, _MAX_DIVIDED)
    parts = []
    if first + above <= split:
        parts.append(f"{_choice(_naturals(first + above, split))} decimals?")
    if above and first <= split:
        parts.append(f'"{first}." [0-9]{{0,5}} [1-9]')
    whole = _naturals(max(split + 1, first + above), last - below)
    if whole:
        parts.append(_choice(whole))
    return _choice(parts) if parts else None


def _choice(parts: "Iterator[str] | list[str]") -> str:
    return f"( {' | '.join(parts)} )"


def _naturals(low: int, high: int) -> list[str]:
    """Sequences of digits: all numbers from `low` to `high` without leading zeros."""
    found: list[str] = []
    while low <= high:
        end = min(high, 10 ** len(str(low)) - 1)
        found += _digits(str(low), str(end))
        low = end + 1
    return found


def _digits(low: str, high: str) -> list[str]:
    """The same for two numbers of as many digits."""
    if not low:
        return [""]
    rest = len(low) - 1
    if low[0] == high[0]:
        return [f'"{low[0]}" {tail}'.rstrip() for tail in _digits(low[1:], high[1:])]
    first, last = int(low[0]), int(high[0])
    found = []
    if low[1:] != "0" * rest:
        found += [f'"{first}" {tail}' for tail in _digits(low[1:], "9" * rest)]
        first += 1
    if high[1:] != "9" * rest:
        found += [f'"{last}" {tail}' for tail in _digits("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else ""))
    return found
