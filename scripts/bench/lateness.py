"""A meshnode whose event loop is watched: `lateness.py FILE up ...` writes to FILE how late each sleep of 1 ms ended, in seconds.

What is there when the node ends is all that was measured.
"""

import sys
from functools import partial
from pathlib import Path

import trio

from meshnode import node
from meshnode.cli.main import main
from meshnode.start import Start

SLEEP_S = 0.001


async def _watch(path: Path) -> None:
    with path.open("w", buffering=1) as file:
        while True:
            due = trio.current_time() + SLEEP_S
            await trio.sleep_until(due)
            file.write(f"{trio.current_time() - due:.6f}\n")


_node_run = node.run


async def _run(path: Path, start: Start) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, path)
        await _node_run(start)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    node.run = partial(_run, Path(sys.argv[1]))  # the node's main task, with a watch beside it
    sys.exit(main(sys.argv[2:]))
