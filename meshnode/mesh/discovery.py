"""Finding nodes on the LAN by mDNS, beside trio.

A hint and no more: who is announced may be dialled, and who is gone may still be there (design D4, D8). So nothing of this may
delay the node's start, and no trouble of it may end the node: it is "off" with a reason, and tried again.

The work is `responder`'s, in a thread of its own that lives from one change of our addresses to the next. Here is its life.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshnode.mesh.announcement import SERVICE_TYPE, Announcement, Found
from meshnode.mesh.interfaces import Interface, listening
from meshnode.names import NodeId

if TYPE_CHECKING:
    from meshnode.mesh.responder import Responder

__all__ = ["Discovery", "Found", "Report", "State"]

MAX_KNOWN = 256
"""Ids that were told of and have not gone; the oldest are forgotten."""
RETRY_S = 30.0
_CLOSE_S = 2.0
"""For the goodbye, a quarter of a second when all is well. A thread that takes longer is left behind."""

_log = logging.getLogger(__name__)


class State(StrEnum):
    STARTING = "starting"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, kw_only=True)
class Report:
    """For `status`, and for the question why nobody is seen."""

    state: State
    reason: str
    """Why it is off."""
    interfaces: tuple[str, ...]
    """Where it listens and speaks: `eth0 192.168.1.5`."""
    heard: int
    """Other machines that answered anything by mDNS, of whatever kind, since the node started; no more are counted than 256. None
    at all, after some minutes on a LAN of several machines, means that multicast does not get through."""
    echo: bool
    """Our own announcement came back to us. If not, while it is on: a firewall of this machine keeps UDP port 5353 closed."""
    since: float
    """When the state began, on trio's clock."""


class Discovery:
    """Announces this node and finds others while it runs.

    `on_found` is called with every announcement, again when one is repeated (at most every 5 s, and some hundred times a second
    in all). One of our own id is passed on as well if it has addresses that are not ours: a copy of this node is about. Which
    address is best is not said: the dialler knows. `on_gone` is called when a node that was found says goodbye, or
    anybody in its name. Both run in trio's loop and must not block.
    """

    def __init__(
        self,
        own: Announcement,
        interfaces: Sequence[Interface],
        *,
        on_found: Callable[[Found], None],
        on_gone: Callable[[NodeId], None],
        service_type: str = SERVICE_TYPE,
    ) -> None:
        self._own = own
        self._interfaces = interfaces
        self._on_found = on_found
        self._on_gone = on_gone
        self._type = service_type
        self._known: OrderedDict[NodeId, None] = OrderedDict()
        self._moved = trio.Event()
        self._responder: Responder | None = None
        self._heard: set[str] = set()
        self._state = State.STARTING
        self._reason = ""
        self._since = float("-inf")

    async def run(self) -> None:
        """Until cancelled; the goodbye then takes 2 s at most."""
        self._since = trio.current_time()
        while True:
            self._moved = trio.Event()
            if reason := await self._stay():
                self._enter(State.OFF, reason)
                with trio.move_on_after(RETRY_S):
                    await self._moved.wait()

    def move(self, own: Announcement, interfaces: Sequence[Interface]) -> None:
        """Our addresses have changed: announce these, listen there. Who was found stays so."""
        if (own, tuple(interfaces)) != (self._own, tuple(self._interfaces)):
            self._own, self._interfaces = own, interfaces
            self._moved.set()

    def report(self) -> Report:
        is_on = self._state is State.ON
        where = tuple(f"{each.name} {each.networks[0].ip}" for each in listening(self._own.hosts, self._interfaces))
        return Report(
            state=self._state,
            reason=self._reason,
            interfaces=where if is_on else (),
            heard=len(self._heard),
            echo=is_on and self._responder is not None and self._responder.echo,
            since=self._since,
        )

    def _enter(self, state: State, reason: str = "") -> None:
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason, self._since = state, reason, trio.current_time()
            if state is State.OFF:
                _log.warning("mDNS is off: %s. Nodes are found by address only. Next attempt in %.0f s", reason, RETRY_S)

    async def _stay(self) -> str:
        """Be on the air until we move. Returns why that cannot be, if it cannot."""
        interfaces = listening(self._own.hosts, self._interfaces)
        if not interfaces:
            return "there is no network interface where another machine may be"
        own, token = self._own, trio.lowlevel.current_trio_token()

        def soon(call: Callable[..., None], *args: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(call, *args)

        load = await trio.to_thread.run_sync(_load, abandon_on_cancel=True)
        self._responder = responder = load(
            own, interfaces, service_type=self._type, tell=partial(soon, self._tell), heard=self._heard
        )
        try:
            return await self._hold(responder, partial(soon, self._on_air, responder))
        finally:
            self._responder = None

    async def _hold(self, responder: "Responder", on_air: Callable[[], None]) -> str:
        reason = ""
        thread = trio.CancelScope(shield=True)

        async def be_on_air() -> None:
            nonlocal reason
            with thread:
                limiter = trio.CapacityLimiter(1)
                reason = await trio.to_thread.run_sync(responder.run, on_air, abandon_on_cancel=True, limiter=limiter)
            nursery.cancel_scope.cancel()

        has_moved = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_on_air)
            try:
                await self._moved.wait()
                has_moved = True
            finally:
                thread.deadline = trio.current_time() + _CLOSE_S
                responder.stop(goodbye=not has_moved)
        return reason

    def _on_air(self, responder: "Responder") -> None:
        if responder is self._responder:
            self._enter(State.ON)
            _log.info("mDNS is on: %s", ", ".join(self.report().interfaces))

    def _tell(self, node: NodeId, found: Found | None) -> None:
        """Runs outside every task, where an exception would end trio: a bug of the callbacks is only logged."""
        if self._responder is None:
            return
        try:
            if found:
                self._known[node] = None
                self._known.move_to_end(node)
                if len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
                self._on_found(found)
            elif node in self._known:
                del self._known[node]
                self._on_gone(node)
        except Exception:
            _log.exception("what mDNS found cannot be used: this is a bug")


def _load() -> "type[Responder]":
    """In a thread: importing takes a tenth of a second."""
    from meshnode.mesh.responder import Responder

    return Responder
