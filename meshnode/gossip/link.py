"""What the engine keeps of one link, and what it says next on it (pure).

Nothing is queued. There are flags (leave, pong, ping, delta) and, for each origin, the stamp that the peer is known to have:
because it said so, or because we sent it (links are reliable and ordered; if one breaks, that knowledge goes with it). A frame
is made at the moment when the socket can take it, from what is true then. So a slow peer costs one flag for each record that it
lacks, and gets the newest state, not the history.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode.gossip.agenda import Agenda
from meshnode.gossip.effects import LinkId
from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.limits import ACCUSATIONS_PER_S, GOSSIP_BURST, GOSSIP_BYTES_PER_S, PROBES_PER_S, SUDDEN, Bucket
from meshnode.gossip.record import Stamp, claim, delta_for, delta_size
from meshnode.gossip.repair import Repair
from meshnode.names import ModelDigest, NodeId
from meshnode.wire.codec import encode
from meshnode.wire.messages import (
    Accuse,
    Delta,
    Finding,
    Hello,
    Leave,
    ModelState,
    Ping,
    Pong,
    Probe,
    RecordDelta,
    Sketch,
)

PONG_EVERY = 5
MIN_HEARTBEAT_GAP_S = 0.1
"""Between heartbeats that a change of load brings forward."""
BATCH_S = 0.05
"""Changes within it share one DELTA; also the most that a change waits at its origin."""
MAX_DELTA_BYTES = 16 * 1024
"""More would hold up what comes behind it for longer than 2 ms on 100 Mbit/s."""
SILENCE_S = 3.0
"""Three heartbeats: a lost segment is sent again within 1 s, so two in a row are needed to be wrong, and wrong is cheap here."""
SILENT_CLOSE_S = 10.0
"""A peer that lost its power sends no FIN; closing is what makes us redial it. Above any stall that a busy machine survives."""
RTT_WEIGHT = 0.25
DELTA_BYTES_PER_S = 0.75 * GOSSIP_BYTES_PER_S
DELTA_BURST_S = 4.0
"""Records go out no faster than the other end takes them, with room for the rest of the gossip: no PULL makes us send more."""
WARN_GAP_S = 0.2
"""A tenth of what a receiver of accusations tolerates."""
MAX_URGENT = 512
"""More than there is to say when half of a mesh of 64 vanishes."""
FRAME_COST = 8
"""Bytes around the records of a DELTA, at most."""

Urgent = Probe | Finding | Accuse


def is_large_change(old: tuple[ModelState, ...], new: tuple[ModelState, ...]) -> bool:
    """Whether a router would choose otherwise for it: a model's state, or more than a quarter of its active or queued work."""
    before = {(model.digest, model.name): model for model in old}
    if len(old) != len(new):
        return True
    for model in new:
        was = before.get((model.digest, model.name))
        if was is None or was.state != model.state:
            return True
        for then, now in ((was.active, model.active), (was.queued, model.queued)):
            if 4 * abs(now - then) > max(then, 1):
                return True
    return False


