"""A client of the running node's HTTP API, found through the run file."""

import http.client
from pathlib import Path

from meshnode.address import parse
from meshnode.datadir import DataDir
from meshnode.errors import ConfigurationError

TIMEOUT_S = 5.0


class NotRunningError(Exception):
    """No node answers for this data directory; the text says how to start one."""


def get(path: str, data_dir: Path) -> bytes:
    """The body of an admin request. Raises NotRunningError, or ConfigurationError when the node refuses."""
    run = DataDir.open(data_dir).read_run() if data_dir.exists() else None
    if run is None:
        raise NotRunningError(f"No node runs on {data_dir}. Start it with: meshnode up{_flag(data_dir)}")
    address = parse(run["api"], flag="api")
    connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {run['secret']}"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        why = f"The node with pid {run['pid']} does not answer on {address} ({error or type(error).__name__})."
        raise NotRunningError(f"{why} See its log in {data_dir / 'logs'}.") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise ConfigurationError(f"The node on {address} answered {answer.status}: {body[:300].decode(errors='replace')}")
    return body


def _flag(data_dir: Path) -> str:
    from meshnode import config

    return "" if data_dir == config.data_dir({}, {}) else f" --data-dir {data_dir}"
