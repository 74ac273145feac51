"""What the data directory holds of who this node is, and of whom it lets in: the mesh's token, the node's key, the API keys.

The cryptography behind them is imported when one is used: most commands need neither.
"""

from typing import TYPE_CHECKING

import msgspec

from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError
from meshnode.keys import Key, KeyRing

if TYPE_CHECKING:
    from meshnode.identity import Token

_TOKEN = "token"  # noqa: S105 - a file's name
_KEY = "node.key"
_API_KEYS = "keys.json"


def kept_token(data_dir: DataDir) -> "Token | None":
    """The token of the mesh that this directory's node belongs to; None before there is one."""
    content = data_dir.read(_TOKEN)
    return None if content is None else parsed_token(content.decode(errors="replace"), str(data_dir.path / _TOKEN))


def has_token(data_dir: DataDir) -> bool:
    """One that cannot be read counts."""
    return data_dir.read(_TOKEN) is not None


def keep_token(data_dir: DataDir, token: "Token") -> None:
    data_dir.write(_TOKEN, f"{token.text()}\n".encode())


def keep_new_token(data_dir: DataDir) -> "Token":
    from meshnode.identity import Token

    token = Token.new()
    keep_token(data_dir, token)
    return token


def parsed_token(text: str, source: str) -> "Token":
    """The token in `text`. Raises ConfigurationError naming `source`, for the text itself is never repeated."""
    from meshnode.identity import Token

    try:
        return Token.parse(text.strip())
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error.message}", hint=error.hint) from error


def node_key(data_dir: DataDir) -> bytes:
    """The node's long-lived key, made on the first run."""
    return data_dir.read(_KEY) or new_node_key(data_dir)


def new_node_key(data_dir: DataDir) -> bytes:
    """A new identity in place of the one that is there, if any."""
    from meshnode import identity

    key = identity.new_node_key()
    data_dir.write(_KEY, key)
    return key


def api_keys(data_dir: DataDir) -> KeyRing:
    """Those of this node. Raises ConfigurationError when the file is damaged, or others could read it."""
    content = data_dir.read(_API_KEYS)
    try:
        keys = msgspec.json.decode(content or b"[]", type=tuple[Key, ...])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        hint = "Move it away, and make new keys: meshnode key new"
        raise ConfigurationError(f"{data_dir.path / _API_KEYS} is damaged.", hint=hint) from error
    return KeyRing(keys, keep=lambda content: data_dir.write(_API_KEYS, content))
