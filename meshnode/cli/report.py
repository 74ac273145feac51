"""The running node's report, for the commands that show a part of it: once, or again each second."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode import config
from meshnode.cli.api import NotRunning, get
from meshnode.cli.arguments import PLACE, add_options
from meshnode.errors import MeshnodeError

if TYPE_CHECKING:
    from meshnode.status import Report

WATCH_EVERY_S = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"

Show = Callable[["Report"], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="show it anew each second, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON (its schema is stable); with --watch an object a line")
    add_options(parser, PLACE)


def run(arguments: argparse.Namespace, *, table: Show, as_json: Show, code: Callable[["Report"], int]) -> int:
    """Print what `table` or `as_json` makes of the report. Exit code 1 when no node runs, else what `code` says of it."""
    show = as_json if arguments.json else table
    data_dir = config.data_dir(vars(arguments), os.environ)
    try:
        if arguments.watch:
            _watch(data_dir, show, clear=not arguments.json and sys.stdout.isatty())
        report = fetch(data_dir)
    except NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    print(show(report))
    return code(report)


def fetch(data_dir: Path) -> "Report":
    """Raises NotRunning, or MeshnodeError when the report cannot be had or read."""
    body = get("/mesh/v1/status", data_dir)
    import msgspec

    from meshnode.status import Report

    try:
        return msgspec.json.decode(body, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MeshnodeError(f"The node's report cannot be read ({error}).", hint="Is it another version? Restart it.") from error


def _watch(data_dir: Path, show: Show, *, clear: bool) -> None:
    """For ever. A node that is away for a moment, to restart, does not end it once it has been seen."""
    text = show(fetch(data_dir))
    while True:
        print(f"{_HOME_AND_CLEAR if clear else ''}{text}", flush=True)
        time.sleep(WATCH_EVERY_S)
        try:
            text = show(fetch(data_dir))
        except NotRunning as error:
            text = f"meshnode: {error}"
