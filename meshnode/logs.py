"""Logging: lines for people or JSON, on standard error and in a rotating file in the data directory.

The event loop logs, so logging must not stop it. A file takes a line in microseconds; a terminal that someone paused, or a pipe
that nobody reads, takes none for hours, and the mesh would think this node dead. So standard error is written by a thread, from
a bounded queue that loses lines, and says how many, rather than wait. The file has them all, up to the last before a crash.
"""

import json
import logging
import logging.handlers
import os
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from threading import Thread
from typing import TextIO

from meshnode.errors import ConfigurationError
from meshnode.names import printable

FILE_NAME = "meshnode.log"
_FILE_BYTES = 2 * 1024 * 1024
_OLD_FILES = 4
"""10 MiB in all: some days of a busy node, and nothing that fills a disk."""
_LINE_LIMIT = 4000
_WAITING_LINES = 10_000
_FLUSH_S = 1.0
"""How long the end of the program waits for a terminal that takes no lines."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO mesh: text key=value`; control characters never reach a terminal (security rule 23)."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        logger = record.name.removeprefix("meshnode.")
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        return f"{clock}.{int(record.msecs):03d} {record.levelname} {logger}: {_text(record)}{extra}{_traceback(self, record)}"


class JsonFormatter(logging.Formatter):
    """One object a line: time (Unix seconds), level, logger, message, then whatever `extra` the caller gave."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record),
        }
        if trace := _traceback(self, record):
            line["traceback"] = trace.strip()
        return json.dumps(_extra(record) | line)


def _text(record: logging.LogRecord) -> str:
    return printable(record.getMessage(), _LINE_LIMIT)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """Numbers stay numbers; all else is text, for who knows what an object prints."""
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return {key: value if isinstance(value, int | float | None) else printable(str(value)) for key, value in given.items()}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """A bug's traceback keeps its lines, each without control characters."""
    if not record.exc_info:
        return ""
    lines = formatter.formatException(record.exc_info).splitlines()
    return "".join(f"\n{line[: len(line) - len(line.lstrip())]}{printable(line)}" for line in lines)


class PatientStream(logging.Handler):
    """Lines to `stream` from a thread, so that a stream that takes none holds up nobody."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING_LINES)
        self._lost = 0
        self._thread = Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1
        except Exception:  # a wrong format string is a bug, and shown as logging shows it; it never ends the caller
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, for at most two seconds; a stream that is still stuck then is left."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=_FLUSH_S)  # a full queue may be one that just began to move
            self._thread.join(_FLUSH_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            note = f"({lost} lines did not reach this terminal; the log file has them)\n" if lost else ""
            with suppress(OSError, ValueError):  # nobody is there any more; the file has the lines
                self._stream.write(f"{line}\n{note}")
                self._stream.flush()


class _PrivateFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(
            open(self.baseFilename, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)), encoding="utf-8", newline="\n"
        )


@contextmanager
def logging_to(directory: Path, *, level: str, style: str) -> Iterator[Path]:
    """Inside the block, log to standard error and to the file that is yielded; leaving it writes out what waits.

    `level` is ours alone: of libraries, warnings are enough.
    """
    handlers = (_file_handler(directory / FILE_NAME), PatientStream(sys.stderr))
    root, ours = logging.getLogger(), logging.getLogger("meshnode")
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
        root.addHandler(handler)
    ours.setLevel(level.upper())
    try:
        yield directory / FILE_NAME
    finally:
        ours.setLevel(logging.NOTSET)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _file_handler(path: Path) -> logging.Handler:
    try:
        return _PrivateFile(path, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}.", hint="The log must be a file that you own.") from error
