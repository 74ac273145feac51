"""Logging: lines for people or JSON on standard error, and a rotating file in the data directory."""

import json
import logging
import logging.handlers
import os
import sys
import time
from pathlib import Path

from meshnode.names import printable

_LINE_LIMIT = 4000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class TextFormatter(logging.Formatter):
    """`12:00:00.123 INFO mesh: text`; control characters never reach the terminal, whoever sent them (security rule 23)."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        logger = record.name.removeprefix("meshnode.")
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        return f"{clock}.{int(record.msecs):03d} {record.levelname} {logger}: {_text(record)}{extra}{_traceback(self, record)}"


class JsonFormatter(logging.Formatter):
    """One object a line: time (Unix seconds), level, logger, message, then whatever `extra` the caller gave."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record),
        }
        if trace := _traceback(self, record):
            line["traceback"] = trace.strip()
        return json.dumps(line | _extra(record), default=str)


def _text(record: logging.LogRecord) -> str:
    return printable(record.getMessage(), _LINE_LIMIT)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {
        key: printable(value) if isinstance(value, str) else value for key, value in vars(record).items() if key not in _STANDARD
    }


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """A bug's traceback keeps its lines, each without control characters."""
    if not record.exc_info:
        return ""
    lines = formatter.formatException(record.exc_info).splitlines()
    return "".join(f"\n{line[: len(line) - len(line.lstrip())]}{printable(line)}" for line in lines)


class _PrivateFile(logging.handlers.RotatingFileHandler):
    def _open(self):  # type: ignore[no-untyped-def]  # the base class's own type is private to typeshed
        return open(self.baseFilename, self.mode, encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600))


def configure(*, level: str, style: str, directory: Path) -> Path:
    """Log to standard error and to a file in `directory` (5 files of 2 MiB); returns the file's path."""
    file = directory / "meshnode.log"
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stderr),
        _PrivateFile(file, maxBytes=2 * 1024 * 1024, backupCount=4, encoding="utf-8"),
    ]
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger("meshnode")
    root.handlers[:] = handlers
    root.setLevel(level.upper())
    root.propagate = False
    return file
