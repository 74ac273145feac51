"""One step of the set-up: a command that may take minutes, run with a ticking line and a log, or a clear reason why not."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".build"
LAST_LINES = 20
QUIET_TICK_S = 15
"""How often a step reports where there is no terminal, as in CI: often enough to show life, rarely enough to read."""
_NINJA = re.compile(rb"\[(\d+/\d+)\]")


def say(text: str) -> None:
    """To standard error: standard output belongs to the command that is run in the end."""
    print(f"meshnode: {text}", file=sys.stderr, flush=True)


def give_up(text: str) -> NoReturn:
    say(text)
    sys.exit(1)


def run_step(title: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """Runs `command` to its end; on failure shows the end of its log, names the file, and leaves with exit code 1."""
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"{re.sub(r'[^a-z0-9]+', '-', title.lower())}.log"
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=ROOT, start_new_session=True
        )
    try:
        _tick(title, process, log, begun)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)  # the compilers too, which are its grandchildren
        process.wait()
        raise
    if process.returncode != 0:
        give_up("\n".join([f"{title} failed. The end of {log}:", *(f"    {line}" for line in _last_lines(log))]))
    say(f"{title}: done in {time.monotonic() - begun:.0f} s")


def _tick(title: str, process: subprocess.Popen[bytes], log: Path, begun: float) -> None:
    """Waits for `process`, and says how far it is: on one line that changes, or now and then where there is no terminal."""
    terminal = sys.stderr.isatty()
    say(title)
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1 if terminal else QUIET_TICK_S)
            if terminal:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            return
        line = f"  {time.monotonic() - begun:4.0f} s {_ninja_progress(log)}"
        print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)


def _last_lines(log: Path) -> list[str]:
    """The end of what the command itself wrote: pip's own account of a failed build says nothing that helps."""
    text, _, _ = log.read_text(errors="replace").partition("error: subprocess-exited-with-error")
    return text.rstrip().splitlines()[-LAST_LINES:]


def _ninja_progress(log: Path) -> str:
    """The newest `[3/82]` near the end of the log, or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        found = _NINJA.findall(file.read())
    return f"[{found[-1].decode()}]" if found else ""
