import io
import json
import logging
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from meshnode import logs
from meshnode.errors import ConfigurationError


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "meshnode.mesh", "levelname": "INFO", "msg": message, "created": 12.5, "msecs": 500.0})
    vars(made).update(extra)
    return made


class Evil:
    def __str__(self) -> str:
        return "\x1b[2J"


class Paused(io.StringIO):
    """A terminal that someone paused: it takes no line until `resume` is set; `reached` tells that one is being written."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.resume = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.resume.wait()
        return super().write(text)


def test_a_line_for_people_has_the_date_because_the_file_lives_for_days() -> None:
    line = logs.TextFormatter().format(record("hello", status=200))

    assert line.startswith(("1969-12-31 ", "1970-01-01 "))
    assert line.endswith(".500 INFO mesh: hello status=200")


def test_control_characters_from_a_peer_never_reach_the_terminal() -> None:
    line = logs.TextFormatter().format(record("name \x1b[31mred\nFAKE LINE", reason="a\x07b", thing=Evil()))

    assert "\x1b" not in line
    assert "\n" not in line
    assert "INFO mesh: name  [31mred FAKE LINE reason=a b thing=[2J" in line


def test_json_lines_carry_the_extra_fields() -> None:
    line = json.loads(logs.JsonFormatter().format(record("hello", status=200, thing=Evil())))

    assert line == {"time": 12.5, "level": "info", "logger": "meshnode.mesh", "message": "hello", "status": 200, "thing": "[2J"}


def test_an_extra_field_cannot_pose_as_one_of_the_line() -> None:
    assert json.loads(logs.JsonFormatter().format(record("hello", level="critical")))["level"] == "info"


def test_a_traceback_is_kept_without_its_control_characters() -> None:
    try:
        raise ValueError("bad \x1b[2J")
    except ValueError as error:
        made = record("it broke", exc_info=(type(error), error, error.__traceback__))

    text = logs.TextFormatter().format(made)
    assert "ValueError: bad  [2J" in text
    assert "\n  File " in text
    assert "ValueError: bad  [2J" in json.loads(logs.JsonFormatter().format(made))["traceback"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_lines_go_to_standard_error_and_to_a_private_file(style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs.logging_to(tmp_path, level="info", style=style) as file:
        logging.getLogger("meshnode.test").info("ours")
        logging.getLogger("meshnode.test").debug("too fine")
        logging.getLogger("library").info("chatter")
        logging.getLogger("library").warning("a library's warning")

    for text in (file.read_text(), capsys.readouterr().err):
        assert "ours" in text
        assert "a library's warning" in text
        assert "too fine" not in text
        assert "chatter" not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_nothing_is_logged_after_the_block(tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    with logs.logging_to(tmp_path, level="debug", style="text") as file:
        pass
    logging.getLogger("meshnode.test").warning("late")

    assert file.read_text() == ""
    assert logging.getLogger().handlers == handlers


def test_the_file_rotates_and_its_successors_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 200)
    with logs.logging_to(tmp_path, level="info", style="text"):
        for number in range(100):
            logging.getLogger("meshnode.test").info("line %d", number)

    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["meshnode.log", *(f"meshnode.log.{number}" for number in range(1, 5))]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_terminal_that_takes_no_lines_stops_neither_the_caller_nor_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Paused()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logs, "_WAITING_LINES", 4)
    with logs.logging_to(tmp_path, level="info", style="text") as file:
        logging.getLogger("meshnode.test").info("first")
        assert terminal.reached.wait(5)
        for number in range(10):
            logging.getLogger("meshnode.test").info("line %d", number)

        assert file.read_text().count("\n") == 11
        terminal.resume.set()

    assert terminal.getvalue().count("INFO") == 5
    assert "6 lines did not reach this terminal" in terminal.getvalue()


def test_a_terminal_that_is_gone_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    gone = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", gone)
    with logs.logging_to(tmp_path, level="info", style="text") as file:
        logging.getLogger("meshnode.test").info("heard by nobody")

    assert "heard by nobody" in file.read_text()
    with pytest.raises(BrokenPipeError):
        gone.close()


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / logs.FILE_NAME).mkdir()

    with (
        pytest.raises(ConfigurationError, match=str(tmp_path / logs.FILE_NAME)),
        logs.logging_to(tmp_path, level="info", style="text"),
    ):
        raise AssertionError("never reached")
