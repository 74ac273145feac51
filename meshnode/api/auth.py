"""Who may ask: the checks of security rules 10 to 12, which every request passes before anything looks at it (pure).

Anybody on this machine may use the models; from elsewhere it takes a key. What must not is a web page in this machine's browser:
it can send requests to loopback as well, but it cannot choose the Host header of a rebound name, nor hide its Origin.
"""

import hmac
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from meshnode.api.http import Request
from meshnode.errors import Forbidden, Misdirected, Unauthorized
from meshnode.keys import PREFIX, Key, KeyRing, Scope
from meshnode.names import printable

OPERATOR = "operator"
"""The id of whoever shows the run file's secret; longer than any key's."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. `id` is a key's or `OPERATOR`, and empty for somebody who showed nothing."""

    id: str = ""
    is_admin: bool = False
    key: Key | None = field(default=None, repr=False)


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


def caller_of(request: Request, *, secret: str, keys: KeyRing) -> Caller:
    """Whoever the request says that it comes from, by `Authorization: Bearer` or `x-api-key`.

    Raises Unauthorized for a key of ours that is wrong or revoked, also where none is needed: its holder shall know. What is no
    key of ours counts as none, since many clients must send something. `secret` is the run file's; an empty one admits nobody.
    """
    for shown in _credentials(request):
        if secret and hmac.compare_digest(shown.encode(), secret.encode()):
            return Caller(id=OPERATOR, is_admin=True)
        if shown.startswith(PREFIX):
            key = keys.find(shown)
            if key is None:
                raise Unauthorized("This API key is wrong or revoked.", hint="`meshnode key list` shows those of this node.")
            return Caller(id=key.id, is_admin=key.scope is Scope.ADMIN, key=key)
    return Caller()


def check_use(request: Request, caller: Caller, *, keyless: bool) -> None:
    """Admit who has a key, and anybody on this machine. `keyless`: the operator lets everybody in who reaches the port."""
    if not (caller.id or keyless or _is_here(request)):
        raise Unauthorized(
            "This node needs an API key, as `Authorization: Bearer mk_...` or `x-api-key: mk_...`.",
            hint="Its operator makes one with: meshnode key new",
        )


def check_admin(request: Request, caller: Caller) -> None:
    """Admit an admin on this machine: without TLS, the credential of one elsewhere could be read on the way (rule 12)."""
    if not caller.is_admin:
        raise Unauthorized(
            "This path needs the admin secret or an admin's key, as `Authorization: Bearer ...`.",
            hint="The secret is in the run file of the node's data directory; the command line reads it by itself.",
        )
    check_here(request)


def check_here(request: Request) -> None:
    """Refuse who is not on this machine."""
    if not _is_here(request):
        raise Forbidden("This path may be used on the node's own machine only.", hint="The API has no TLS: log in there, by ssh.")


def _credentials(request: Request) -> tuple[str, ...]:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = (bearer if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", ""))
    return tuple(text.strip() for text in shown)


def _is_here(request: Request) -> bool:
    """Whether the client is on this machine: no other can keep up a connection from our own address."""
    return _is_loopback(request.peer) or request.peer == request.local != ""


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
