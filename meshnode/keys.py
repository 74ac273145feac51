"""API keys: who may ask this node from elsewhere, and how much. They are one node's, and never gossiped (security rule 12).

A key is `mk_<id>_<secret>`. Its id is no secret: logs show it, and it travels with a forwarded request. The disk holds a
hash, and a plain SHA-256 is enough for one: nobody guesses 32 random bytes, so there is nothing that a slow hash would slow down.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from meshnode.errors import ConfigurationError

PREFIX = "mk_"
MAX_KEYS = 1000
"""Of one node: the file is read and written as a whole. A guess."""
_ID_BYTES, _SECRET_BYTES = 5, 32

PerMinute = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class Scope(StrEnum):
    """What a key is good for; an admin may use the models as well."""

    USE = "use"
    ADMIN = "admin"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """All of a key but its secret. `created` is in Unix seconds."""

    id: Annotated[str, Meta(pattern="^[a-z2-7]{8}$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the whole key, in hex."""
    scope: Scope = Scope.USE
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    """Of prompts and answers together."""
    created: int = 0

    def matches(self, text: str) -> bool:
        """In a time that tells nothing of how near a wrong key was."""
        return hmac.compare_digest(self.sha256, _hash(text))


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new key shall be good for. No limit: as much as the node can do."""

    scope: Scope = Scope.USE
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None


def shown(key: Key) -> dict[str, object]:
    """All that is told of a key: not even its hash."""
    return {
        "id": key.id,
        "scope": key.scope.value,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "created": key.created,
    }


class KeyRing:
    """The keys of one node, in memory and on disk. Only one process may change them: the node, or a command while none runs."""

    def __init__(self, keys: tuple[Key, ...] = (), *, keep: Callable[[bytes], None] = lambda _: None) -> None:
        self._keys = {key.id: key for key in keys}
        self._keep = keep

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        """The oldest first."""
        return iter(tuple(self._keys.values()))

    def new(self, wanted: Wanted, *, now: float) -> tuple[Key, str]:
        """A new key, and the text that its holder shows, which nobody can tell again. `now` is in Unix seconds.

        Raises ConfigurationError when there are too many, or the disk does not take it.
        """
        if len(self) >= MAX_KEYS:
            raise ConfigurationError(f"This node has {MAX_KEYS} keys, which is the most.", hint="Revoke those that nobody uses.")
        id = _word(_ID_BYTES)
        while id in self._keys:
            id = _word(_ID_BYTES)
        text = f"{PREFIX}{id}_{_word(_SECRET_BYTES)}"
        key = Key(
            id=id,
            sha256=_hash(text),
            scope=wanted.scope,
            requests_per_minute=wanted.requests_per_minute,
            tokens_per_minute=wanted.tokens_per_minute,
            created=int(now),
        )
        self._replace({**self._keys, id: key})
        return key, text

    def revoke(self, id: str) -> Key | None:
        """The key that is good for nothing from now on; None without one of that id."""
        key = self._keys.get(id)
        if key is not None:
            self._replace({other.id: other for other in self if other.id != id})
        return key

    def find(self, text: str) -> Key | None:
        """The key that `text`, whatever a client sent, is; None when it is none of ours."""
        prefix, _, rest = text.partition("_")
        key = self._keys.get(rest.partition("_")[0]) if f"{prefix}_" == PREFIX else None
        return key if key is not None and key.matches(text) else None

    def _replace(self, keys: dict[str, Key]) -> None:
        """The disk first: what cannot be written is not so."""
        self._keep(msgspec.json.format(msgspec.json.encode(tuple(keys.values())), indent=1))
        self._keys = keys


def _word(size: int) -> str:
    """That many random bytes, as letters and digits that survive any case, shell and URL."""
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
