"""`meshnode token`: the secret that makes a machine a member."""

import argparse
import json
import os
from typing import TYPE_CHECKING

from meshnode import config
from meshnode.cli.arguments import PLACE, add_options
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

if TYPE_CHECKING:
    from meshnode.identity import Token

SUMMARY = "print this mesh's token (whoever has it is a member), or make a new one"
EXAMPLE = "Example: meshnode token | ssh other-machine 'umask 077; cat > mesh-token'"
_FILE = "token"


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
        token = keep_new(data_dir)
    else:
        token = kept(data_dir) or keep_new(data_dir)
    print(json.dumps({"token": token.text()}) if arguments.json else token.text())
    return 0


def kept(data_dir: DataDir) -> "Token | None":
    """The token of the mesh that this directory's node belongs to; None before there is one."""
    content = data_dir.read(_FILE)
    return None if content is None else parsed(content.decode(errors="replace"), str(data_dir.path / _FILE))


def keep(data_dir: DataDir, token: "Token") -> None:
    data_dir.write(_FILE, f"{token.text()}\n".encode())


def keep_new(data_dir: DataDir) -> "Token":
    from meshnode.identity import Token

    token = Token.new()
    keep(data_dir, token)
    return token


def parsed(text: str, source: str) -> "Token":
    """The token in `text`. Raises ConfigurationError naming `source`, for the text itself is never repeated."""
    from meshnode.identity import Token

    try:
        return Token.parse(text.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error.message}", hint=error.hint) from error


def _check_replaceable(data_dir: DataDir, *, force: bool) -> None:
    """A token that cannot be read is one too: --force replaces it."""
    if data_dir.is_locked():
        raise ConfigurationError(f"A node runs on {data_dir.path} with the old token.", hint="Stop it first.")
    if data_dir.read(_FILE) is not None and not force:
        raise ConfigurationError(f"{data_dir.path} has a token already.", hint="`meshnode token` prints it; --force replaces it.")
