"""The command line: one table of commands, and the one place where an error becomes a line and an exit code.

Exit codes: 0 done or healthy, 1 no node runs, 2 wrong usage or configuration (for `status`: degraded), 130 cut short by Ctrl-C.
What a command needs is imported when it runs, so that `meshnode status` does not pay for trio or TLS.
"""

import os
import sys
from collections.abc import Sequence

from meshnode import __version__
from meshnode.cli import add, drain, env, explain, join, key, members, models, remotes, remove, status, token, up
from meshnode.cli.arguments import Parser
from meshnode.errors import MeshnodeError

_COMMANDS = {
    "up": up,
    "join": join,
    "status": status,
    "members": members,
    "models": models,
    "remotes": remotes,
    "add": add,
    "remove": remove,
    "explain": explain,
    "drain": drain,
    "token": token,
    "key": key,
    "env": env,
}
_GLOBAL = {"-h", "--help", "--version"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and prints an error as one line that says what to do next."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _GLOBAL):
        arguments.insert(0, "up")  # `meshnode --model x` starts a node, as `meshnode` does
    try:
        parsed = _parser().parse_args(arguments)
        code = int(parsed.run(parsed))
        sys.stdout.flush()
    except MeshnodeError as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough (`meshnode status | head -1`); what is left must not fail at the exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="meshnode",
        description="Share the language models of the machines on one network. Without a command: start a node (up).",
        epilog="Example: meshnode up --model ~/models/qwen3-8b.gguf",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"meshnode {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        description = f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}."
        command = commands.add_parser(
            name, help=module.SUMMARY, description=description, epilog=module.EXAMPLE, allow_abbrev=False
        )
        module.add_arguments(command)
    return parser
