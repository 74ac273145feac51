"""`meshnode explain`: where a request would go now, and why nowhere else."""

import argparse
import os
import sys

from meshnode import config
from meshnode.cli.api import NotRunning, post
from meshnode.cli.arguments import PLACE, add_options
from meshnode.errors import MeshnodeError

SUMMARY = "tell where a request for a model would go now, with each node's estimate"
EXAMPLE = "Exit code: 0, or 1 when no node runs here. Example: meshnode explain demo --prompt-tokens 2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as a client would name it")
    parser.add_argument("--prompt-tokens", type=int, default=100, metavar="N", help="length of the prompt (default: 100)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="limit of the answer (default: none)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    wanted = {"model": arguments.model, "prompt_tokens": arguments.prompt_tokens, "max_tokens": arguments.max_tokens}
    try:
        body = post("/mesh/v1/explain", config.data_dir(vars(arguments), os.environ), wanted)
    except NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    import msgspec

    from meshnode.explanation import table
    from meshnode.routing.explain import Explanation

    if arguments.json:
        print(msgspec.json.format(body, indent=2).decode())
        return 0
    try:
        print(table(msgspec.json.decode(body, type=Explanation)))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MeshnodeError(f"The node's answer cannot be read ({error}).", hint="Is it another version? Restart it.") from error
    return 0
