"""What the command line hands to the node, and what the node tells it back."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def run_file(running: Running, secret: str) -> dict[str, Any]:
    """What the commands need to find this node; the secret makes its reader an admin."""
    return {
        "pid": os.getpid(),
        "name": running.name,
        "node_id": running.node_id,
        "mesh_id": running.mesh_id,
        "api": running.api,
        "mesh": list(running.mesh),
        "secret": secret,
        "started": time.time(),
    }
