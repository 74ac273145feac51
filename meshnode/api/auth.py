"""Who may ask: the checks of security rules 10 and 11, which every request passes before anything looks at it (pure).

On loopback anybody on this machine may use the models. What must not is a web page in this machine's browser: it can send
requests to loopback as well, but it cannot choose the Host header of a rebound name, nor hide its Origin.
"""

import hmac
import ipaddress
from urllib.parse import urlsplit

from meshnode.api.http import Request
from meshnode.errors import Forbidden, Misdirected, Unauthorized
from meshnode.names import printable


def check_host(request: Request, hosts: frozenset[str]) -> None:
    """Refuse a Host that is not ours. `hosts` are names and addresses in lower case, without ports."""
    host = request.headers.get("host", "")
    name = _name(host)
    if not (name == "localhost" or name in hosts or (name and name == request.local) or _is_loopback(name)):
        raise Misdirected(
            f"This node is not called `{printable(host, 128)}`.",
            hint="Ask it by its address, by localhost, or by a name that its settings list.",
        )


def check_origin(request: Request) -> None:
    """Refuse what another site's page sends; a page that this very listener served may ask."""
    origin = request.headers.get("origin")
    if origin is not None and not _is_own(origin, request.headers.get("host", "")):
        raise Forbidden(f"Pages of `{printable(origin, 128)}` may not use this node.")
    if request.headers.get("sec-fetch-site", "").strip().lower() in {"cross-site", "same-site"}:
        raise Forbidden("Pages of other sites may not use this node.")


def check_admin(request: Request, secret: str) -> None:
    """Admit who shows the secret of the run file. An empty secret admits nobody."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret or not hmac.compare_digest(shown.strip().encode(), secret.encode()):
        raise Unauthorized(
            "This path needs the admin secret, as `Authorization: Bearer ...`.",
            hint="It is in the run file of the node's data directory; the command line reads it by itself.",
        )


def _name(host: str) -> str:
    """The host of a Host header, in lower case; empty when it is not a plain `host[:port]`."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises when it is not a number in range
    except ValueError:
        return ""
    plain = parts.netloc == host and "@" not in host
    return (parts.hostname or "") if plain else ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_own(origin: str, host: str) -> bool:
    scheme, separator, rest = origin.lower().partition("://")
    return bool(separator) and scheme in {"http", "https"} and rest == host.lower() != ""
