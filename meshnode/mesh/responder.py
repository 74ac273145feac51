"""mDNS on the wire: one thread with an asyncio loop of its own, in which `zeroconf` runs. The only module that knows it.

Importing this takes a tenth of a second, so only `discovery` does, in that thread. Everything here runs in it, save `stop`.

What `zeroconf` cannot do, or does otherwise than we need:
- It renames an instance whose name is taken. Only a copy of our data directory has our name, and then both should be heard; so we
  register without asking (`cooperating_responders`), which also saves the half second of probing.
- It does not notice when the kernel has forgotten its group memberships, so new interfaces mean a new responder.
- On BSD and macOS a socket for both families hears no IPv4; there IPv6 is used only where there is no IPv4.
- It bounds what it caches, but not how often it calls. Here a call only notes who is to be looked at; looking is rationed.
- It logs errors of sending with tracebacks. What matters shows in `echo`: whether our own announcement comes back to us.
"""

import asyncio
import errno
import logging
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from random import sample

from zeroconf import (  # type: ignore[attr-defined]  # the records are there for us, only not in its list of exports
    DNSPointer,
    DNSRecord,
    DNSService,
    Error,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceStateChange,
    Zeroconf,
    current_time_millis,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from meshnode.mesh.announcement import Announcement, Found, instance, node_of, read
from meshnode.mesh.interfaces import Interface
from meshnode.names import NodeId

_BATCH = 32
_PAUSE_S = 0.1
"""So many services are looked at, then it rests: some hundred a second, where an honest mesh has one."""
_MAX_WAITING = 256
"""Services to be looked at; more come only in a flood, and are picked up from the cache later."""
_MAX_HEARD = 256
_MAX_RECORDS = 64
"""Of one name. `zeroconf` needs quadratic time to read the addresses of a host: somebody sends ten thousand."""
_MAX_ASKED = 4
"""Services at once of which we ask for what their announcement left out. `zeroconf` itself leaves nothing out."""
_ASK_MS = 1500
_AGAIN_S = 5.0
"""At least between two looks at a service that says the same as before, which only means that it is there."""
_TIDY_S = 30.0
_INCOMPLETE_S = 3.0
"""Between attempts where some interface does not work yet."""
_FIRST_TRIES, _FIRST_PAUSE_S = 8, 0.5
"""Where none works yet: IPv6 addresses cannot be bound for a second or two after an interface came up."""
_POINTER, _ADDRESSES, _CLASS_IN = 12, (1, 28), 1
"""Record types PTR, A and AAAA."""

_log = logging.getLogger(__name__)
Tell = Callable[[NodeId, Found | None], None]


def sockets(interfaces: Sequence[Interface]) -> list[str | int]:
    """What `zeroconf` is to listen on: an address for IPv4 and an index for IPv6, one of each for an interface."""
    found: list[str | int] = [str(addresses[0]) for interface in interfaces if (addresses := _ips(interface, 4))]
    if found and sys.platform != "linux":
        return found
    return found + [interface.index for interface in interfaces if _ips(interface, 6) and not interface.is_loopback]


def _ips(interface: Interface, *versions: int) -> list[IPv4Address | IPv6Address]:
    return [network.ip for network in interface.networks if network.version in (versions or (4, 6))]


def _takes_part(where: str | int) -> bool:
    """Whether multicast can be joined there. `zeroconf` tries as well, and gives up on all interfaces if one has gone."""
    is_ipv6 = isinstance(where, int)
    try:
        with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if isinstance(where, int):
                group = socket.inet_pton(socket.AF_INET6, "ff02::fb") + struct.pack("@I", where)
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            else:
                probe.setsockopt(
                    socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton(where)
                )
    except OSError:
        return False
    return True


class Responder(RecordUpdateListener):
    """Announces us and listens, from `run` until `stop`. `tell` hears of who is there, also again and again, and of who went."""

    def __init__(
        self, own: Announcement, interfaces: Sequence[Interface], *, service_type: str, tell: Tell, heard: set[str]
    ) -> None:
        """`heard` collects the names of other machines that answered anything by mDNS."""
        self._own = own
        self._sockets = sockets(interfaces)
        self._ours = {*own.hosts, *(str(ip).partition("%")[0] for interface in interfaces for ip in _ips(interface))}
        self._loopback = all(interface.is_loopback for interface in interfaces)
        self._type = service_type
        self._name = instance(own.node, service_type)
        self._server = f"{own.node.hex()}.local."
        self._tell = tell
        self._heard = heard
        self._lock = threading.Lock()
        """Of the next four, which `stop` and `run` share."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._stopped = False
        self._goodbye = False
        self._changed = asyncio.Event()
        self._waiting: dict[NodeId, bool] = {}
        """Who is to be looked at; False: it said goodbye."""
        self._overflowed = False
        self._looked_at: dict[NodeId, float] = {}
        self._asked: dict[NodeId, asyncio.Task[None]] = {}
        self.echo = False
        """Our own announcement was heard here. It is not while a firewall of this machine keeps UDP port 5353 closed."""

    def run(self, on_air: Callable[[], None]) -> str:
        """Until stopped. Returns why it cannot go on, empty if it was stopped. `on_air` is called once it listens."""
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        try:
            return asyncio.run(self._main(on_air))
        except OSError as error:
            taken = "UDP port 5353 is taken by another program: " if error.errno == errno.EADDRINUSE else ""
            return taken + (error.strerror or str(error))
        except (RuntimeError, Error) as error:
            return str(error) or type(error).__name__
        except Exception:
            _log.exception("mDNS failed: this is a bug")
            return "a bug of ours, see the log"

    def stop(self, *, goodbye: bool) -> None:
        """From any thread, also before `run`. With `goodbye`, a quarter of a second more, others hear at once that we went."""
        with self._lock:
            self._stopped, self._goodbye = True, goodbye
            if self._loop:
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _main(self, on_air: Callable[[], None]) -> str:
        with self._lock:
            if self._stopped:
                return ""
            self._loop = asyncio.get_running_loop()
        try:
            self._sockets = [each for each in self._sockets if _takes_part(each)]
            if not self._sockets:
                return "no interface takes part in multicast"
            service = AsyncZeroconf(interfaces=self._sockets)
            try:
                return await self._serve(service, on_air)
            finally:
                await service.async_close()
        finally:
            with self._lock:
                self._loop = None

    async def _serve(self, service: AsyncZeroconf, on_air: Callable[[], None]) -> str:
        zeroconf = service.zeroconf
        await zeroconf.async_wait_for_start()
        for _ in range(_FIRST_TRIES):
            if zeroconf.engine.senders or self._stopping.is_set():
                break
            await asyncio.sleep(_FIRST_PAUSE_S)
            await service.async_update_interfaces(self._sockets)
        else:
            return "no interface takes part in multicast"
        zeroconf.async_add_listener(self, None)
        browser = AsyncServiceBrowser(zeroconf, self._type, handlers=[self._on_change])
        if self._own.hosts:
            await service.async_register_service(self._info(), cooperating_responders=True)
        on_air()
        looking = asyncio.create_task(self._look(service))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((looking, stopping), return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
        finally:
            looking.cancel()
            if not self._goodbye:
                zeroconf.registry.async_remove(zeroconf.registry.async_get_service_infos())
            await browser.async_cancel()
        return ""

    def _info(self) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            self._type,
            self._name,
            port=self._own.port,
            properties=self._own.properties(),
            server=self._server,
            parsed_addresses=list(self._own.hosts),
        )

    # What zeroconf calls, for each packet.

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        self._note(name, is_there=state_change is not ServiceStateChange.Removed)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Hear what the browser does not tell: who else is there, ourselves, and who announces itself again."""
        for update in records:
            record = update.new
            if record.type in _ADDRESSES:
                if record.key != self._server and len(self._heard) < _MAX_HEARD:
                    self._heard.add(record.key)
            elif isinstance(record, DNSService):
                self.echo = self.echo or record.key == self._name
            elif isinstance(record, DNSPointer) and update.old and record.ttl and record.key == self._type:
                node = node_of(record.alias, self._type)
                if node and time.monotonic() - self._looked_at.get(node, float("-inf")) >= _AGAIN_S:
                    self._note(record.alias, is_there=True)

    def async_update_records_complete(self) -> None:
        """Nothing: `_look` comes later, when the records are in the cache."""

    def _note(self, name: str, *, is_there: bool) -> None:
        node = node_of(name, self._type)
        if node is None:
            return
        if node in self._waiting or len(self._waiting) < _MAX_WAITING:
            self._waiting[node] = is_there
            self._changed.set()
        else:
            self._overflowed = True

    # What we do about it, in our own time.

    async def _look(self, service: AsyncZeroconf) -> None:
        while True:
            is_complete = len(service.zeroconf.engine.senders) >= len(self._sockets)
            try:
                await asyncio.wait_for(self._changed.wait(), _TIDY_S if is_complete else _INCOMPLETE_S)
            except TimeoutError:
                await self._tidy(service, is_complete=is_complete)
                continue
            for node in list(self._waiting)[:_BATCH]:
                self._look_at(service.zeroconf, node, is_there=self._waiting.pop(node))
            if not self._waiting:
                self._changed.clear()
            await asyncio.sleep(_PAUSE_S)

    async def _tidy(self, service: AsyncZeroconf, *, is_complete: bool) -> None:
        if not is_complete:
            with suppress(OSError):
                await service.async_update_interfaces(self._sockets)
        if self._overflowed:
            self._overflowed = False
            pointers = service.zeroconf.cache.async_all_by_details(self._type, _POINTER, _CLASS_IN)
            for pointer in sample(pointers, min(len(pointers), _MAX_WAITING)):
                if isinstance(pointer, DNSPointer):
                    self._note(pointer.alias, is_there=True)

    def _look_at(self, zeroconf: Zeroconf, node: NodeId, *, is_there: bool) -> None:
        if not is_there:
            self._looked_at.pop(node, None)
            self._tell(node, None)
            return
        self._looked_at.pop(node, None)
        self._looked_at[node] = time.monotonic()
        if len(self._looked_at) > _MAX_WAITING:
            del self._looked_at[next(iter(self._looked_at))]
        name = instance(node, self._type)
        info = AsyncServiceInfo(self._type, name)
        if _is_bloated(zeroconf, name):
            return
        if info.load_from_cache(zeroconf):
            self._read(zeroconf, node, info)
        elif node not in self._asked and len(self._asked) < _MAX_ASKED:
            self._asked[node] = asyncio.create_task(self._ask(zeroconf, node, info))

    async def _ask(self, zeroconf: Zeroconf, node: NodeId, info: AsyncServiceInfo) -> None:
        try:
            with suppress(Error):  # it was closed meanwhile
                if await info.async_request(zeroconf, _ASK_MS):
                    self._read(zeroconf, node, info)
        finally:
            del self._asked[node]

    def _read(self, zeroconf: Zeroconf, node: NodeId, info: AsyncServiceInfo) -> None:
        """A copied node announces another port under the same name: every port counts, where `info` has but one."""
        ports = [record.port for record in _current(zeroconf, info.name) if isinstance(record, DNSService)]
        places = [(ip, port) for port in reversed(ports) for ip in info.ip_addresses_by_version(IPVersion.All)]
        if node == self._own.node:
            places = [place for place in places if not self._is_ours(*place)]
        if found := read(node, info.properties, places, loopback=self._loopback):
            self._tell(node, found)

    def _is_ours(self, ip: IPv4Address | IPv6Address, port: int) -> bool:
        """Our own announcement comes back to us. With another address it is that of a copy of us, which must be heard of."""
        return port == self._own.port and str(ip).partition("%")[0] in self._ours


def _current(zeroconf: Zeroconf, name: str) -> list[DNSRecord]:
    now = current_time_millis()
    return [record for record in zeroconf.cache.async_entries_with_name(name) if not record.is_expired(now)]


def _is_bloated(zeroconf: Zeroconf, name: str) -> bool:
    records = zeroconf.cache.async_entries_with_name(name)
    hosts = {record.server for record in records if isinstance(record, DNSService)}
    return len(records) > _MAX_RECORDS or any(len(zeroconf.cache.async_entries_with_name(host)) > _MAX_RECORDS for host in hosts)
