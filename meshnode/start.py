"""What the command line hands to the node, and what the node tells it back."""

from collections.abc import Callable
from dataclasses import dataclass

from meshnode.config import Settings
from meshnode.datadir import DataDir
from meshnode.identity import Token


@dataclass(frozen=True, kw_only=True)
class Running:
    """The ports are bound and the API answers. Addresses are HOST:PORT."""

    name: str
    node_id: str
    mesh_id: str
    api: str
    mesh: tuple[str, ...]
    ollama: str = ""
    """Where the API listens as well, as Ollama would; empty: nowhere."""
    advertised: tuple[str, ...] = ()
    """Where other machines reach `mesh`, as this node tells them."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A node's inputs; `data_dir` is open and locked. `announce` is called once."""

    settings: Settings
    data_dir: DataDir
    token: Token
    announce: Callable[[Running], None]
