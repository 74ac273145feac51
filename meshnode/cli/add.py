"""`meshnode add`: another node by its address, or a remote service that this node then offers to the whole mesh.

A remote is tried at once, by the node, and kept only if it can be used. Keys come from a file, from the environment, from a
prompt or from standard input, never from an argument, which every user of the machine could read.
"""

import argparse
import getpass
import json
import os
import sys
from pathlib import Path
from typing import Any

from meshnode import config
from meshnode.address import MESH_PORT, parse
from meshnode.cli import api, join
from meshnode.cli.arguments import PLACE, add_options
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

SUMMARY = "add a node by its address, a Backend.AI cluster, or a router (any OpenAI-compatible server)"
EXAMPLE = "Example: meshnode add cluster lab https://api.example.com --access-key AKIA... (it asks for the secret key)"
WAIT_S = 40.0
"""A little longer than the node gives a remote."""
_MAX_KEY = 8192
_MAX_CA = 65 * 1024
_SECRET_VARIABLE = "BACKEND_SECRET_KEY"  # noqa: S105 - a variable's name
_ACCESS_VARIABLE = "BACKEND_ACCESS_KEY"
"""As the official client of Backend.AI calls them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="what to add", required=True, metavar="node|router|cluster")
    node = kinds.add_parser("node", help="a node of this mesh, dialled now and after every restart", allow_abbrev=False)
    node.add_argument("host", metavar="HOST[:PORT]", help="its address; the port is 4850 unless it says otherwise")
    _finish(node, _add_node)
    router = kinds.add_parser("router", help="an OpenAI-compatible server", allow_abbrev=False)
    _add_common(router)
    router.add_argument("--api-key-file", metavar="PATH", help="file with its API key; - for standard input (default: no key)")
    _finish(router, _add_router)
    cluster = kinds.add_parser("cluster", help="a Backend.AI cluster, by its manager", allow_abbrev=False)
    _add_common(cluster)
    cluster.add_argument("--access-key", metavar="KEY", help=f"of your key pair (also: {_ACCESS_VARIABLE})")
    cluster.add_argument(
        "--secret-key-file", metavar="PATH", help=f"file with the secret key (default: {_SECRET_VARIABLE}, or asked for)"
    )
    cluster.add_argument(
        "--rewrite",
        metavar="HOST=OTHER",
        action="append",
        default=[],
        help="where to reach a service's HOST[:PORT]; repeatable",
    )
    _finish(cluster, _add_cluster)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what to call it; NAME/MODEL then asks for its models")
    parser.add_argument("url", metavar="URL", help="https://HOST[:PORT]")
    parser.add_argument("--ca-file", metavar="PATH", help="trust only the certificates in this PEM file")
    parser.add_argument("--insecure", action="store_true", help="allow plain http, and trust any certificate")
    parser.add_argument(
        "--alias", metavar="NAME=MODEL", action="append", default=[], help="another name for a model of it; repeatable"
    )
    parser.add_argument("--models", metavar="PATTERN", action="append", default=[], help="offer only these (with *); repeatable")
    parser.add_argument("--cost", choices=["lan", "cluster", "metered"], help="what it costs you (default: by its address)")
    parser.add_argument("--spill-over", action="store_true", help="use it also for models of the mesh whose nodes are busy")


def _finish(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def _add_node(arguments: argparse.Namespace) -> int:
    host = str(parse(arguments.host, flag="HOST", default_port=MESH_PORT))
    data_dir = DataDir.open(config.data_dir(vars(arguments), os.environ))
    return join.dial(data_dir, host, as_json=arguments.json)


def _add_router(arguments: argparse.Namespace) -> int:
    key = _read(arguments.api_key_file, "--api-key-file") if arguments.api_key_file else ""
    return _add(arguments, {"kind": "router", "key": key})


def _add_cluster(arguments: argparse.Namespace) -> int:
    access = arguments.access_key or os.environ.get(_ACCESS_VARIABLE, "")
    rewrite = _pairs(arguments.rewrite, "--rewrite")
    secret = _secret(arguments.secret_key_file)
    return _add(arguments, {"kind": "cluster", "access_key": access, "key": secret, "rewrite": rewrite})


def _secret(path: str | None) -> str:
    if path:
        return _read(path, "--secret-key-file")
    if given := os.environ.get(_SECRET_VARIABLE):
        return given
    if not sys.stdin or not sys.stdin.isatty():
        return sys.stdin.read(_MAX_KEY).strip() if sys.stdin else ""
    return getpass.getpass("Secret key: ").strip()


def _add(arguments: argparse.Namespace, own: dict[str, Any]) -> int:
    """What was not given is left out: the node knows the defaults."""
    body = {
        "name": arguments.name,
        "url": arguments.url,
        "ca": _read(arguments.ca_file, "--ca-file", _MAX_CA) if arguments.ca_file else "",
        "insecure": arguments.insecure,
        "alias": _pairs(arguments.alias, "--alias"),
        "models": arguments.models,
        "cost": arguments.cost,
        "spill_over": arguments.spill_over,
        **own,
    }
    data_dir = config.data_dir(vars(arguments), os.environ)
    try:
        given = {key: value for key, value in body.items() if value}
        answer = api.post("/mesh/v1/remotes", data_dir, given, timeout_s=WAIT_S)
    except api.NotRunning as error:
        print(f"meshnode: {error}", file=sys.stderr)
        return 1
    added = json.loads(answer)
    print(json.dumps(added) if arguments.json else f"{added['name']} was added. {added['said']}.")
    if arguments.insecure:
        print(f"meshnode: {arguments.name} is used without checking who it is (--insecure).", file=sys.stderr)
    return 0


def _read(path: str, flag: str, limit: int = _MAX_KEY) -> str:
    if path == "-":
        return sys.stdin.read(limit).strip()
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(limit).strip()
    except OSError as error:
        raise ConfigurationError(f"{flag} {path}: {error.strerror}.", hint="Check the file.") from error


def _pairs(items: list[str], flag: str) -> dict[str, str]:
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ConfigurationError(f"{flag} {item!r} is no pair.", hint=f"Write it as {flag} ONE=OTHER.")
        pairs[name] = value
    return pairs
