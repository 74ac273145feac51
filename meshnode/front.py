"""Where a node's API listens, and whether it may listen there."""

import logging

import trio

from meshnode.address import OLLAMA_PORT, Address
from meshnode.config import Settings
from meshnode.errors import ConfigurationError
from meshnode.keys import KeyRing

log = logging.getLogger("meshnode.node")


def check_open_api(settings: Settings, keys: KeyRing) -> None:
    """Every rival that opened its API by default was reported as vulnerable (design D5, security rule 12)."""
    if settings.api.is_loopback:
        return
    if settings.insecure_api:
        log.warning("--insecure-api: whoever reaches %s may use this node's models without a key.", settings.api)
    elif not keys:
        raise ConfigurationError(
            f"--api {settings.api} can be reached by other machines, and there is no key for them.",
            hint="Make one with `meshnode key new`, or add --insecure-api if everyone on that network may use it.",
        )
    else:
        log.warning("--api %s has no TLS: keys and prompts can be read on the way.", settings.api)


async def open_api(address: Address) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(address.port, host=address.host))
    except OSError as error:
        raise ConfigurationError(
            f"--api {address}: {error.strerror or error}.",
            hint="Stop what uses it, or choose another: --api 127.0.0.1:0 takes any port.",
        ) from error


async def open_as_ollama(api: Address) -> list[trio.SocketListener]:
    """None when the port is taken, by Ollama itself most likely: then the node does without."""
    address = Address(api.host, OLLAMA_PORT)
    if api == address:
        return []
    try:
        return list(await trio.open_tcp_listeners(address.port, host=address.host))
    except OSError as error:
        log.warning("--as-ollama: nothing listens on %s (%s); clients of Ollama find %s.", address, error.strerror or error, api)
        return []
