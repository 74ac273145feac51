"""`meshnode up`: gather the node's inputs, run it, and tell the person in front of it what to do next."""

import argparse
import json
import os
import socket
import stat
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode import config, credentials
from meshnode.cli.api import data_dir_flag
from meshnode.cli.arguments import EVERY, add_options
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

if TYPE_CHECKING:
    from meshnode.config import Settings
    from meshnode.identity import Token
    from meshnode.start import Running, Start

SUMMARY = "start a node in the foreground"
EXAMPLE = "Example: meshnode up --model qwen=~/models/qwen3-8b.gguf"
_TOKEN_LIMIT = 4096
"""Characters read of a token file: enough for a token, too few for a wrong file to hurt."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, EVERY)
    parser.add_argument("--json", action="store_true", help="print the first lines as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    settings = config.load(vars(arguments), os.environ)
    data_dir = DataDir.open(settings.data_dir)
    data_dir.lock()
    from meshnode import logs

    logging_to = logs.logging_to(data_dir.subdirectory("logs"), level=settings.log_level, style=settings.log_format)
    with logging_to as log_file:
        for line in config.unknown_variables(os.environ):
            _warn(line)
        token, is_new = _token(data_dir, settings.token_file)
        announce = partial(_announce, settings=settings, log_file=log_file, is_new=is_new, as_json=arguments.json)
        from meshnode.start import Start

        _run_node(Start(settings=settings, data_dir=data_dir, token=token, announce=announce))
    return 0


def _run_node(start: "Start") -> None:
    import trio

    from meshnode import node

    try:
        trio.run(node.run, start)
    except* (ConfigurationError, KeyboardInterrupt) as group:
        _raise_first(group)


def _raise_first(group: BaseExceptionGroup[BaseException]) -> None:
    """The nursery wraps what ended it; a person wants the first cause, and the traceback of no other."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raise error from None


def _warn(line: str, *arguments: object) -> None:
    import logging

    logging.getLogger("meshnode.config").warning(line, *arguments)


def _token(data_dir: DataDir, token_file: Path | None) -> "tuple[Token, bool]":
    """The mesh's token: a given one, which is kept, or the kept one, or on the first run a new one (then True)."""
    given = _given_token(token_file)
    if given is None:
        kept = credentials.kept_token(data_dir)
        return (kept, False) if kept else (credentials.keep_new_token(data_dir), True)
    _keep_given(data_dir, given)
    return given, False


def _given_token(token_file: Path | None) -> "Token | None":
    """From the file or the variable. Neither wins over the other: a node in the wrong mesh is worse than one that asks."""
    variable = config.take_token()
    from_variable = credentials.parsed_token(variable, config.TOKEN_VARIABLE) if variable else None
    from_file = credentials.parsed_token(_read(token_file), f"--token-file {token_file}") if token_file else None
    if from_variable and from_file and from_variable != from_file:
        raise ConfigurationError(f"--token-file and {config.TOKEN_VARIABLE} hold different tokens.", hint="Give one of them.")
    return from_variable or from_file


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_TOKEN_LIMIT)
    except OSError as error:
        raise ConfigurationError(f"--token-file {path}: {error.strerror}.", hint="Check the file.") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        _warn("others may read %s, which holds the mesh's token; to change that: chmod 600 %s", path, path)
    return text


def _keep_given(data_dir: DataDir, given: "Token") -> None:
    try:
        before = credentials.kept_token(data_dir)
    except ConfigurationError as error:
        _warn("%s It is replaced by the token given.", error.message)
        before = None
    if before == given:
        return
    if before is not None:
        _warn("the token given replaces the one in %s: this node changes its mesh", data_dir.path)
    credentials.keep_token(data_dir, given)


def _announce(running: "Running", *, settings: "Settings", log_file: Path, is_new: bool, as_json: bool) -> None:
    if as_json:
        facts = {"models": _models(settings), "data_dir": str(settings.data_dir), "log": str(log_file), "new_mesh": is_new}
        text = json.dumps({**asdict(running), **facts})
    else:
        next_machine = _next_machine(running, settings) if sys.stdout.isatty() else []
        text = "\n".join([*_banner(running, settings, log_file, is_new=is_new), *next_machine])
    with suppress(BrokenPipeError):  # who started us reads no more; the node goes on
        print(text, flush=True)


def _banner(running: "Running", settings: "Settings", log_file: Path, *, is_new: bool) -> list[str]:
    models = _models(settings)
    return [
        f"meshnode {running.name} ({running.node_id[:8]}) is up",
        f"  mesh    {running.mesh_id}{' (new)' if is_new else ''}, port open on {', '.join(running.mesh) or 'no address'}",
        f"  API     http://{running.api}/v1",
        *([f"  Ollama  http://{running.ollama}"] if running.ollama else []),
        f"  models  {_models_line(models, settings)}",
        f"  data    {settings.data_dir}",
        f"  log     {log_file}",
    ]


def _models(settings: "Settings") -> list[str]:
    if not settings.worker:
        return []
    return [name for name, _ in settings.model] or ([] if settings.models_dir else ["demo"])


def _models_line(models: list[str], settings: "Settings") -> str:
    loading = [f"loading {', '.join(models)}"] if models else []
    folders = ", ".join(map(str, settings.models_dir if settings.worker else ()))
    return "; ".join([*loading, *([f"on request, those in {folders}"] if folders else [])]) or "none: this node only asks"


def _next_machine(running: "Running", settings: "Settings") -> list[str]:
    """The token is a secret: the command that prints it is shown, and not the token."""
    flag = data_dir_flag(settings.data_dir)
    join = [
        f"On the next machine (it asks for the token, which is printed here by: meshnode token{flag}):",
        f"  meshnode join {_peer(running)} && meshnode up",
    ]
    return ["", *(join if running.mesh else []), f"See the mesh: meshnode status{flag}"]


def _peer(running: "Running") -> str:
    """What the next machine dials; this host's name, where it is known only that all its addresses will do."""
    from meshnode.address import MESH_PORT, Address, parse

    found = [parse(text, flag="--mesh") for text in running.advertised or running.mesh]
    address = next((each for each in found if not each.is_loopback), found[0])
    host = socket.gethostname() if address.is_wildcard else address.host
    return host if address.port == MESH_PORT else str(Address(host, address.port))
