"""The running node's report, for the commands that show a part of it: once, or again each second."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from meshnode import config
from meshnode.cli.api import NotRunning, get
from meshnode.cli.arguments import PLACE, add_options
from meshnode.errors import MeshnodeError

if TYPE_CHECKING:
    from meshnode.status import Report

WATCH_EVERY_S = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True)
class Part:
    """What a command shows of the report: `table` for people, `facts` for programs."""

    table: Callable[["Report"], str]
    facts: Callable[["Report", dict[str, Any]], object]
    """Of the report, and of the same as it came: a newer node may say more in it than we know of."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="show it anew each second, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON (its schema is stable); with --watch one line each time")
    add_options(parser, PLACE)


def run(arguments: argparse.Namespace, part: Part, code: Callable[["Report"], int]) -> int:
    """Show `part` of the report. Exit code 1 when no node runs, else what `code` says of it."""
    data_dir = config.data_dir(vars(arguments), os.environ)
    try:
        if arguments.watch:
            _watch(data_dir, part, as_json=arguments.json)
        report, body = _fetch(data_dir)
    except NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    print(_facts(part, report, body, indent=2) if arguments.json else part.table(report))
    return code(report)


def fetch(data_dir: Path) -> "Report":
    """Raises NotRunning, or MeshnodeError when the report cannot be had or read."""
    return _fetch(data_dir)[0]


def _fetch(data_dir: Path) -> tuple["Report", bytes]:
    body = get("/mesh/v1/status", data_dir)
    import msgspec

    from meshnode.status import Report

    try:
        return msgspec.json.decode(body, type=Report), body
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MeshnodeError(f"The node's report cannot be read ({error}).", hint="Is it another version? Restart it.") from error


def _facts(part: Part, report: "Report", body: bytes, *, indent: int) -> str:
    import msgspec

    encoded = msgspec.json.encode(part.facts(report, json.loads(body)))
    return msgspec.json.format(encoded, indent=indent).decode()


def _watch(data_dir: Path, part: Part, *, as_json: bool) -> NoReturn:
    """Until Ctrl-C. A node that is away for a moment, to restart, does not end it once it has been seen."""
    clear = not as_json and sys.stdout.isatty()
    report, body = _fetch(data_dir)
    while True:
        text = _facts(part, report, body, indent=-1) if as_json else part.table(report)
        print(f"{_HOME_AND_CLEAR if clear else ''}{text}", flush=True)
        time.sleep(WATCH_EVERY_S)
        while True:
            try:
                report, body = _fetch(data_dir)
                break
            except NotRunning as error:
                print(f"{_HOME_AND_CLEAR if clear else ''}meshnode: {error}", file=sys.stderr, flush=True)
                time.sleep(WATCH_EVERY_S)
