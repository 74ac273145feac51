"""Addresses of HTTP services as people write them: http(s)://HOST[:PORT][/PATH] (pure)."""

import re
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from meshnode.errors import ConfigurationError

_PORTS = {"http": 80, "https": 443}
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_MAX = 1024


class Url(NamedTuple):
    """`path` begins with a slash and ends with none; empty for the root. Host in lower case, IPv6 without brackets."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """The Host header: a default port is left out, as HTTP libraries do and signatures expect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_secure(self) -> bool:
        return self.scheme == "https"

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def below(self, path: str) -> str:
        """What to ask for, as the request line has it."""
        return f"{self.path}{path}"


def parse(text: str, *, flag: str) -> Url:
    """Raises ConfigurationError naming `flag`. A password in the address is refused, and not repeated."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise _wrong(flag, "it is no address") from None
    if parts.scheme not in _PORTS:
        raise _wrong(flag, "it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise _wrong(flag, "it holds a user's name or password, which belongs into a key file")
    if parts.query or parts.fragment or not _PATH.fullmatch(parts.path) or len(text) > _MAX:
        raise _wrong(flag, "after the host there may only be a plain path")
    host = (parts.hostname or "").lower()
    if not _HOST.fullmatch(host) and not _is_ipv6(host):
        raise _wrong(flag, "the host is missing or is no name")
    if port == 0:
        raise _wrong(flag, "port 0 is none")
    return Url(parts.scheme, host, port or _PORTS[parts.scheme], parts.path.rstrip("/"))


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6 and "%" not in host
    except ValueError:
        return False


def _wrong(flag: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{flag}: {why}.", hint="Write it as https://HOST[:PORT], for example https://api.example.com.")
