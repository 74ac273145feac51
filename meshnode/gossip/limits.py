"""How much of our memory and time others may take (pure). A breach closes the link with 4429; the peer may return in a minute."""

from meshnode.errors import PeerError
from meshnode.gossip.record import Record

MAX_RECORDS = 8192
"""By hearsay; as many again have room for nodes that were linked with us."""
MAX_RECORD_BYTES = 32 * 1024
MAX_TOTAL_BYTES = 64 * 1024 * 1024
MAX_KEYS = 256
MAX_VALUE_BYTES = 8 * 1024
"""A model's facts take about 150 bytes; the largest value planned is a prefix sketch of some KiB."""
NEW_IDS_PER_S = 50.0
NEW_IDS_BURST = 1024.0
"""What a joining node may be told at once: a mesh of 64, and the many identities that short-lived nodes leave behind. A guess."""
TELLERS = 256
"""Whose rate of new nodes is remembered: four times the peers that a node can be linked with."""
GOSSIP_BYTES_PER_S = 1024.0 * 1024
GOSSIP_BURST = 4 * GOSSIP_BYTES_PER_S
FRAME_COST = 256
"""Bytes that a smaller frame counts as: handling it costs as much. That makes 4096 frames a second, where honest ones are ten."""
DIGESTS_PER_S = 2.0
PULLS_PER_S = 4.0
"""Four times what an honest node sends. Each can be answered by many times its own bytes, which is why they are counted."""
PROBES_PER_S = 20.0
ACCUSATIONS_PER_S = 50.0
SUDDEN = 256.0
"""So many of either at once: half of a large mesh may vanish in one moment, and all the others ask and say so."""
PENALTY_S = 60.0
TOO_MUCH = 4429


class Bucket:
    """A token bucket that starts full."""

    def __init__(self, rate: float, burst: float, *, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, amount: float, *, now: float) -> bool:
        """Whether there was `amount` left; takes nothing if not."""
        self._left = min(self._burst, self._left + self._rate * (now - self._at))
        self._at = now
        if amount > self._left:
            return False
        self._left -= amount
        return True


def breach(what: str) -> PeerError:
    return PeerError(what, close_code=TOO_MUCH)


def fault(record: Record) -> str | None:
    """Which limit `record` breaks, if any."""
    if len(record.entries) > MAX_KEYS:
        return f"a record of more than {MAX_KEYS} keys"
    if any(len(entry.value or b"") > MAX_VALUE_BYTES for entry in record.entries.values()):
        return f"a record's value of more than {MAX_VALUE_BYTES} bytes"
    if record.size > MAX_RECORD_BYTES:
        return f"a record of more than {MAX_RECORD_BYTES} bytes"
    return None
