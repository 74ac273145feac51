"""What a model of a folder is called (pure).

By its file's name; should another model of this node have that, by its path below the folder; should that be taken too, with some
digits of its whole path. The path is an alias in any case, so that there is a name which does not depend on what else is there.
Two nodes that call different weights alike are told apart by digest (design D23).
"""

import hashlib
import itertools
import os
from collections.abc import Collection
from pathlib import Path

from meshnode.names import fit

MAX_NAME = 64
MAX_ALIAS = 96
"""So 64 models fit into a record."""


def name_of(path: Path, label: str, taken: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """The name and the aliases of the model `path`, which lies at `label` below its folder; none of them is among `taken`."""
    parts = [part for part in map(fit, label.split("/")) if part] or ["model"]
    stem, long = fit(label.rpartition("/")[2], MAX_NAME) or "model", "/".join(parts)[-MAX_ALIAS:]
    digits = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    more = (f"{stem[: MAX_NAME - 12]}-{digits}{'-' * bool(number)}{number or ''}" for number in itertools.count())
    name = next(each for each in itertools.chain((stem, long), more) if each not in taken)
    return name, () if long == name or long in taken else (long,)
