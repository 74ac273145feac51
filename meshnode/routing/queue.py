"""Who is next at a node whose slots are taken, and who had better not wait (pure).

Three classes: as long as a more urgent one has somebody waiting, it is served, but for whoever has waited for `STARVED_S`. Inside
a class callers take turns by the work that they bring, not by the number of their requests (deficit round robin, Shreedhar and
Varghese 1996): who sends a hundred long prompts waits for his own, and others hardly notice.

The queue is bounded in length and in time. Whoever is refused is told when it would be worth coming back, by the same figures
that refused him. Work is in seconds, as the node would take for it alone; `rate` is how much of that it gets done in a second.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator

from meshnode.errors import Overloaded
from meshnode.inference import Priority

MAX_LENGTH = 64
MAX_WAIT_S = 60.0
"""A client that waits longer has mostly gone, and there are other nodes."""
QUANTUM_S = 1.0
"""Work that a caller may bring more in each round: about one short request."""
STARVED_S = 30.0
RETRY_LEAST_S, RETRY_MOST_S = 1.0, 120.0
"""What the official clients honour."""


class Ticket:
    """A request that waits. `deadline`: when its answer must be complete; None: whenever."""

    __slots__ = ("caller", "deadline", "priority", "since", "work_s")

    def __init__(self, *, priority: Priority, caller: str, work_s: float, since: float, deadline: float | None) -> None:
        self.priority = priority
        self.caller = caller
        self.work_s = work_s
        self.since = since
        self.deadline = deadline


class _Line:
    """The tickets of one caller in one class, and the work that he may bring now."""

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque()
        self.deficit = 0.0

    def rounds(self) -> int:
        """Until his first one may go."""
        return max(0, math.ceil((self.tickets[0].work_s - self.deficit) / QUANTUM_S))


class Queue:
    def __init__(self, *, max_length: int = MAX_LENGTH, max_wait_s: float = MAX_WAIT_S) -> None:
        self._max_length = max_length
        self._max_wait_s = max_wait_s
        self._classes: dict[Priority, OrderedDict[str, _Line]] = {priority: OrderedDict() for priority in Priority}
        """Callers in the order of their turns."""

    def __len__(self) -> int:
        return sum(1 for _ in self._waiting())

    def _waiting(self) -> Iterator[Ticket]:
        return (ticket for lines in self._classes.values() for line in lines.values() for ticket in line.tickets)

    def wait_s(self, priority: Priority, *, running_s: float, rate: float) -> float:
        """What a newcomer of that class would wait: for what runs, and for all that is as urgent as he or more."""
        ahead = sum(ticket.work_s for ticket in self._waiting() if ticket.priority <= priority)
        return (running_s + ahead) / rate

    def add(self, ticket: Ticket, *, running_s: float, rate: float, now: float) -> None:
        """Let it wait. `running_s`: what is left of the work in the slots. Raises Overloaded, and has changed nothing then."""
        wait = self.wait_s(ticket.priority, running_s=running_s, rate=rate)
        length = len(self)
        if length >= self._max_length:
            raise _refusal(f"{length} requests wait here already", wait / (length + 1))
        if wait > self._max_wait_s:
            raise _refusal(
                f"a request would wait for {wait:.0f} s here; at most {self._max_wait_s:.0f} s", wait - self._max_wait_s
            )
        if ticket.deadline is not None and (late := now + wait + ticket.work_s - ticket.deadline) > 0:
            raise _refusal(f"the answer would be {late:.0f} s later than the caller waits", late)
        self._classes[ticket.priority].setdefault(ticket.caller, _Line()).tickets.append(ticket)

    def next(self, now: float) -> Ticket | None:
        """Take out the one whose turn it is; None when nobody waits."""
        starved = min(
            (ticket for ticket in self._waiting() if now - ticket.since >= STARVED_S),
            key=lambda ticket: ticket.since,
            default=None,
        )
        if starved:
            self.remove(starved)
            return starved
        lines = next((lines for lines in self._classes.values() if lines), None)
        if lines is None:
            return None
        rounds = {caller: line.rounds() for caller, line in lines.items()}
        caller = min(rounds, key=lambda caller: rounds[caller])  # the first of those that may go soonest
        for line in lines.values():
            line.deficit += rounds[caller] * QUANTUM_S
        return self._take(lines, caller)

    def _take(self, lines: OrderedDict[str, _Line], caller: str) -> Ticket:
        line = lines[caller]
        ticket = line.tickets.popleft()
        line.deficit -= ticket.work_s
        if not line.tickets:
            del lines[caller]  # with what he had left: nobody saves up
        elif line.rounds():
            lines.move_to_end(caller)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Its client is gone. One that waits no longer is none of ours."""
        lines = self._classes[ticket.priority]
        line = lines.get(ticket.caller)
        if line and ticket in line.tickets:
            line.tickets.remove(ticket)
            if not line.tickets:
                del lines[ticket.caller]

    def take_late(self, now: float) -> list[Ticket]:
        """Take out those that can no longer be answered in time, whoever's turn it is."""
        late = [ticket for ticket in self._waiting() if ticket.deadline is not None and now + ticket.work_s > ticket.deadline]
        for ticket in late:
            self.remove(ticket)
        return late

    def next_late(self) -> float | None:
        """When `take_late` will find the next one; None: never, as it is."""
        return min((ticket.deadline - ticket.work_s for ticket in self._waiting() if ticket.deadline is not None), default=None)


def _refusal(why: str, retry_after: float) -> Overloaded:
    return Overloaded(
        f"This node is busy: {why}.", retry_after=min(RETRY_MOST_S, max(RETRY_LEAST_S, float(math.ceil(retry_after))))
    )