@dataclass(kw_only=True)
class Link:
    """One link to `peer`. Times are seconds on the engine's clock."""

    id: LinkId
    peer: NodeId
    hello: Hello
    addr: str
    dialled: bool
    bucket: Bucket
    """For the bytes of its gossip."""
    probes: Bucket
    accusations: Bucket
    repair: Repair
    agenda: Agenda
    up_at: float
    heard_at: float = 0.0
    next_ping: float = 0.0
    closing: bool = False
    silent: bool = False
    """The silence was noticed."""
    rtt_ms: float | None = None
    _has: dict[NodeId, Stamp] = field(default_factory=dict)
    _lacks: dict[NodeId, float] = field(default_factory=dict)
    """Origins of which the peer may lack something, and from when on to tell it."""
    grace_until: float = 0.0
    """The peer announced that it may be silent until then."""
    _urgent: dict[tuple[type, NodeId], Urgent] = field(default_factory=dict)
    """What there is to say about others, by kind and target; the newest counts."""
    _stalled_until: float = 0.0
    """Our own such announcement."""
    _warned_at: float = float("-inf")
    _leave: int | None = None
    _pong: int | None = None
    _ping: bool = False
    _delta: bool = False
    _delta_at: float | None = None
    _last_delta: float = float("-inf")
    _paid_until: float = float("-inf")
    """What was told in DELTAs is paid for, at the rate that the peer tolerates, by then."""
    _last_ping: float = float("-inf")
    _sequence: int = 0
    _awaited: tuple[int, float] | None = None
    """The PING that will be answered: its number, and when it went out."""
    _load_sent: tuple[ModelState, ...] = ()
    _sketches: dict[tuple[ModelDigest, str], Sketch] = field(default_factory=dict)
    """What is to be told of our caches: the newest of each model, however slow the peer."""

    @property
    def ready(self) -> bool:
        """Whether `next_frame` would probably give a frame."""
        answers = self._leave is not None or self._pong is not None or bool(self._urgent)
        return not self.closing and (answers or self._ping or bool(self._sketches) or self._delta or self.repair.ready)

    def deadline(self) -> float:
        """When a flag has to be set, or the silence becomes too long."""
        silence_at = self.heard_at + (SILENT_CLOSE_S if self.silent else SILENCE_S)
        deadline = min(self.next_ping, silence_at, self.repair.deadline())
        return deadline if self._delta_at is None else min(deadline, self._delta_at)

    def __post_init__(self) -> None:
        self.heard_at = self.next_ping = self.up_at
        self.agenda.changed(self)

    def begin_close(self) -> None:
        """Nothing more is said or heard on it."""
        self.closing = True
        self.agenda.changed(self)

    def is_silent(self, now: float) -> bool:
        return self.heard_at + SILENCE_S <= now

    def heard(self, now: float) -> None:
        """The peer sent something."""
        self.heard_at, self.silent = now, False
        self.agenda.changed(self)

    def excuse(self, late: float, now: float) -> None:
        """It was we who did not listen for so long."""
        self.heard_at = min(now, self.heard_at + late)
        self.agenda.changed(self)

    def advance(self, now: float) -> None:
        """Set the flags that are due."""
        if self.next_ping <= now:
            self._ping, self.next_ping = True, self.agenda.next_beat(now)
        if self._delta_at is not None and self._delta_at <= now:
            self._delta, self._delta_at = True, None
        self.repair.advance(now)
        self.agenda.changed(self)

    @property
    def has_news(self) -> bool:
        """Whether there is something that the peer was not told yet."""
        return bool(self._lacks)

    def correct(self, origin: NodeId, stamp: Stamp | None) -> None:
        """The peer says how far its account of `origin` reaches; None: it has none. That counts more than what we assumed."""
        if stamp is None:
            self._has.pop(origin, None)
        else:
            self._has[origin] = stamp

    def offer(self, origin: NodeId, at: float) -> None:
        """The record of `origin` is news that the peer may lack: tell it from `at` on, in the next batch."""
        if origin == self.peer:
            return
        at = max(at, self._last_delta + BATCH_S)
        self._lacks[origin] = min(at, self._lacks.get(origin, at))
        self._delta_at = at if self._delta_at is None else min(at, self._delta_at)
        self.agenda.changed(self)

    def told(self, delta: RecordDelta) -> None:
        """The peer sent `delta`, so it has it. One of a lower epoch than before: it met the origin, whose epoch fell back."""
        stamp, known = claim(delta), self._has.get(delta.origin)
        if known is None or stamp > known or stamp.epoch < known.epoch:
            self._has[delta.origin] = stamp

    def hurry(self, load: tuple[ModelState, ...], now: float) -> None:
        """Our load is `load` now: bring the heartbeat forward if the peer should know at once."""
        if is_large_change(self._load_sent, load):
            self.next_ping = min(self.next_ping, max(now, self._last_ping + MIN_HEARTBEAT_GAP_S))
            self.agenda.restart_beat(self.next_ping)
            self.agenda.changed(self)

    def sketch(self, ours: Sketch) -> None:
        """We have other prompts cached than the peer knows."""
        self._sketches[ours.digest, ours.name] = ours
        self.agenda.changed(self)

    def say(self, frame: Urgent) -> None:
        """As soon as possible. Who asks and does not read loses the oldest answers."""
        self._urgent[type(frame), frame.target] = frame
        if len(self._urgent) > MAX_URGENT:
            del self._urgent[next(iter(self._urgent))]
        self.agenda.changed(self)

    def warn(self, accusation: Accuse, now: float) -> None:
        """Tell the peer what it is accused of; not so often that it would take us for the one who accuses."""
        if now >= self._warned_at + WARN_GAP_S:
            self._warned_at = now
            self.say(accusation)

    def stall(self, until: float, now: float) -> None:
        """We may be silent until then: the next heartbeat, now, says so."""
        self._stalled_until, self.next_ping = until, now
        self.agenda.changed(self)

    def answer(self, sequence: int) -> None:
        """A PING asked for a PONG. One is owed however many were asked for, and a PONG is never answered: this ends."""
        self._pong = sequence
        self.agenda.changed(self)

    def answered(self, sequence: int, now: float) -> None:
        """A PONG came."""
        if self._awaited is None or self._awaited[0] != sequence:
            return
        sample = (now - self._awaited[1]) * 1000
        self.rtt_ms = sample if self.rtt_ms is None else self.rtt_ms + RTT_WEIGHT * (sample - self.rtt_ms)
        self._awaited = None

    def leave(self, epoch: int) -> None:
        """We leave: LEAVE is the last that is said here."""
        self._leave = epoch
        self.agenda.changed(self)

    def next_frame(self, known: Knowledge, load: tuple[ModelState, ...], now: float, room: int) -> bytes | None:
        """The most urgent frame: LEAVE, PONG, what concerns others' lives, PING, SKETCH, DELTA, then what repairs. None when
        there is nothing, or `room` bytes are too few for it."""
        if not self.ready:
            return None
        self.agenda.changed(self)
        if self._leave is not None:
            return self._fitting(encode(Leave(self._leave)), room, self._leave_sent)
        if self._pong is not None:
            return self._fitting(encode(Pong(self._pong, load)), room, self._pong_sent)
        if self._urgent:
            first = next(iter(self._urgent))
            return self._fitting(encode(self._urgent[first]), room, lambda: self._urgent_sent(first))
        if self._ping:
            want_pong = self._sequence % PONG_EVERY == 0
            grace_ms = round(max(0.0, self._stalled_until - now) * 1000)
            ping = Ping(self._sequence, want_pong, known.hashes.state, load, grace_ms)
            return self._fitting(encode(ping), room, lambda: self._ping_sent(want_pong, load, now))
        if self._sketches:
            model = next(iter(self._sketches))
            return self._fitting(encode(self._sketches[model]), room, lambda: self._sketch_sent(model))
        delta = self._next_delta(known, now, min(room, MAX_DELTA_BYTES)) if self._delta else None
        return delta or self.repair.next_frame(known.hashes, known.records, now, room)

    def _fitting(self, raw: bytes, room: int, sent: Callable[[], None]) -> bytes | None:
        if len(raw) > room:
            return None
        sent()
        return raw

    def _leave_sent(self) -> None:
        self.begin_close()

    def _pong_sent(self) -> None:
        self._pong = None

    def _urgent_sent(self, which: tuple[type, NodeId]) -> None:
        del self._urgent[which]

    def _ping_sent(self, want_pong: bool, load: tuple[ModelState, ...], now: float) -> None:
        if want_pong:
            self._awaited = (self._sequence, now)
        self._ping, self._last_ping, self._load_sent = False, now, load
        self._sequence += 1

    def _sketch_sent(self, model: tuple[ModelDigest, str]) -> None:
        del self._sketches[model]

    def _next_delta(self, known: Knowledge, now: float, room: int) -> bytes | None:
        if now < self._paid_until - DELTA_BURST_S:
            self._delta, self._delta_at = False, self._paid_until - DELTA_BURST_S
            return None
        deltas: list[RecordDelta] = []
        room -= FRAME_COST
        for origin in [origin for origin, at in self._lacks.items() if at <= now]:
            theirs, news = self._has.get(origin), known.record(origin)
            if news is None or news.version == 0 or (theirs is not None and news.stamp <= theirs):
                del self._lacks[origin]
                continue
            delta = delta_for(news, theirs, room)
            if delta is None:
                break
            room -= delta_size(delta)
            deltas.append(delta)
            self._has[origin] = claim(delta)
            if delta.to_version == news.version:
                del self._lacks[origin]
        self._delta = any(at <= now for at in self._lacks.values())
        self._delta_at = min((at for at in self._lacks.values() if at > now), default=None)
        if not deltas:
            return None
        self._last_delta = now
        raw = encode(Delta(tuple(deltas)))
        self._paid_until = max(self._paid_until, now) + len(raw) / DELTA_BYTES_PER_S
        return raw


def new_link(link: LinkId, hello: Hello, agenda: Agenda, *, addr: str, dialled: bool, now: float) -> Link:
    return Link(
        id=link,
        peer=hello.node,
        hello=hello,
        addr=addr,
        dialled=dialled,
        bucket=Bucket(GOSSIP_BYTES_PER_S, GOSSIP_BURST, now=now),
        probes=Bucket(PROBES_PER_S, SUDDEN, now=now),
        accusations=Bucket(ACCUSATIONS_PER_S, SUDDEN, now=now),
        repair=Repair(now=now),
        agenda=agenda,
        up_at=now,
    )
