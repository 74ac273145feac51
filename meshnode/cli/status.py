"""`meshnode status`: the whole mesh as the node of this data directory sees it."""

import argparse
import os
import sys

from meshnode import config
from meshnode.cli.api import NotRunning, get
from meshnode.cli.arguments import PLACE, add_options
from meshnode.errors import MeshnodeError

SUMMARY = "show this node, the members of its mesh and what is wrong"
EXAMPLE = "Exit code: 0 healthy, 1 no node runs here, 2 degraded. Example: meshnode status --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, PLACE)
    parser.add_argument("--json", action="store_true", help="print the report as JSON (its schema is stable)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        body = get("/mesh/v1/status", config.data_dir(vars(arguments), os.environ))
    except NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    import msgspec

    from meshnode.status import Report, is_degraded, render

    try:
        report = msgspec.json.decode(body, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MeshnodeError(f"The node's report cannot be read ({error}).", hint="Is it another version? Restart it.") from error
    print(msgspec.json.format(body, indent=2).decode() if arguments.json else render(report))
    return 2 if is_degraded(report) else 0
