"""`meshnode status`: the whole mesh as the node of this data directory sees it."""

import argparse
import os
import sys

from meshnode import config
from meshnode.cli.api import NotRunningError, get

SUMMARY = "show this node, the members of its mesh and what is wrong"
EXAMPLE = "Exit code: 0 healthy, 1 no node runs here, 2 degraded. Example: meshnode status --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", dest="data_dir", metavar="PATH", help="of the node to ask")
    parser.add_argument("--json", action="store_true", help="print the report as JSON (its schema is stable)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        body = get("/mesh/v1/status", config.data_dir(vars(arguments), os.environ))
    except NotRunningError as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    import msgspec

    from meshnode.status import Report, is_degraded, render

    report = msgspec.json.decode(body, type=Report)
    print(body.decode() if arguments.json else render(report))
    return 2 if is_degraded(report) else 0
