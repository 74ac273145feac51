"""The configuration files of managers and app proxy, as text."""

import json
from pathlib import Path
from typing import NamedTuple

API_SECRET = "lab-appproxy-api-secret"
_TRACING = '[otel]\nenabled = false\nlog-level = "INFO"\nendpoint = "http://127.0.0.1:9"\n'


class ManagerPlace(NamedTuple):
    """Where one manager finds its parts. `database` is its name, also that of its etcd namespace."""

    database: str
    directory: Path
    port: int
    internal_port: int | None
    monitor_port: int
    etcd_port: int
    postgres_port: int


def manager_toml(place: ManagerPlace) -> str:
    internal = f'internal-addr = {{ host = "127.0.0.1", port = {place.internal_port} }}' if place.internal_port else ""
    tail = f"{_TRACING}[pyroscope]\nenabled = false\n" if place.internal_port else ""
    return f"""[etcd]
namespace = "{place.database}"
addr = {{ host = "127.0.0.1", port = {place.etcd_port} }}
user = ""
password = ""
[db]
type = "postgresql"
addr = {{ host = "127.0.0.1", port = {place.postgres_port} }}
name = "{place.database}"
user = "postgres"
password = "unused"
[manager]
num-proc = 1
service-addr = {{ host = "127.0.0.1", port = {place.port} }}
{internal}
rpc-auth-manager-keypair = "{place.directory}/manager.key_secret"
ssl-enabled = false
ipc-base-path = "{place.directory}/ipc"
pid-file = "{place.directory}/manager.pid"
aiomonitor-termui-port = {place.monitor_port}
aiomonitor-webui-port = {place.monitor_port + 1}
hide-agents = true
[docker-registry]
ssl-verify = false
[logging]
level = "INFO"
drivers = ["console"]
[logging.pkg-ns]
"" = "WARNING"
"aiohttp" = "INFO"
"ai.backend" = "INFO"
[logging.console]
colored = false
format = "verbose"
[debug]
enabled = false
{tail}"""


def alembic_ini(module: str, database: str, postgres_port: int) -> str:
    return f"""[alembic]
script_location = {module}
sqlalchemy.url = postgresql+asyncpg://postgres:unused@127.0.0.1:{postgres_port}/{database}
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARN
handlers = console
qualname =
[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic
[formatter_generic]
format = %(levelname)s [%(name)s] %(message)s
"""


def volumes() -> str:
    nowhere = "http://127.0.0.1:9"
    proxy = {"client_api": nowhere, "manager_api": nowhere, "secret": "lab", "ssl_verify": "false"}
    return json.dumps(
        {
            "_types": {"group": "", "user": ""},
            "default_host": "local:volume1",
            "proxies": {"local": proxy},
            "exposed_volume_info": "percentage",
        }
    )


def _proxy_tail() -> str:
    return f"""[secrets]
api_secret = "{API_SECRET}"
jwt_secret = "lab-appproxy-jwt-secret"
[permit_hash]
secret = "lab-appproxy-permit-secret"
[logging]
level = "INFO"
drivers = ["console"]
[logging.console]
colored = false
format = "verbose"
{_TRACING}[debug]
enabled = false
"""


def coordinator_toml(*, port: int, monitor_port: int, redis_port: int, postgres_port: int, database: str) -> str:
    return f"""[db]
type = "postgresql"
name = "{database}"
user = "postgres"
password = "unused"
pool_size = 4
max_overflow = 16
addr = {{ host = "127.0.0.1", port = {postgres_port} }}
[redis]
addr = {{ host = "127.0.0.1", port = {redis_port} }}
[proxy_coordinator]
tls_listen = false
tls_advertised = false
aiomonitor_termui_port = {monitor_port}
aiomonitor_webui_port = {monitor_port + 1}
allow_unauthorized_configure_request = true
[proxy_coordinator.bind_addr]
host = "127.0.0.1"
port = {port}
[proxy_coordinator.advertised_addr]
host = "127.0.0.1"
port = {port}
{_proxy_tail()}"""


def worker_toml(*, port: int, monitor_port: int, redis_port: int, coordinator_port: int, services: tuple[int, int]) -> str:
    return f"""[redis]
addr = {{ host = "127.0.0.1", port = {redis_port} }}
[proxy_worker]
tls_listen = false
tls_advertised = false
coordinator_endpoint = "http://127.0.0.1:{coordinator_port}"
authority = "worker-1"
aiomonitor_termui_port = {monitor_port}
aiomonitor_webui_port = {monitor_port + 1}
frontend_mode = "port"
protocol = "http"
accepted_traffics = ["inference", "interactive"]
api_bind_addr = {{ host = "127.0.0.1", port = {port} }}
api_advertised_addr = {{ host = "127.0.0.1", port = {port} }}
[proxy_worker.port_proxy]
bind_host = "127.0.0.1"
advertised_host = "127.0.0.1"
bind_port_range = [{services[0]}, {services[1]}]
{_proxy_tail()}"""
