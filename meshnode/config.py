"""Settings: defaults, then the TOML file, then MESHNODE_* variables, then flags; each later one wins.

`OPTIONS` is the one table: a row gives the flag, the variable, the key of the file and the line in `--help` and in the README. A
new setting is a row here and a field of `Settings`.
"""

import os
import re
import socket
import sys
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from meshnode.address import API_PORT, MESH_PORT, Address, parse
from meshnode.errors import ConfigurationError
from meshnode.names import is_name

SECRET_VARIABLES = frozenset({"MESHNODE_TOKEN"})
"""Read by the command that needs them, never kept in `Settings`, and taken out of the environment before a child sees it."""


class Kind(StrEnum):
    TEXT = "text"
    NUMBER = "number"
    SWITCH = "switch"
    LIST = "list"


class Option(NamedTuple):
    """One setting. `key` is its name in the file; the flag and the variable follow from it."""

    key: str
    kind: Kind
    metavar: str
    doc: str

    @property
    def flag(self) -> str:
        return "--no-worker" if self.key == "worker" else f"--{self.key.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"MESHNODE_{self.key.upper()}"


OPTIONS = (
    Option("name", Kind.TEXT, "NAME", "this node's name in the mesh (default: the host's name)"),
    Option("model", Kind.LIST, "[ALIAS=]PATH", "serve this GGUF file; repeatable (default: the demo model)"),
    Option("worker", Kind.SWITCH, "", "serve no model, only ask others"),
    Option("slots", Kind.NUMBER, "N", "requests that one model answers at a time (default: 4)"),
    Option("context_length", Kind.NUMBER, "TOKENS", "context of one request (default: the model's, at most 4096)"),
    Option("api", Kind.TEXT, "HOST:PORT", f"where the HTTP API listens (default: 127.0.0.1:{API_PORT})"),
    Option("insecure_api", Kind.SWITCH, "", "allow --api on an address that others can reach, without a key"),
    Option(
        "mesh",
        Kind.LIST,
        "HOST:PORT",
        "where other nodes reach this one; repeatable (default: port 4850)",
    ),
    Option("peer", Kind.LIST, "HOST[:PORT]", "a node of the mesh to link with; repeatable"),
    Option("advertise", Kind.LIST, "HOST[:PORT]", "the addresses to tell other nodes, instead of those found"),
    Option("token_file", Kind.TEXT, "PATH", "file with the mesh's token (also: MESHNODE_TOKEN)"),
    Option("data_dir", Kind.TEXT, "PATH", "this node's keys, token and state"),
    Option("log_level", Kind.TEXT, "LEVEL", "debug, info, warning or error (default: info)"),
    Option("log_format", Kind.TEXT, "FORMAT", "text or json (default: text)"),
)
CONFIG = Option(
    "config", Kind.TEXT, "PATH", "TOML file with settings (default: meshnode/config.toml in the user's configuration)"
)
_BY_KEY = {option.key: option for option in OPTIONS}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one node was told. Paths are absolute, addresses parsed, everything checked."""

    name: str
    """Shown to people only; the id is the identity. A guess from the host's name is better than a random word."""
    model: tuple[tuple[str, Path], ...] = ()
    """(name, path); none means the demo model, so that the first run answers without a download."""
    worker: bool = True
    slots: int = 4
    """1 to 64. More slots share the same speed; 4 suits one person with a few tools."""
    context_length: int | None = None
    """At least 256. Every slot pays for it in memory, hence not the model's own limit, which may be 128 k."""
    api: Address = Address("127.0.0.1", API_PORT)
    insecure_api: bool = False
    mesh: tuple[Address, ...] = (Address("0.0.0.0", MESH_PORT), Address("::", MESH_PORT))  # noqa: S104 - mutual TLS guards it (D5)
    peer: tuple[Address, ...] = ()
    advertise: tuple[Address, ...] = ()
    token_file: Path | None = None
    data_dir: Path
    log_level: str = "info"
    log_format: str = "text"


