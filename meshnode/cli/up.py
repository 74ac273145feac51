"""`meshnode up`: gather the node's inputs, run it, and tell the person in front of it what to do next."""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode import config
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

if TYPE_CHECKING:
    from meshnode.identity import Token
    from meshnode.start import Running

SUMMARY = "start a node in the foreground"
EXAMPLE = "Example: meshnode up --model qwen=~/models/qwen3-8b.gguf --peer 192.168.1.7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for option in (*config.OPTIONS, config.CONFIG):
        match option.kind:
            case config.Kind.SWITCH:
                constant = option.key != "worker"
                parser.add_argument(option.flag, dest=option.key, action="store_const", const=constant, help=option.doc)
            case config.Kind.LIST:
                parser.add_argument(option.flag, dest=option.key, action="append", metavar=option.metavar, help=option.doc)
            case config.Kind.NUMBER:
                parser.add_argument(option.flag, dest=option.key, type=int, metavar=option.metavar, help=option.doc)
            case config.Kind.TEXT:
                parser.add_argument(option.flag, dest=option.key, metavar=option.metavar, help=option.doc)
    parser.add_argument("--json", action="store_true", help="print the first lines as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    settings = config.load(vars(arguments), os.environ)
    data_dir = DataDir.open(settings.data_dir)
    data_dir.lock()
    from meshnode import logs

    log_file = logs.configure(level=settings.log_level, style=settings.log_format, directory=data_dir.subdirectory("logs"))
    for line in config.unknown_variables(os.environ):
        logging.getLogger("meshnode.config").warning(line)
    token, is_new = _token(data_dir, settings.token_file)
    announce = partial(_announce, is_new=is_new, log_file=log_file, data_dir=data_dir.path, as_json=arguments.json)

    import trio

    from meshnode import node
    from meshnode.start import Start

    try:
        trio.run(node.run, Start(settings=settings, data_dir=data_dir, token=token, announce=announce))
    except* (ConfigurationError, KeyboardInterrupt) as group:
        _raise_first(group)
    return 0


def _raise_first(group: BaseExceptionGroup[BaseException]) -> None:
    """The nursery wraps what ended it; a person wants the first cause, and the traceback of no other."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raise error from None


def _token(data_dir: DataDir, token_file: Path | None) -> tuple["Token", bool]:
    """The mesh's token: a given one, which is kept, or the kept one, or on the first run a new one (then True)."""
    from meshnode.identity import Token

    secret = config.take_secret("MESHNODE_TOKEN")
    given = token_file.read_text() if token_file else secret
    stored = data_dir.read("token")
    if given is not None:
        token = Token.parse(given.strip())
        if stored is None or stored.decode().strip() != token.text():
            data_dir.write("token", f"{token.text()}\n".encode())
            if stored is not None:
                logging.getLogger("meshnode.config").warning("the token given replaces the one in %s", data_dir.path)
        return token, False
    if stored is not None:
        return Token.parse(stored.decode().strip()), False
    token = Token.new()
    data_dir.write("token", f"{token.text()}\n".encode())
    return token, True


def _announce(running: "Running", *, is_new: bool, log_file: Path, data_dir: Path, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps({**asdict(running), "data_dir": str(data_dir), "log": str(log_file), "new_mesh": is_new}), flush=True)
        return
    print(f"meshnode {running.name} ({running.node_id[:8]}) is up")
    print(f"  mesh   {running.mesh_id}{' (new)' if is_new else ''}, other nodes reach it at {', '.join(running.mesh)}")
    print(f"  API    http://{running.api}/v1")
    print(f"  data   {data_dir}")
    print(f"  log    {log_file}")
    if sys.stdout.isatty():
        _print_next_machine(running, data_dir)
    sys.stdout.flush()


def _print_next_machine(running: "Running", data_dir: Path) -> None:
    from meshnode.address import MESH_PORT, parse

    port = parse(running.mesh[0], flag="--mesh").port
    here = parse(running.mesh[0], flag="--mesh").host
    peer = here if port == MESH_PORT else f"{here}:{port}"
    where = "" if data_dir == config.data_dir({}, {}) else f" --data-dir {data_dir}"
    print("\nOn the next machine, with this mesh's token in a file (here: meshnode token" + where + "):")
    print(f"  meshnode up --peer {peer} --token-file FILE")
    print("See the mesh: meshnode status" + where)
