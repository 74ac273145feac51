"""A remote service that a person registered: which it is, how it is reached, and the secrets for it (pure).

It comes from `meshnode add`, from the admin API or from the configuration file, and is kept in the data directory. Everything is
a value: paths and commands are read and run by the command line and by the reader of the configuration file (security rule 13).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address

import msgspec

from meshnode import url
from meshnode.address import Address, parse
from meshnode.errors import ConfigurationError
from meshnode.names import is_name
from meshnode.url import Url

MAX_REMOTES = 16
"""Of one node. Each costs a call or two in a quarter of a minute."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{0,4096}", re.ASCII)
"""What fits into a header."""
MAX_CA = 64 * 1024
MAX_ENTRIES = 64


class Kind(StrEnum):
    ROUTER = "router"
    """Any OpenAI-compatible server."""
    CLUSTER = "cluster"
    """A Backend.AI manager."""


class Cost(StrEnum):
    """What an answer costs its owner, for the choice among routes and for people."""

    LAN = "lan"
    """A machine of one's own, nearby."""
    CLUSTER = "cluster"
    """Shared with others, and paid already."""
    METERED = "metered"
    """Paid by the token, or limited."""


class Remote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`key` is a router's API key or a cluster's secret key. `models` are patterns (`*`) of what to offer; none: everything."""

    kind: Kind
    name: str
    url: str
    key: str = ""
    access_key: str = ""
    ca: str = ""
    """Certificates to trust instead of the system's, as PEM text."""
    insecure: bool = False
    """Plain HTTP, or certificates that nobody checks."""
    rewrite: Mapping[str, str] = {}
    """HOST or HOST:PORT of a service's URL, to where it is dialled instead: clusters tell of hosts that only they can reach."""
    alias: Mapping[str, str] = {}
    """Further names of models: the new one, to the remote's own."""
    models: tuple[str, ...] = ()
    cost: Cost | None = None
    """None: what fits its kind and address."""
    spill_over: bool = False
    """Also used for models that the mesh has itself, when its own nodes are busy."""

    def __repr__(self) -> str:
        return f"Remote(kind={self.kind.value!r}, name={self.name!r}, url={self.url!r})"

    @property
    def address(self) -> Url:
        return url.parse(self.url, flag="URL")

    @property
    def cost_class(self) -> Cost:
        if self.cost is not None:
            return self.cost
        return Cost.CLUSTER if self.kind is Kind.CLUSTER else Cost.LAN if _is_near(self.address.host) else Cost.METERED

    def dialled(self, service: Url) -> Address | None:
        """Where to connect for `service`, if not where its URL says."""
        to = self.rewrite.get(f"{service.host}:{service.port}") or self.rewrite.get(service.host)
        return parse(to, flag="rewrite", default_port=service.port) if to else None


def checked(remote: Remote) -> Remote:
    """`remote` with its URL in the form that is kept. Raises ConfigurationError, which repeats no secret."""
    if not _NAME.fullmatch(remote.name):
        raise ConfigurationError(f"{remote.name!r} cannot be a remote's name.", hint="Use up to 32 letters, digits and . _ -")
    address = url.parse(remote.url, flag="URL")
    if remote.kind is Kind.ROUTER:
        address = address._replace(path=address.path.removesuffix("/v1"))
    if not (address.is_secure or address.is_loopback or remote.insecure):
        raise ConfigurationError(
            f"{address} would send keys and prompts in clear text.", hint="Use https://, or add --insecure if that is meant."
        )
    _check_keys(remote)
    _check_maps(remote)
    return msgspec.structs.replace(remote, url=str(address))


def _check_keys(remote: Remote) -> None:
    if not _KEY.fullmatch(remote.key) or not _KEY.fullmatch(remote.access_key):
        raise ConfigurationError("The key holds blanks or characters that no key has.", hint="Give the key alone, on one line.")
    if remote.kind is Kind.CLUSTER and not (remote.access_key and remote.key):
        raise ConfigurationError("A cluster needs an access key and a secret key.", hint="They are a key pair of your account.")
    if remote.kind is Kind.ROUTER and remote.access_key:
        raise ConfigurationError("A router has no access key.", hint="Did you mean: meshnode add cluster?")
    if len(remote.ca) > MAX_CA:
        raise ConfigurationError(f"The certificates are larger than {MAX_CA} bytes.", hint="Give only those that sign for it.")


def _check_maps(remote: Remote) -> None:
    if max(len(remote.rewrite), len(remote.alias), len(remote.models)) > MAX_ENTRIES:
        raise ConfigurationError(f"More than {MAX_ENTRIES} rewrites, aliases or models cannot be given.")
    for source, to in remote.rewrite.items():
        parse(source, flag="--rewrite", default_port=443)
        parse(to, flag="--rewrite", default_port=443)
    for alias, model in remote.alias.items():
        if not is_name(alias) or not model or len(model) > 256:
            raise ConfigurationError(f"--alias {alias!r} cannot be a model's name.", hint="Write it as --alias NAME=THEIR-MODEL.")


def _is_near(host: str) -> bool:
    """On this machine or in a network of one's own, as far as a name tells."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal", ".home.arpa"))
