"""`meshnode join`: make this machine's node a member of a mesh that is there already."""

import argparse
import getpass
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode import config, credentials
from meshnode.address import MESH_PORT, parse
from meshnode.cli import api
from meshnode.cli.arguments import PLACE, add_options
from meshnode.cli.report import fetch
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

if TYPE_CHECKING:
    from meshnode.identity import Token
    from meshnode.status import MemberLine, Report

SUMMARY = "join the mesh whose token you have; at once, if the node runs"
EXAMPLE = "Example: meshnode join 192.168.1.7 (then type or paste what `meshnode token` prints there)"
WAIT_S = 10.0
"""By address a link takes tens of milliseconds, by mDNS up to three seconds; who is not there after ten needs a reason."""
_POLL_S = 0.1
_TOKEN_LIMIT = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", nargs="?", metavar="HOST[:PORT]", help="a node of that mesh (default: found on the network)")
    parser.add_argument("--token", metavar="TOKEN", help="the token; other users of this machine can see it while this runs")
    parser.add_argument("--token-file", metavar="PATH", help="file with the token (default: asked for, or standard input)")
    parser.add_argument("--force", action="store_true", help="also when this node is in a mesh with others, which it then leaves")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser, PLACE)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    host = str(parse(arguments.host, flag="HOST", default_port=MESH_PORT)) if arguments.host else None
    data_dir = DataDir.open(config.data_dir(vars(arguments), os.environ))
    token = _token(arguments, data_dir, optional=host is not None)
    _check_may_leave(data_dir, token, force=arguments.force)
    if token is not None:
        credentials.keep_token(data_dir, token)
    if not _runs(data_dir):
        return _store(data_dir, host, as_json=arguments.json)
    return _join_now(data_dir.path, host, as_json=arguments.json)


def dial(data_dir: DataDir, host: str, *, as_json: bool) -> int:
    """Dial a node of this very mesh, now and after every start."""
    credentials.kept_token(data_dir) or credentials.keep_new_token(data_dir)
    return _join_now(data_dir.path, host, as_json=as_json) if _runs(data_dir) else _store(data_dir, host, as_json=as_json)


def _runs(data_dir: DataDir) -> bool:
    """Whether a node runs there. One that is just starting has the lock before it can be asked, and has read the old token."""
    end = time.monotonic() + WAIT_S
    while api.running(data_dir.path) is None:
        if not data_dir.is_locked() or time.monotonic() >= end:
            return False
        time.sleep(_POLL_S)
    return True


def _token(arguments: argparse.Namespace, data_dir: DataDir, *, optional: bool) -> "Token | None":
    """The token that was given. None, to keep the one that is there, only where the caller has given an address to dial."""
    optional = optional and credentials.has_token(data_dir)
    text, source = _given(arguments) or _asked(optional=optional)
    if not text.strip() and optional:
        return None
    return credentials.parsed_token(text, source)


def _given(arguments: argparse.Namespace) -> tuple[str, str] | None:
    if arguments.token:
        return arguments.token, "--token"
    if arguments.token_file:
        try:
            with Path(arguments.token_file).open(encoding="utf-8", errors="replace") as file:
                return file.read(_TOKEN_LIMIT), f"--token-file {arguments.token_file}"
        except OSError as error:
            raise ConfigurationError(f"--token-file {arguments.token_file}: {error.strerror}.", hint="Check the file.") from error
    variable = config.take_token()
    return (variable, config.TOKEN_VARIABLE) if variable else None


def _asked(*, optional: bool) -> tuple[str, str]:
    if not sys.stdin or not sys.stdin.isatty():
        return (sys.stdin.read(_TOKEN_LIMIT) if sys.stdin else ""), "standard input"
    own = " (nothing: keep this node's own)" if optional else ""
    try:
        return getpass.getpass(f"Token of the mesh, as `meshnode token` prints it there{own}: "), "what was typed"
    except EOFError:
        return "", "what was typed"


def _check_may_leave(data_dir: DataDir, token: "Token | None", *, force: bool) -> None:
    """A node alone in the mesh that it made at its first start loses nothing by leaving it."""
    if token is None or force or not credentials.has_token(data_dir):
        return
    from meshnode import contacts
    from meshnode.identity import mesh_id_of

    kept = credentials.kept_token(data_dir)
    if kept is None or kept == token:
        return
    mesh = mesh_id_of(kept)
    if others := len(contacts.load(data_dir, mesh).peers):
        raise ConfigurationError(
            f"This node is in mesh {mesh.hex()} with {others} other node{'s' * (others > 1)}.",
            hint="--force makes it leave that mesh for the other one.",
        )


def _store(data_dir: DataDir, host: str | None, *, as_json: bool) -> int:
    from meshnode import contacts
    from meshnode.identity import mesh_id_of

    token = credentials.kept_token(data_dir)
    assert token is not None
    mesh = mesh_id_of(token)
    if host is not None:
        contacts.save(data_dir, contacts.load(data_dir, mesh).with_seed(host))
    start = f"meshnode up{api.data_dir_flag(data_dir.path)}"
    if as_json:
        print(json.dumps({"mesh": mesh.hex(), "running": False, "linked": []}))
    else:
        print(f"The token of mesh {mesh.hex()} is kept in {data_dir.path}. Start the node, which then joins it: {start}")
    return 0


def _join_now(data_dir: Path, host: str | None, *, as_json: bool) -> int:
    begun = time.monotonic()
    joined = json.loads(api.post("/mesh/v1/join", data_dir, {"peer": host}))
    if not as_json:
        print(f"This node is in mesh {joined['mesh']} now.", flush=True)
    report, linked = _wait_linked(data_dir, host, begun, quiet=as_json)
    took = time.monotonic() - begun
    if as_json:
        print(json.dumps({**joined, "running": True, "linked": [member.name for member in linked], "took_s": round(took, 2)}))
    elif linked:
        others = ", ".join(f"{member.name} at {member.addr}" for member in linked)
        print(f"Linked with {others} ({took:.1f} s). See the mesh: meshnode status{api.data_dir_flag(data_dir)}")
    else:
        from meshnode.search import solitude

        print("\n".join([*solitude(report.search), *(f"Health: {line}" for line in report.health)]))
        print("The node keeps trying.")
    return 0 if linked else 2


def _wait_linked(data_dir: Path, host: str | None, begun: float, *, quiet: bool) -> "tuple[Report, list[MemberLine]]":
    """Until some other node is linked: the one at `host`, if it was given and can be known by that address."""
    ticking = sys.stderr.isatty() and not quiet
    while True:
        report = fetch(data_dir)
        linked = [member for member in report.members if member.routable and member.id != report.node.id]
        waited = time.monotonic() - begun
        if linked or waited >= WAIT_S:
            if ticking:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            return report, linked
        if ticking:
            print(f"\rLooking for its nodes{f' at {host}' if host else ''}: {waited:.0f} s", end="", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)
