"""A client of the running node's HTTP API, found through the run file."""

import json
import os
import shlex
from pathlib import Path

from meshnode import config
from meshnode.address import Address, parse
from meshnode.datadir import DataDir, RunFile
from meshnode.errors import ConfigurationError, MeshnodeError
from meshnode.names import printable

TIMEOUT_S = 5.0
"""Of connecting and of each wait for bytes: a node answers in milliseconds or is stuck."""


class NotRunning(Exception):
    """No node answers for this data directory; the text says what to do."""


def get(path: str, data_dir: Path) -> bytes:
    """The body of an admin request. Raises NotRunning, or MeshnodeError when the node refuses."""
    return _request("GET", path, data_dir)


def post(path: str, data_dir: Path, body: object, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """Likewise, with `body` as JSON."""
    return _request("POST", path, data_dir, body=json.dumps(body).encode(), timeout_s=timeout_s)


def delete(path: str, data_dir: Path) -> bytes:
    """Likewise."""
    return _request("DELETE", path, data_dir)


def running(data_dir: Path) -> RunFile | None:
    """The node that runs there."""
    return DataDir.open(data_dir).read_run() if os.path.isdir(data_dir) else None


def _request(method: str, path: str, data_dir: Path, *, body: bytes | None = None, timeout_s: float = TIMEOUT_S) -> bytes:
    run = running(data_dir)
    if run is None:
        start = f"meshnode up{data_dir_flag(data_dir)}"
        raise NotRunning(f"Cannot reach meshnode: no node runs on {data_dir}. Start it with: {start}")
    status, answer = _ask(run, data_dir, method=method, path=path, body=body, timeout_s=timeout_s)
    if status != 200:
        raise MeshnodeError(f"The node on {run.api} answered {status}: {_said(answer)}")
    return answer


def _said(answer: bytes) -> str:
    """The message of an error object, or whatever came."""
    try:
        text = str(json.loads(answer)["error"]["message"])
    except (ValueError, TypeError, LookupError):
        text = answer.decode(errors="replace")
    return printable(text, 300)


def _ask(run: RunFile, data_dir: Path, *, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    import http.client

    address = reachable(parse(run.api, flag="api"))
    connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers={"Authorization": f"Bearer {run.secret}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        why = f"Cannot reach meshnode on {address}, though pid {run.pid} runs ({error or type(error).__name__})."
        raise NotRunning(f"{why} See its log in {data_dir / 'logs'}") from error
    finally:
        connection.close()


def reachable(bound: Address) -> Address:
    """Where clients on this machine find it. Bound to every address means to loopback too."""
    return Address("::1" if ":" in bound.host else "127.0.0.1", bound.port) if bound.is_wildcard else bound


def data_dir_flag(data_dir: Path) -> str:
    """What to add to a command about this directory: nothing when the command finds it by itself."""
    try:
        found = config.data_dir({}, os.environ)
    except ConfigurationError:
        found = None
    return "" if data_dir == found else f" --data-dir {shlex.quote(str(data_dir))}"
