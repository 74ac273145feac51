"""What a node's record says of its remotes and their models, and what it has room for (pure).

A record that grows beyond its limits costs the node its links, and a remote may list thousands of models. So each value has a
slot of its own, named by number: models and remotes that come and go leave no trail of removed keys.
"""

from collections.abc import Iterable, Sequence

import msgspec

from meshnode.gossip.member import Bridged, Model
from meshnode.gossip.view import MODEL, REMOTE
from meshnode.names import printable
from meshnode.wire.codec import encode_value

MAX_MODELS = 96
MODEL_BYTES = 16 * 1024
"""Half of what a record may hold."""
REMOTE_BYTES = 8 * 1024
_KEY_COST = 40
_MAX_LEFT_OUT = 12
_MAX_WORDS = 160


def models(offered: Iterable[Model]) -> dict[str, bytes]:
    """The first that fit, by their keys."""
    room = MODEL_BYTES
    values: dict[str, bytes] = {}
    for model in offered:
        value = encode_value(model)
        room -= len(value) + _KEY_COST
        if room < 0 or len(values) >= MAX_MODELS:
            break
        values[f"{MODEL}bridged-{len(values)}"] = value
    return values


def remotes(facts: Sequence[Bridged]) -> dict[str, bytes]:
    """All of them, in words as short as there is room for."""
    share = REMOTE_BYTES // max(1, len(facts)) - _KEY_COST
    return {f"{REMOTE}{number}": _fitting(each, share) for number, each in enumerate(facts)}


def _fitting(facts: Bridged, room: int) -> bytes:
    left_out = [(printable(what, 64), printable(why, _MAX_WORDS)) for what, why in facts.left_out[:_MAX_LEFT_OUT]]
    words = _MAX_WORDS
    while True:
        told = msgspec.structs.replace(facts, left_out=tuple(left_out), reason=printable(facts.reason, words))
        value = encode_value(told)
        if len(value) <= room or not words:
            return value
        if left_out:
            left_out.pop()
        else:
            words //= 2
