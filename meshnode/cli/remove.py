"""`meshnode remove`: this node bridges a cluster or a router no longer."""

import argparse
import json
import os
import sys
from urllib.parse import quote

from meshnode import config
from meshnode.cli import api
from meshnode.cli.arguments import PLACE, add_options

SUMMARY = "forget a cluster or a router of this node, and its keys"
EXAMPLE = "Example: meshnode remove lab (meshnode remotes lists them)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as `meshnode remotes` shows it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    data_dir = config.data_dir(vars(arguments), os.environ)
    try:
        answer = api.delete(f"/mesh/v1/remotes/{quote(arguments.name, safe='')}", data_dir)
    except api.NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    print(answer.decode() if arguments.json else f"{json.loads(answer)['name']} is no remote of this node any more.")
    return 0
