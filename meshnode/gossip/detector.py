"""Who is gone: from our own silence to a verdict that others share (pure; SPEC: liveness).

Theory of operation. A peer that we do not hear (its link is silent for three seconds, or is gone) is not routable at once, for us
alone: `view` sees to that. Here begins what concerns everybody:

    unheard --probe three others--> one hears it: our link is the trouble; ask again in 5 s
                                --> none does: *suspect*; accuse it to everyone, and wait 6 to 15 s
    suspect --it is heard, or refutes by a higher incarnation--> nothing was
            --the wait is over, and somebody else accuses too (in a mesh of four or more)--> *down*
    refused (its link broke and its host refuses a new one): two others find the same, half a second passes --> *down*

The wait is short when many do not hear it: max - (max - min) * log(C + 1) / log(K + 1) for C others who accuse it or answered
our probe by silence, K = min(3, N - 2) for N members (Lifeguard's formula, with a constant minimum: our news spreads in 0.1 s at
every size). In a mesh of two there is nobody to ask, and our own evidence decides.

What protects the innocent: any frame of it ends everything; three others have to be deaf as well; whoever hears it passes the
accusation on, so that it can refute; while we suspect we ask somebody each second what he knows (`questions`); and who is slow
himself waits longer (`lag`).

Everything here is about one life of a node, (epoch, incarnation): a refutation or a new start makes it void.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode.gossip.knowledge import Knowledge
from meshnode.gossip.lag import Lag
from meshnode.names import NodeId
from meshnode.wire.messages import Accuse, Found

PROBES = 3
PROBE_S = 1.0
JITTER_S = 0.2
"""So that not all accuse at once: three accusations are as good as sixty."""
RECHECK_S = 5.0
SUSPICION_MIN_S = 6.4
SUSPICION_MAX_S = 15.0
"""Three seconds of silence, an answer, and 6.4 more: down within ten seconds. The last frame may be a second older than a stop:
with less, a pause of eight seconds was called down."""
ASK_EVERY_S = 1.0
REFUSED_S = 0.5
REFUSALS_ALONE, REFUSED_ALONE_S = 3, 0.6
"""In a mesh of two: so many redials that are refused, over so long (a host may have several addresses, tried at once)."""
ENOUGH_ACCUSERS = 3
MAX_ACCUSERS = 64

Stage = tuple[int, int]
"""Epoch and incarnation."""


@dataclass
class Case:
    """What there is against a node that we do not hear."""

    stage: Stage
    act_at: float
    """When the next step is due."""
    asked: dict[NodeId, Found | None] = field(default_factory=dict)
    """Whom we probed last, and what he found."""
    probing_until: float | None = None
    asked_at: float = 0.0
    """When we asked others last. The wait counts from then: lost packets may hold up their answers, and not the verdict."""
    accuses: bool = False
    """Whether we accuse it ourselves."""
    ask_at: float = math.inf
    refusals: int = 0
    refused_at: float | None = None
    """When its host first refused our redial."""
    accusers: dict[NodeId, bool] = field(default_factory=dict)
    """Who else accuses it; whether its host refused him."""

    @property
    def is_answered(self) -> bool:
        return None not in self.asked.values()

    @property
    def is_heard_elsewhere(self) -> bool:
        return Found.HEARD in self.asked.values()

    @property
    def deaf(self) -> set[NodeId]:
        """Who else does not hear it: by accusing it, or by answering our last probe."""
        return {teller for teller, found in self.asked.items() if found in (Found.SILENT, Found.REFUSED)} | self.accusers.keys()

    @property
    def refused_others(self) -> int:
        """How many others found that its host refuses connections."""
        by_probe = {teller for teller, found in self.asked.items() if found is Found.REFUSED}
        return len(by_probe | {accuser for accuser, refused in self.accusers.items() if refused})


class Detector:
    """Cases against nodes. Its owner says what is heard and what is not, sends what `outbox` and `questions` hold, and calls down
    whom `tick` returns. `helpers` gives the nodes that we hear, except one; `size` how many members there are."""

    def __init__(
        self,
        known: Knowledge,
        lag: Lag,
        rng: random.Random,
        *,
        helpers: Callable[[NodeId], list[NodeId]],
        size: Callable[[], int],
    ) -> None:
        self.outbox: list[tuple[NodeId, NodeId | Accuse]] = []
        """(to whom, what): a probe about a node, or an accusation."""
        self.questions: list[tuple[NodeId, NodeId]] = []
        """(whom, about whom): whose account of a suspect to pull."""
        self._known = known
        self._lag = lag
        self._rng = rng
        self._helpers = helpers
        self._size = size
        self._cases: dict[NodeId, Case] = {}
        self._verdicts: dict[NodeId, str] = {}

    # What happens

    def unheard(self, node: NodeId, *, at: float) -> None:
        """We do not hear `node` any more; ask others about it from `at` on."""
        if self._may_be_there(node):
            self._case(node, at)

    def heard(self, node: NodeId) -> None:
        """A frame of it came: nothing was."""
        self._cases.pop(node, None)
        self._verdicts.pop(node, None)

    def refused(self, node: NodeId, now: float) -> int:
        """Its host refuses a connection, though there was a link before. Returns how often that was."""
        if not self._may_be_there(node):
            return 0
        case = self._case(node, now)
        case.refusals += 1
        if case.refused_at is None:
            case.refused_at = now
            self._probe(node, case, now)
            self._accuse(node, case, now)
        self._plan(case, now)
        return case.refusals

    def found(self, teller: NodeId, node: NodeId, found: Found, now: float) -> None:
        """`teller` answers our probe. What nobody asked is ignored."""
        case = self._cases.get(node)
        if case is not None and teller in case.asked:
            case.asked[teller] = found
            self._plan(case, now)

    def accused(self, accuser: NodeId, accusation: Accuse, now: float) -> None:
        """Somebody accuses a node that we do not hear either."""
        node, stage = accusation.target, (accusation.epoch, accusation.incarnation)
        if not self._may_be_there(node) or self._stage(node) != stage:
            return
        case = self._case(node, now + RECHECK_S)
        if accuser in case.accusers or len(case.accusers) < MAX_ACCUSERS:
            case.accusers[accuser] = case.accusers.get(accuser, False) or accusation.refused
            self._plan(case, now)

    def forget(self, node: NodeId) -> None:
        """It is buried."""
        self.heard(node)

    def excuse(self, now: float) -> None:
        """We were stopped: whatever we held against others may have been our own absence."""
        self._cases = {node: Case(stage=case.stage, act_at=now + PROBE_S) for node, case in self._cases.items()}

    # What is known

    def is_suspect(self, node: NodeId) -> bool:
        case = self._cases.get(node)
        return case is not None and case.stage == self._stage(node) and case.accuses

    def accused_by_us(self) -> list[NodeId]:
        return [node for node in self._cases if self.is_suspect(node)]

    def evidence(self, node: NodeId) -> str:
        """In words; empty when there is none but our own silence."""
        case = self._cases.get(node)
        return self._verdicts.get(node) or (_words(case) if case else "")

    def accusation(self, node: NodeId) -> Accuse | None:
        """What `node` has to refute, by our account."""
        record, case = self._known.record(node), self._cases.get(node)
        if record is None or record.left or not (record.down or (case and case.accuses)):
            return None
        return Accuse(node, record.epoch, record.incarnation, bool(case and case.refused_at is not None))

    # Time

    def deadline(self) -> float:
        return min((min(case.act_at, case.ask_at) for case in self._cases.values()), default=math.inf)

    def tick(self, now: float) -> list[NodeId]:
        """Do what is due. Returns the nodes that are down by our own judgement."""
        for node, case in list(self._cases.items()):
            if not self._may_be_there(node):
                del self._cases[node]  # it left, or others have come to the same verdict
                self._verdicts[node] = _words(case)
            elif case.stage != self._stage(node):
                self._cases[node] = Case(stage=self._stage(node), act_at=now + RECHECK_S)
            elif case.ask_at <= now:
                self._ask(node, case, now)
        return [node for node, case in list(self._cases.items()) if self._act(node, case, now)]

    # How it is done

    def _may_be_there(self, node: NodeId) -> bool:
        record = self._known.record(node)
        return record is not None and not record.left and not record.down

    def _stage(self, node: NodeId) -> Stage:
        record = self._known.beliefs[node].record
        return record.epoch, record.incarnation

    def _case(self, node: NodeId, at: float) -> Case:
        """The case against this stage of its life; a new one begins at `at`."""
        case = self._cases.get(node)
        if case is None or case.stage != self._stage(node):
            case = self._cases[node] = Case(stage=self._stage(node), act_at=at)
        return case

    def _act(self, node: NodeId, case: Case, now: float) -> bool:
        """Every step that is due: a few at most, since each but the last makes the next due later. Whether one is the verdict."""
        while case.act_at <= now:
            if self._step(node, case, now):
                return True
        return False

    def _step(self, node: NodeId, case: Case, now: float) -> bool:
        if self._is_proven(case, now) or self._is_settled(case, now):
            self._verdicts[node] = _words(case)
            del self._cases[node]
            return True
        if case.probing_until is not None:
            self._conclude(node, case, now)
        elif not case.accuses:
            self._probe(node, case, now)
        elif now >= self._verdict_at(case):
            self._rest(case, now)  # alone with it: perhaps it is we who are cut off
        self._plan(case, now)
        return False

    def _plan(self, case: Case, now: float) -> None:
        """Set when the next step is due."""
        if case.probing_until is not None:
            case.act_at = now if case.is_answered else case.probing_until
        elif case.accuses:
            case.act_at = max(now, self._verdict_at(case))
        if case.refused_at is not None:
            hard_at = case.refused_at + REFUSED_S * self._lag.factor
            case.act_at = min(case.act_at, hard_at) if now < hard_at else now if self._is_proven(case, now) else case.act_at

    def _probe(self, node: NodeId, case: Case, now: float) -> None:
        helpers = self._helpers(node)
        chosen = self._rng.sample(helpers, min(PROBES, len(helpers)))
        case.asked, case.asked_at = dict.fromkeys(chosen), now
        case.probing_until = now + (PROBE_S * self._lag.factor + self._rng.uniform(0, JITTER_S) if chosen else 0.0)
        self.outbox += [(helper, node) for helper in chosen]

    def _conclude(self, node: NodeId, case: Case, now: float) -> None:
        case.probing_until = None
        if case.is_heard_elsewhere:
            self._rest(case, now)
        elif not case.accuses:
            self._accuse(node, case, now)

    def _rest(self, case: Case, now: float) -> None:
        """Nothing more for now; ask again later."""
        case.accuses, case.ask_at, case.refused_at, case.refusals = False, math.inf, None, 0
        case.act_at = now + RECHECK_S

    def _accuse(self, node: NodeId, case: Case, now: float) -> None:
        """Once three others have said it, a further voice adds nothing."""
        case.accuses, case.ask_at = True, now + ASK_EVERY_S
        if len(case.accusers) < ENOUGH_ACCUSERS:
            accusation = Accuse(node, *case.stage, case.refused_at is not None)
            self.outbox += [(helper, accusation) for helper in self._helpers(node)]

    def _ask(self, node: NodeId, case: Case, now: float) -> None:
        case.ask_at = now + ASK_EVERY_S
        if helpers := self._helpers(node):
            self.questions.append((self._rng.choice(helpers), node))

    def _is_proven(self, case: Case, now: float) -> bool:
        """The hard evidence: its host itself says that nothing listens there any more, to us and to others."""
        if case.refused_at is None or case.is_heard_elsewhere:
            return False
        if self._size() <= 2:
            return case.refusals >= REFUSALS_ALONE and now >= case.refused_at + REFUSED_ALONE_S
        enough = case.refused_others >= min(2, self._size() - 2)
        return enough and now >= case.refused_at + REFUSED_S * self._lag.factor

    def _is_settled(self, case: Case, now: float) -> bool:
        """The soft evidence: nobody heard it for long enough."""
        if not case.accuses or case.probing_until is not None or case.is_heard_elsewhere:
            return False
        if now < self._verdict_at(case):
            return False
        return bool(case.accusers) or self._size() < 4

    def _verdict_at(self, case: Case) -> float:
        most = min(PROBES, self._size() - 2)
        share = math.log(min(len(case.deaf), most) + 1) / math.log(most + 1) if most > 0 else 1.0
        return case.asked_at + (SUSPICION_MAX_S - (SUSPICION_MAX_S - SUSPICION_MIN_S) * share) * self._lag.factor


def _words(case: Case) -> str:
    asked, hearing = len(case.asked), sum(found is Found.HEARD for found in case.asked.values())
    parts = ["its host refuses connections"] if case.refused_at is not None else []
    if hearing:
        parts.append(f"{hearing} of {asked} others hear it")
    elif asked:
        parts.append(f"{asked} of {asked} probes silent")
    if others := len(case.accusers):
        parts.append(f"{others} other{'s' * (others > 1)} accuse{'s' * (others == 1)} it")
    if case.accuses and not asked:
        parts.append("nobody else to ask")
    return "; ".join(parts)
