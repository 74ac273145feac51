"""`meshnode key`: API keys, by which other machines may use this node. Made by the running node, else in its data directory."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshnode import config, credentials
from meshnode.cli import api
from meshnode.cli.arguments import PLACE, add_options
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

SUMMARY = "make, list or revoke the API keys by which other machines may use this node"
EXAMPLE = "Example: meshnode key new --tokens-per-minute 50000"
_PATH = "/mesh/v1/keys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["new", "list", "revoke"], help="new: make a key and print it, this once")
    parser.add_argument("id", nargs="?", metavar="ID", help="revoke: which one, as `meshnode key list` shows it (mk_ID_...)")
    parser.add_argument("--admin", action="store_true", help="new: a key that may also administer the node, on its own machine")
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="new: no more than so many (default: no limit)")
    parser.add_argument("--tokens-per-minute", type=int, metavar="N", help="new: of prompts and answers (default: no limit)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    path = config.data_dir(vars(arguments), os.environ)
    if (arguments.action == "revoke") != (arguments.id is not None):
        raise ConfigurationError("Only `revoke` takes a key's id, and needs one.", hint="See: meshnode key list")
    match arguments.action:
        case "new":
            made = _new(path, _wanted(arguments))
            print(json.dumps(made) if arguments.json else made["key"])
        case "revoke":
            revoked = _revoke(path, arguments.id)
            print(json.dumps(revoked) if arguments.json else f"The key {revoked['id']} is good for nothing now.")
        case _:
            keys = _listed(path)
            print(json.dumps({"keys": keys}) if arguments.json else "\n".join(map(_line, keys)) or "There is no key.")
    return 0


def _wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    limits = {name: getattr(arguments, name) for name in ("requests_per_minute", "tokens_per_minute")}
    for name, limit in limits.items():
        if limit is not None and not 1 <= limit <= 1_000_000_000:
            raise ConfigurationError(f"--{name.replace('_', '-')} {limit} is out of range.", hint="Use 1 to 1000000000.")
    return {"scope": "admin" if arguments.admin else "use", **limits}


def _new(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    if api.running(path) is not None:
        return _object(api.post(_PATH, path, wanted))
    from meshnode.keys import Scope, Wanted, shown

    with _locked(path) as data_dir:
        key, text = credentials.api_keys(data_dir).new(Wanted(**{**wanted, "scope": Scope(wanted["scope"])}), now=time.time())
    return {**shown(key), "key": text}


def _revoke(path: Path, id: str) -> dict[str, Any]:
    if api.running(path) is not None:
        return _object(api.delete(f"{_PATH}/{id}", path))
    from meshnode.keys import shown

    with _locked(path) as data_dir:
        key = credentials.api_keys(data_dir).revoke(id)
    if key is None:
        raise ConfigurationError(f"There is no key {id}.", hint="See: meshnode key list")
    return shown(key)


def _listed(path: Path) -> list[dict[str, Any]]:
    """From the file, which the running node writes before it answers."""
    from meshnode.keys import shown

    return [shown(key) for key in credentials.api_keys(DataDir.open(path))]


@contextmanager
def _locked(path: Path) -> Iterator[DataDir]:
    """Ours for the moment, so that a node which starts meanwhile does not miss what we write."""
    data_dir = DataDir.open(path)
    data_dir.lock()
    try:
        yield data_dir
    finally:
        data_dir.unlock()


def _object(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer)
    return found


def _line(key: dict[str, Any]) -> str:
    limits = [f"{key[f'{what}_per_minute']} {what}/min" for what in ("requests", "tokens") if key[f"{what}_per_minute"]]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key["created"]))
    return f"{key['id']}  {key['scope']:5}  {made}  {', '.join(limits) or 'no limit'}"
