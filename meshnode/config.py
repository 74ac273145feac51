"""Settings: defaults, then the TOML file, then MESHNODE_* variables, then flags; each later one wins.

`OPTIONS` is the one table: a row gives the flag, the variable, the key of the file and the line in `--help` and in the README. A
new setting is a row here and a field of `Settings`.
"""

import os
import re
import socket
import sys
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from meshnode.address import API_PORT, MESH_PORT, OLLAMA_PORT, Address, parse
from meshnode.errors import ConfigurationError
from meshnode.names import fit, is_name
from meshnode.remote import Remote

REMOTES = "remote"
TOKEN_VARIABLE = "MESHNODE_TOKEN"  # noqa: S105 - a variable's name
"""A secret: never kept in `Settings`, and `take_token` takes it out of the environment before a child process can inherit it."""


_ON_BY_DEFAULT = frozenset({"worker", "mdns", "kv_unified"})
"""Switches whose flag turns them off."""


ROUTING = ("estimate", "random", "round-robin", "least-connections", "power-of-two")
"""The policies of `routing/policy.py`, which is above this module; a test holds the two alike."""


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
        return f"--{'no-' * (self.key in _ON_BY_DEFAULT)}{self.key.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"MESHNODE_{self.key.upper()}"


OPTIONS = (
    Option("name", Kind.TEXT, "NAME", "this node's name in the mesh (default: the host's name)"),
    Option("model", Kind.LIST, "[ALIAS=]PATH", "serve this GGUF file; repeatable (default: the demo model)"),
    Option("models_dir", Kind.LIST, "DIR", "offer every GGUF file in and below this folder, loaded when asked for; repeatable"),
    Option("keep_alive", Kind.NUMBER, "SECONDS", "unload a model of a folder when unused for so long (default: 300; 0: never)"),
    Option("worker", Kind.SWITCH, "", "serve no model, only ask others"),
    Option("slots", Kind.NUMBER, "N", "requests that one model answers at a time (default: 4)"),
    Option(
        "context_length",
        Kind.NUMBER,
        "TOKENS",
        "context of a slot (default: the model's, at most 4096); one request may use that of all slots, up to the model's",
    ),
    Option(
        "kv_unified",
        Kind.SWITCH,
        "",
        "give each slot its own part of the KV cache: faster with many requests, but none is longer or shared",
    ),
    Option("kv_type", Kind.TEXT, "TYPE", "precision of the KV cache: f16, q8_0 (half the memory) or q4_0 (default: f16)"),
    Option("flash_attention", Kind.TEXT, "WHEN", "auto, on or off (default: auto)"),
    Option("gpu_layers", Kind.NUMBER, "N", "layers of a model on the GPU, if there is one (default: all)"),
    Option(
        "routing",
        Kind.TEXT,
        "POLICY",
        "who answers a request: estimate, random, round-robin, least-connections or power-of-two (default: estimate)",
    ),
    Option("api", Kind.TEXT, "HOST:PORT", f"where the HTTP API listens (default: 127.0.0.1:{API_PORT})"),
    Option("as_ollama", Kind.SWITCH, "", f"listen on port {OLLAMA_PORT} too, where Ollama would, when that is free"),
    Option("insecure_api", Kind.SWITCH, "", "allow --api on an address that others can reach, without a key"),
    Option(
        "mesh",
        Kind.LIST,
        "HOST:PORT",
        "where other nodes reach this one; repeatable (default: port 4850)",
    ),
    Option("local_only", Kind.SWITCH, "", "send no request of this node's clients to remote services (clusters, routers)"),
    Option("peer", Kind.LIST, "HOST[:PORT]", "a node of the mesh to link with; repeatable"),
    Option("mdns", Kind.SWITCH, "", "neither announce this node on the network nor look for others there"),
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
    """1 to 128 of letters, digits and . _ : / @ -. Shown to people only; the id is the identity. The host's name, made fit, says
    more to a person than a random word."""
    model: tuple[tuple[str, Path], ...] = ()
    """(name, path); none means the demo model, so that the first run answers without a download."""
    models_dir: tuple[Path, ...] = ()
    """Only what the operator names is ever loaded (security rule 17)."""
    keep_alive: int = 300
    """Long enough for a pause in a conversation, short enough to give a person's memory back. What others need sooner, they get
    sooner. Models of `model` stay loaded."""
    worker: bool = True
    """False for a node that only asks, such as a laptop on battery."""
    slots: int = 4
    """1 to 64. More slots share the same speed; 4 suits one person with a few tools."""
    context_length: int | None = None
    """At least 256. Every slot pays for it in memory, hence not the model's own limit, which may be 128 k. What all slots have
    together is one pool, from which a request takes what it needs, up to the model's own limit."""
    kv_unified: bool = True
    """One pool suits a few users: any mix of lengths, and what begins alike is kept once. In parts, decoding at 8 streams or more
    is 15 to 25 % faster, a request has one slot's context, and running ones share nothing."""
    kv_type: str = "f16"
    """Exact, and as fast as any. q8_0 is hardly worse and makes room for twice the context; q4_0 costs quality."""
    flash_attention: str = "auto"
    """llama.cpp knows for which models and devices it is right."""
    gpu_layers: int | None = None
    """None: all, which is what a GPU is there for. Fewer make room on it, 0 leaves it alone."""
    routing: str = "estimate"
    """Whoever is about to be done first, by what all nodes measured; the others are there for comparison."""
    api: Address = Address("127.0.0.1", API_PORT)
    """Loopback, which the kernel guards; elsewhere it takes a key (`meshnode key new`), which is looked for at the start. 4860 is
    far from the ports that other model servers take; 0 takes any free one."""
    as_ollama: bool = False
    """Off: who has Ollama as well does not expect to be answered by another program there. On the same host as `api`."""
    insecure_api: bool = False
    """Off, for every rival that opened its API by default was reported as vulnerable."""
    mesh: tuple[Address, ...] = (Address("0.0.0.0", MESH_PORT), Address("::", MESH_PORT))  # noqa: S104 - mutual TLS guards it (D5)
    """All interfaces: a mesh port that the LAN cannot reach is of no use."""
    local_only: bool = False
    """Off: who asks for a model that only a remote has, asks for the remote. Clients can keep a request at home by a header."""
    remote: tuple[Remote, ...] = ()
    """From the file alone, as `[[remote]]` tables; `meshnode add` keeps others in the data directory."""
    peer: tuple[Address, ...] = ()
    """Seeds. One is enough to join; more survive the absence of one."""
    mdns: bool = True
    """Off for a network where nobody should learn that a mesh exists; then nodes are found by address alone."""
    advertise: tuple[Address, ...] = ()
    """None: the addresses of this machine. Needed behind a forwarded port or in a container."""
    token_file: Path | None = None
    """A file, since arguments can be read by every user of the machine."""
    data_dir: Path
    """Where the user's programs keep their data, so that no configuration is needed; one node per directory."""
    log_level: str = "info"
    """At info, a line for each request and each change of the mesh."""
    log_format: str = "text"
    """For people; json for a log collector."""


def load(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """The settings in force. `flags` holds what was given (None or absent: not given). Raises ConfigurationError."""
    return _checked(_given(flags, environment), environment)


def data_dir(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    """Only where the data directory is: what the commands about a running node need."""
    return _data_dir(_given(flags, environment), environment)


def _given(flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What somebody set, by key; the later source wins."""
    path = flags.get(CONFIG.key) or environment.get(CONFIG.variable)
    values = _from_file(_path(path)) if path else _from_default_file(environment)
    values |= _from_environment(environment)
    return values | {key: value for key, value in flags.items() if key in _BY_KEY and value is not None}


def _data_dir(values: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    if given := values.get("data_dir"):
        return _path(given)
    if default := _user_directory("data", environment):
        return default
    raise ConfigurationError("This user has no home directory to keep the node's data in.", hint="Give one with --data-dir.")


def _path(text: str) -> Path:
    """Absolute, and with ~ replaced where the shell did not."""
    return Path(os.path.expanduser(text)).absolute()


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A line for each MESHNODE_* variable that nothing reads, with the nearest that something does."""
    known = {option.variable for option in (*OPTIONS, CONFIG)} | {TOKEN_VARIABLE}
    stray = sorted(name for name in environment if name.startswith("MESHNODE_") and name not in known)
    return [f"{name} is no setting of meshnode.{_nearest(name, known)}" for name in stray]


def _user_directory(kind: str, environment: Mapping[str, str]) -> Path | None:
    """Ours for data or config, by the platform's custom; None for a user without a home, as in some containers."""
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "meshnode"
    base = Path(environment.get(f"XDG_{kind.upper()}_HOME", ""))
    return (base if base.is_absolute() else home / {"data": ".local/share", "config": ".config"}[kind]) / "meshnode"


def _from_default_file(environment: Mapping[str, str]) -> dict[str, Any]:
    directory = _user_directory("config", environment)
    return _from_file(directory / "config.toml") if directory and os.path.isfile(directory / "config.toml") else {}


def _from_file(path: Path) -> dict[str, Any]:
    import tomllib  # not for nothing: most starts read no file

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {error.strerror}.", hint="Give the path of a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.") from error
    for key, value in values.items():
        if key == REMOTES:
            continue
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
        case Kind.NUMBER if re.fullmatch("[0-9]{1,9}", text):
            return int(text)
        case Kind.SWITCH if text.lower() in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
            return text.lower() in {"1", "true", "yes", "on"}
    raise ConfigurationError(f"{option.variable}={text!r} must be a {option.kind}.", hint="Switches are true or false.")


def _nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known are: {', '.join(sorted(known))}."


def _checked(values: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    switches = ("worker", "mdns", "as_ollama", "insecure_api", "kv_unified", "local_only")
    checked: dict[str, Any] = {key: values[key] for key in switches if key in values}
    if REMOTES in values:
        from meshnode import remote_file  # which runs commands, and few need it

        checked["remote"] = remote_file.remotes(values[REMOTES])
    checked["name"] = _node_name(values.get("name"))
    checked["data_dir"] = _data_dir(values, environment)
    checked |= {key: _addresses(values[key], key) for key in ("mesh", "peer", "advertise") if key in values}
    if "model" in values:
        checked["model"] = _models(values["model"])
    checked["models_dir"] = tuple(map(_folder, values.get("models_dir", ())))
    if "token_file" in values:
        checked["token_file"] = _readable(values["token_file"], "--token-file")
    checked |= _bounded(values, "slots", 1, 64) | _bounded(values, "context_length", 256, 10_000_000)
    checked |= _bounded(values, "keep_alive", 0, 10_000_000) | _bounded(values, "gpu_layers", 0, 10_000)
    checked |= _one_of(values, "kv_type", ("f16", "q8_0", "q4_0")) | _one_of(values, "flash_attention", ("auto", "on", "off"))
    if checked.get("kv_type", "f16") != "f16" and checked.get("flash_attention") == "off":
        raise ConfigurationError(
            f"--kv-type {checked['kv_type']} needs flash attention.", hint="Leave out --flash-attention off, or use f16."
        )
    checked |= _one_of(values, "log_level", ("debug", "info", "warning", "error")) | _one_of(
        values, "log_format", ("text", "json")
    )
    checked |= _one_of(values, "routing", ROUTING)
    if "api" in values:
        checked["api"] = parse(values["api"], flag="--api", default_port=API_PORT)
    if "model" in checked and not checked.get("worker", True):
        raise ConfigurationError(
            "--model names what to serve, and --no-worker says to serve nothing.", hint="Leave out one of them."
        )
    return Settings(**checked)


def _node_name(given: str | None) -> str:
    if given is not None and not is_name(given):
        raise ConfigurationError(
            f"--name {given!r} cannot be a node's name.", hint="Use up to 128 letters, digits and . _ : / @ -"
        )
    return given or fit(socket.gethostname()) or "node"


def _addresses(texts: list[str], key: str) -> tuple[Address, ...]:
    flag = _BY_KEY[key].flag
    return tuple(parse(text, flag=flag, default_port=None if key == "mesh" else MESH_PORT) for text in texts)


def _models(items: list[str]) -> tuple[tuple[str, Path], ...]:
    models = tuple(_model(item) for item in items)
    names = [name for name, _ in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"--model: two models are called {twice!r}.", hint="Name one: --model NAME=PATH")
    return models


def _model(item: str) -> tuple[str, Path]:
    """ALIAS=PATH, unless the whole is a file, whose name has an = in it."""
    alias, equals, path = item.partition("=")
    if not equals or os.path.isfile(_path(item)):
        alias, path = "", item
    if alias and not is_name(alias):
        raise ConfigurationError(
            f"--model {item!r}: {alias!r} cannot be a model's name.", hint="Use letters, digits and . _ : / @ -"
        )
    return alias or fit(Path(path).stem) or "model", _readable(path, "--model")


def _readable(text: str, flag: str) -> Path:
    """A file that this user may read; a pipe is one too, as in `--token-file <(...)`."""
    path = _path(text)
    if os.path.isdir(path):
        raise ConfigurationError(f"{flag} {text} is a directory.", hint="Give the path of a file.")
    if not os.path.exists(path):
        raise ConfigurationError(f"{flag} {text}: there is no such file.", hint="Check the path.")
    if not os.access(path, os.R_OK):
        raise ConfigurationError(f"{flag} {text}: this user may not read it.", hint=f"See: ls -l {path}")
    return path


def _folder(text: str) -> Path:
    path = _path(text)
    if not os.path.isdir(path):
        raise ConfigurationError(f"--models-dir {text}: there is no such folder.", hint="Check the path.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigurationError(f"--models-dir {text}: this user may not read it.", hint=f"See: ls -ld {path}")
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


def take_token() -> str | None:
    """The token in the environment, which is removed from there, so that no child process inherits it."""
    return os.environ.pop(TOKEN_VARIABLE, None) or None
