"""Remotes in the configuration file, as `[[remote]]` tables; the one place that may name files, variables and commands for keys.

[[remote]]
kind = "cluster"
name = "lab"
url = "https://api.example.com"
access_key = "AKIA..."
key_command = ["pass", "show", "lab"]     # or key_file, or key_env; for a router the API key
ca_file = "/etc/ssl/lab.pem"
"""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from meshnode.errors import ConfigurationError
from meshnode.remote import MAX_CA, MAX_REMOTES, Remote, checked

COMMAND_S = 30.0
"""A password store may ask its owner first."""
_MAX_KEY = 8192


def remotes(tables: object) -> tuple[Remote, ...]:
    """The remotes of `tables`, with their keys read. Raises ConfigurationError naming the remote."""
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigurationError("remote must be [[remote]] tables.", hint='Write: [[remote]], then kind = "router", name, url.')
    if len(tables) > MAX_REMOTES:
        raise ConfigurationError(f"More than {MAX_REMOTES} remotes cannot be given.")
    found = tuple(map(_remote, tables))
    names = [remote.name for remote in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"Two remotes are called {twice!r}.", hint="Give each a name of its own.")
    return found


def _remote(table: Mapping[str, Any]) -> Remote:
    place = f"[[remote]] {str(table.get('name', '?'))[:64]!r}"
    values = dict(table)
    if "key" in values or "ca" in values:
        raise ConfigurationError(f"{place}: keys do not belong here.", hint="Use key_file, key_env, key_command or ca_file.")
    sources: dict[str, Callable[[Any], str]] = {"key_file": _file, "key_env": _variable, "key_command": _command}
    given = [name for name in sources if name in values]
    if len(given) > 1:
        raise ConfigurationError(f"{place}: {' and '.join(given)} are both given.", hint="Give one of them.")
    try:
        for name in given:
            values["key"] = sources[name](values.pop(name)).strip()
        if "ca_file" in values:
            values["ca"] = _file(values.pop("ca_file"), MAX_CA + 1)
        return checked(msgspec.convert(values, Remote))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{place}: {error}.") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error.message}", hint=error.hint) from error


def _file(path: object, limit: int = _MAX_KEY) -> str:
    try:
        with Path(os.path.expanduser(str(path))).open(encoding="utf-8", errors="replace") as file:
            return file.read(limit)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}.", hint="Check the file.") from error


def _variable(name: object) -> str:
    value = os.environ.get(str(name))
    if not value:
        raise ConfigurationError(f"There is no variable {name} in the environment.")
    return value


def _command(command: object) -> str:
    """Run as it stands, without a shell."""
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise ConfigurationError('key_command must be a list of words, as ["pass", "show", "lab"].')
    try:
        # The operator's own words, from the operator's own file.
        ran = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=COMMAND_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else f"no end within {COMMAND_S:.0f} s"
        raise ConfigurationError(f"key_command {command[0]!r}: {why}.") from None
    if ran.returncode != 0:
        raise ConfigurationError(f"key_command {command[0]!r} ended with {ran.returncode}.", hint="Run it by hand to see why.")
    return ran.stdout[:_MAX_KEY].decode(errors="replace")
