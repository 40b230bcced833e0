"""Logs: fields, JSON off a terminal, repeats counted instead of printed."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from headrace import log as log_module
from headrace.log import REPEATS_MAX, Log, RepeatFilter, TextFormatter, set_up


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    logger = logging.getLogger(log_module.ROOT)
    before = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    set_up("info", stream)
    yield stream
    logger.handlers[:], logger.level, logger.propagate = before


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_off_a_terminal_is_one_json_object_with_its_fields(out: io.StringIO) -> None:
    Log("tier", tier="site").bind(component="lake").warning("sink write failed", error="disk full", rows=3)
    (line,) = lines(out)
    assert line.pop("time")
    assert line == {
        "level": "warning", "logger": "headrace.tier", "message": "sink write failed",
        "tier": "site", "component": "lake", "error": "disk full", "rows": 3,
    }  # fmt: skip


def test_a_field_does_not_hide_what_every_line_has(out: io.StringIO) -> None:
    Log("").info("queue open", level="power", message="x")
    (line,) = lines(out)
    assert (line["level"], line["level_"], line["message"], line["message_"]) == ("info", "power", "queue open", "x")


def test_repeats_are_counted_instead_of_printed(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now)
    log = Log("x")
    for number in range(100):
        log.warning("disk full", number=number)
        log.info("another message") if number == 0 else None
    assert len(lines(out)) == REPEATS_MAX + 1
    now += log_module.REPEATS_WINDOW_S
    log.warning("disk full", number=100)
    assert lines(out)[-1]["repeats_left_out"] == 100 - REPEATS_MAX


def test_a_message_that_goes_on_all_night_is_printed_less_and_less_often_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now)
    repeats = RepeatFilter()
    line = logging.makeLogRecord({"name": "x", "msg": "upkeep failed"})

    def printed(seconds: int) -> int:
        nonlocal now
        count = 0
        for _ in range(2 * seconds):
            count += repeats.filter(line)
            now += 0.5
        return count

    assert printed(10) == REPEATS_MAX
    assert printed(12 * 3600) < 400
    now += 2000
    assert printed(10) == REPEATS_MAX


def test_one_component_that_goes_up_and_down_does_not_hide_another() -> None:
    repeats = RepeatFilter()
    for _ in range(100):
        repeats.filter(logging.makeLogRecord({"name": "x", "msg": "component status", "fields": {"component": "a"}}))
    assert repeats.filter(logging.makeLogRecord({"name": "x", "msg": "component status", "fields": {"component": "b"}}))


def test_the_memory_for_repeats_is_bounded() -> None:
    repeats = RepeatFilter()
    for number in range(5000):
        repeats.filter(logging.makeLogRecord({"name": "x", "msg": f"message {number}"}))
    assert len(repeats._seen) <= 1001


def test_an_exception_brings_its_traceback(out: io.StringIO) -> None:
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        Log("").exception("component failed", error, component="x")
    (line,) = lines(out)
    assert line["error"] == "ZeroDivisionError: by zero"
    assert "Traceback" in str(line["traceback"])


def test_a_terminal_gets_text() -> None:
    record = logging.makeLogRecord({"msg": "started", "levelname": "INFO", "fields": {"pid": 7}})
    assert TextFormatter().format(record).endswith("info    started  pid=7")
