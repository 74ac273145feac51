import json
import logging
import stat
from pathlib import Path

import pytest

from meshnode import logs


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "meshnode.mesh", "levelname": "INFO", "msg": message, "created": 12.5, "msecs": 500.0})
    vars(made).update(extra)
    return made


def test_control_characters_from_a_peer_never_reach_the_terminal() -> None:
    line = logs.TextFormatter().format(record("name \x1b[31mred\nFAKE LINE", reason="a\x07b"))

    assert "\x1b" not in line
    assert "\n" not in line
    assert "INFO mesh: name  [31mred FAKE LINE reason=a b" in line


def test_json_lines_carry_the_extra_fields() -> None:
    line = json.loads(logs.JsonFormatter().format(record("hello", status=200)))

    assert line == {"time": 12.5, "level": "info", "logger": "meshnode.mesh", "message": "hello", "status": 200}


def test_a_traceback_is_kept() -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        made = record("it broke", exc_info=(type(error), error, error.__traceback__))

    assert "ValueError: bad" in logs.TextFormatter().format(made)
    assert "ValueError: bad" in json.loads(logs.JsonFormatter().format(made))["traceback"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_lines_go_to_standard_error_and_to_a_private_file(style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = logs.configure(level="info", style=style, directory=tmp_path)
    try:
        logging.getLogger("meshnode.test").info("seen")
        logging.getLogger("meshnode.test").debug("not seen")

        for text in (file.read_text(), capsys.readouterr().err):
            assert "seen" in text
            assert "not seen" not in text
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        for handler in logging.getLogger("meshnode").handlers[:]:
            handler.close()
            logging.getLogger("meshnode").removeHandler(handler)
        logging.getLogger("meshnode").propagate = True
