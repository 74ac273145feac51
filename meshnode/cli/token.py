"""`meshnode token`: the secret that makes a machine a member."""

import argparse
import json
import os

from meshnode import config
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

SUMMARY = "print this mesh's token (whoever has it is a member), or make a new one"
EXAMPLE = "Example: meshnode token | ssh other-machine 'umask 077; cat > mesh-token'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["show", "new"], default="show", help="new: make a token for a new mesh")
    parser.add_argument("--force", action="store_true", help="new: replace the token that is there; this node leaves its mesh")
    parser.add_argument("--data-dir", dest="data_dir", metavar="PATH", help="of the node whose token is meant")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshnode.identity import Token

    data_dir = DataDir.open(config.data_dir(vars(arguments), os.environ))
    stored = data_dir.read("token")
    if arguments.action == "new" and stored is not None:
        _refuse_to_replace(data_dir, force=arguments.force)
        stored = None
    token = Token.parse(stored.decode().strip()) if stored else Token.new()
    if stored is None:
        data_dir.write("token", f"{token.text()}\n".encode())
    print(json.dumps({"token": token.text()}) if arguments.json else token.text())
    return 0


def _refuse_to_replace(data_dir: DataDir, *, force: bool) -> None:
    if data_dir.is_locked():
        raise ConfigurationError(f"A node runs on {data_dir.path} with the old token.", hint="Stop it first.")
    if not force:
        raise ConfigurationError(f"{data_dir.path} has a token already.", hint="`meshnode token` prints it; --force replaces it.")