def load(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """The settings in force. `flags` holds what was given (None or absent: not given). Raises ConfigurationError."""
    path = flags.get(CONFIG.key) or environment.get(CONFIG.variable)
    values = _from_file(Path(path)) if path else _from_default_file(environment)
    values |= _from_environment(environment)
    values |= {key: value for key, value in flags.items() if key in _BY_KEY and value is not None}
    return _checked(values, environment)


def data_dir(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    """Only where the data directory is: what the commands about a running node need."""
    return (
        Path(flags.get("data_dir") or environment.get("MESHNODE_DATA_DIR") or _user_directory("data", environment))
        .expanduser()
        .absolute()
    )


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A line for each MESHNODE_* variable that nothing reads, with the nearest that something does."""
    known = {option.variable for option in (*OPTIONS, CONFIG)} | SECRET_VARIABLES
    stray = sorted(name for name in environment if name.startswith("MESHNODE_") and name not in known)
    return [f"{name} is no setting of meshnode.{_nearest(name, known)}" for name in stray]


def _user_directory(kind: str, environment: Mapping[str, str]) -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "meshnode"
    base = environment.get(f"XDG_{kind.upper()}_HOME")
    return (Path(base) if base else Path.home() / {"data": ".local/share", "config": ".config"}[kind]) / "meshnode"


def _from_default_file(environment: Mapping[str, str]) -> dict[str, Any]:
    path = _user_directory("config", environment) / "config.toml"
    return _from_file(path) if path.exists() else {}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {error.strerror}.", hint="Give the path of a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.") from error
    for key, value in values.items():
        if key not in _BY_KEY:
            raise ConfigurationError(f"{path}: unknown key {key!r}.{_nearest(key, _BY_KEY)}")
        if not _fits(value, _BY_KEY[key].kind):
            raise ConfigurationError(f"{path}: {key} must be a {_BY_KEY[key].kind}, not {value!r}.")
    return values


def _fits(value: object, kind: Kind) -> bool:
    match kind:
        case Kind.TEXT:
            return isinstance(value, str)
        case Kind.NUMBER:
            return isinstance(value, int) and not isinstance(value, bool)
        case Kind.SWITCH:
            return isinstance(value, bool)
        case Kind.LIST:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    given = {option: environment[option.variable] for option in OPTIONS if environment.get(option.variable)}
    return {option.key: _from_text(option, text) for option, text in given.items()}


def _from_text(option: Option, text: str) -> Any:
    match option.kind:
        case Kind.TEXT:
            return text
        case Kind.LIST:
            return [item.strip() for item in text.split(",") if item.strip()]
        case Kind.NUMBER if re.fullmatch(r"\d{1,9}", text):
            return int(text)
        case Kind.SWITCH if text.lower() in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
            return text.lower() in {"1", "true", "yes", "on"}
    raise ConfigurationError(f"{option.variable}={text!r} must be a {option.kind}.", hint="Switches are true or false.")


def _nearest(name: str, known: Mapping[str, Any] | set[str] | frozenset[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known are: {', '.join(sorted(known))}."


def _checked(values: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    checked: dict[str, Any] = {key: values[key] for key in ("worker", "insecure_api") if key in values}
    checked["name"] = _node_name(values.get("name"))
    checked["data_dir"] = data_dir(values, environment)
    checked |= {key: _addresses(values[key], key) for key in ("mesh", "peer", "advertise") if key in values}
    if "model" in values:
        checked["model"] = tuple(_model(item) for item in values["model"])
    if "token_file" in values:
        checked["token_file"] = _existing(values["token_file"], "--token-file")
    checked |= _bounded(values, "slots", 1, 64) | _bounded(values, "context_length", 256, 10_000_000)
    checked |= _one_of(values, "log_level", ("debug", "info", "warning", "error")) | _one_of(
        values, "log_format", ("text", "json")
    )
    if "api" in values:
        checked["api"] = parse(values["api"], flag="--api", default_port=API_PORT)
        _refuse_open_api(checked["api"], insecure=checked.get("insecure_api", False))
    return Settings(**checked)


def _refuse_open_api(address: Address, *, insecure: bool) -> None:
    """Every rival that opened its API by default was reported as vulnerable (design D5, security rule 12)."""
    if not address.is_loopback and not insecure:
        raise ConfigurationError(
            f"--api {address} can be reached by other machines, and the API asks for no key.",
            hint=f"Use --api 127.0.0.1:{address.port}, or add --insecure-api if everyone on that network may use it.",
        )


def _node_name(given: str | None) -> str:
    if given is not None and not is_name(given):
        raise ConfigurationError(
            f"--name {given!r} cannot be a node's name.", hint="Use up to 128 letters, digits and . _ : / @ -"
        )
    return given or _fit(socket.gethostname()) or "node"


def _fit(text: str) -> str:
    """`text` made into a name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:64]


def _addresses(texts: list[str], key: str) -> tuple[Address, ...]:
    flag = _BY_KEY[key].flag
    return tuple(parse(text, flag=flag, default_port=None if key == "mesh" else MESH_PORT) for text in texts)


def _model(item: str) -> tuple[str, Path]:
    """ALIAS=PATH, unless the part before = looks like a path itself."""
    alias, equals, path = item.partition("=")
    if not equals or "/" in alias:
        alias, path = "", item
    if alias and not is_name(alias):
        raise ConfigurationError(
            f"--model {item!r}: {alias!r} cannot be a model's name.", hint="Use letters, digits and . _ : / @ -"
        )
    return alias or _fit(Path(path).stem) or "model", _existing(path, "--model")


def _existing(text: str, flag: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise ConfigurationError(f"{flag} {text}: there is no such file.", hint="Check the path." if path.parent.is_dir() else "")
    return path


def _bounded(values: Mapping[str, Any], key: str, low: int, high: int) -> dict[str, int]:
    if key not in values:
        return {}
    if not low <= values[key] <= high:
        raise ConfigurationError(f"{_BY_KEY[key].flag} {values[key]} is out of range.", hint=f"Use {low} to {high}.")
    return {key: values[key]}


def _one_of(values: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> dict[str, str]:
    if key not in values:
        return {}
    if values[key] not in allowed:
        raise ConfigurationError(f"{_BY_KEY[key].flag} {values[key]!r} is unknown.", hint=f"Use one of: {', '.join(allowed)}.")
    return {key: values[key]}


def take_secret(name: str) -> str | None:
    """The value of a secret variable, which is removed from the environment, so that no child process inherits it."""
    return os.environ.pop(name, None)
