"""`meshnode drain`: a node that is about to be stopped takes nothing new."""

import argparse
import json
import os
import sys

from meshnode import config
from meshnode.cli.api import NotRunning, post
from meshnode.cli.arguments import PLACE, add_options

SUMMARY = "take nothing new and finish what runs, before this node is stopped; --off takes requests again"
EXAMPLE = "Exit code: 0, or 1 when no node runs here. Example: meshnode drain --hand-over"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--off", action="store_true", help="take requests again")
    parser.add_argument("--hand-over", action="store_true", help="let other nodes go on at once with what runs here for them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    wanted = {"on": not arguments.off, "hand_over": arguments.hand_over}
    try:
        drained = json.loads(post("/mesh/v1/drain", config.data_dir(vars(arguments), os.environ), wanted))
    except NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(drained))
    elif drained["draining"]:
        print(f"This node takes nothing new; requests under way: {drained['running']}.")
    else:
        print("This node takes requests.")
    return 0
