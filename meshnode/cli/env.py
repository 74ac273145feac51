"""`meshnode env`: what to export so that a client of OpenAI's, Anthropic's or Ollama's asks this node."""

import argparse
import json
import os
import shlex

from meshnode import config
from meshnode.address import Address, parse
from meshnode.cli.api import reachable, running
from meshnode.cli.arguments import PLACE, add_options
from meshnode.errors import ConfigurationError

SUMMARY = "print what to export so that clients of other APIs ask this node"
EXAMPLE = 'Example: eval "$(meshnode env openai)"'
DIALECTS = ("openai", "anthropic", "ollama")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dialect", nargs="?", choices=DIALECTS, help="only what the clients of this API read (default: of all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    chosen = (arguments.dialect,) if arguments.dialect else DIALECTS
    variables = {name: value for dialect in chosen for name, value in variables_of(dialect, _api(arguments)).items()}
    if arguments.json:
        print(json.dumps(variables, indent=2))
    else:
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
    return 0


def variables_of(dialect: str, api: Address) -> dict[str, str]:
    """A key is asked for by the clients, not by a node on loopback; that of somebody else shall not reach it either."""
    base = f"http://{api}"
    match dialect:
        case "openai":
            return {"OPENAI_BASE_URL": f"{base}/v1", "OPENAI_API_KEY": "unused"}
        case "anthropic":
            return {"ANTHROPIC_BASE_URL": base, "ANTHROPIC_AUTH_TOKEN": "unused"}
        case _:
            return {"OLLAMA_HOST": base}


def _api(arguments: argparse.Namespace) -> Address:
    """Where the node listens or, while none runs, where it will: so a shell's start-up file can hold the command."""
    run = running(config.data_dir(vars(arguments), os.environ))
    api = parse(run.api, flag="api") if run else config.load(vars(arguments), os.environ).api
    if api.port == 0:
        raise ConfigurationError("--api has port 0, and no node runs: its port is not known yet.", hint="Start it: meshnode up")
    return reachable(api)
