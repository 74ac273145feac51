"""Network addresses as people write them: HOST:PORT, with brackets around an IPv6 host (pure)."""

import re
from ipaddress import ip_address
from typing import NamedTuple

from meshnode.errors import ConfigurationError

MESH_PORT = 4850
API_PORT = 4860
OLLAMA_PORT = 11434
"""Where clients of Ollama look for it."""


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_wildcard(self) -> bool:
        """Every address of this machine."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False


def parse(text: str, *, flag: str, default_port: int | None = None) -> Address:
    """The address in `text`. Raises ConfigurationError naming `flag`; without `default_port` the port must be there."""
    host, port = _split(text.strip())
    if not host:
        raise _wrong(text, flag, "the host is missing")
    if not _is_host(host):
        raise _wrong(text, flag, "the host is not a name or an address")
    if not port and default_port is not None:
        return Address(host, default_port)
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise _wrong(text, flag, "the port must be a number from 0 to 65535" if port else "the port is missing")
    return Address(host, int(port))


def _split(text: str) -> tuple[str, str]:
    """Host and port, empty where there is none. A bare IPv6 address has several colons and no port."""
    if bracketed := re.fullmatch(r"\[([^]]*:[^]]*)](?::(.*))?", text):
        return bracketed[1], bracketed[2] or ""
    if text.count(":") > 1 and "[" not in text:
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _is_host(host: str) -> bool:
    """An IPv6 address if it has a colon; else anything that may be a name, which only the resolver can tell."""
    if re.search(r"[\s\x00-\x1f\x7f/@?#\[\]]", host):
        return False
    if ":" not in host:
        return "%" not in host
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False


def _wrong(text: str, flag: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{flag} {text!r} is no address: {why}.", hint=f"Write it as HOST:PORT, for example {flag} 192.168.1.7:4850."
    )
