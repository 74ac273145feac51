"""`meshnode token`: the secret that makes a machine a member."""

import argparse
import json
import os

from meshnode import config, credentials
from meshnode.cli.arguments import PLACE, add_options
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

SUMMARY = "print this mesh's token (whoever has it is a member), or make a new one"
EXAMPLE = "Example: meshnode token | ssh other-machine 'umask 077; cat > mesh-token'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["show", "new"], default="show", help="new: make a token for a new mesh")
    parser.add_argument("--force", action="store_true", help="new: replace the token that is there; this node leaves its mesh")
    add_options(parser, PLACE)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    data_dir = DataDir.open(config.data_dir(vars(arguments), os.environ))
    if arguments.action == "new":
        _check_replaceable(data_dir, force=arguments.force)
        token = credentials.keep_new_token(data_dir)
    else:
        token = credentials.kept_token(data_dir) or credentials.keep_new_token(data_dir)
    print(json.dumps({"token": token.text()}) if arguments.json else token.text())
    return 0


def _check_replaceable(data_dir: DataDir, *, force: bool) -> None:
    """A token that cannot be read is one too: --force replaces it."""
    if data_dir.is_locked():
        raise ConfigurationError(f"A node runs on {data_dir.path} with the old token.", hint="Stop it first.")
    if credentials.has_token(data_dir) and not force:
        raise ConfigurationError(f"{data_dir.path} has a token already.", hint="`meshnode token` prints it; --force replaces it.")
