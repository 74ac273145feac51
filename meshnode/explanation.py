"""Why a request would go where it goes, as a table for people (pure)."""

from meshnode.names import printable
from meshnode.routing.explain import Explained, Explanation
from meshnode.status import columns

_HEADING = (
    "NODE", "MODEL", "STATE", "ACTIVE/SLOTS", "WAIT", "LOAD", "READ", "WRITE", "LINK", "PENALTY", "FIRST", "END", "OTHERS",
    "SCORE", "NEWS", "WHY",
)  # fmt: skip


def table(found: Explanation) -> str:
    """One line a candidate, the best first; times in seconds. `found` may come from another process: it is made printable."""
    about = f"{found.prompt_tokens} tokens to read, about {found.output_tokens} to write: {printable(found.reason)}"
    terms = "FIRST is the sum of WAIT to PENALTY without WRITE; END adds WRITE; SCORE adds OTHERS, what the others lose by it."
    barred = [printable(f"{each.node_name} is not asked: {each.reason}") for each in found.barred]
    return "\n".join((about, "", columns([_HEADING, *map(_row, found.candidates)]), *barred, "", terms))


def _row(row: Explained) -> tuple[str, ...]:
    told = row.estimate
    times = (
        told.wait,
        told.load,
        told.prefill,
        told.decode,
        told.rtt,
        told.penalty,
        told.first,
        told.finish,
        told.others,
        row.score,
    )
    guessed = "" if row.measured else " (speeds are guessed)"
    return (
        f"{row.node_name}*" if row.local else row.node_name,
        row.model,
        row.state,
        f"{row.active + row.queued}/{row.slots}",
        *(f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}" for seconds in times),
        f"{told.age:.1f}",
        row.verdict + guessed,
    )
