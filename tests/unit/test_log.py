"""The log: where it goes, in which form, what it costs, and what it never shows."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from outboxd import log

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, structlog.get_config())
    yield
    root.handlers[:], level, settings = before
    root.setLevel(level)
    structlog.configure(**settings)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_event_level_keys_and_an_iso_utc_timestamp() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)

    log.get(outbox="main").warning("shard.rescheduled", attempt=2)

    [event] = written(stream)
    timestamp = dt.datetime.fromisoformat(event.pop("timestamp"))
    assert timestamp.utcoffset() == dt.timedelta(0)
    assert event == {"event": "shard.rescheduled", "level": "warning", "outbox": "main", "attempt": 2}


@pytest.mark.parametrize(
    ("format_", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
)
def test_auto_is_for_people_on_a_terminal_and_json_elsewhere(
    format_: log.Format, stream: io.StringIO, is_json: bool
) -> None:
    log.configure(format_, stream=stream)
    log.get().info("shard.drained")

    assert stream.getvalue().startswith("{") is is_json
    assert "shard.drained" in stream.getvalue()


def test_colours_only_on_a_terminal_and_never_against_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for stream, no_color in ((Terminal(), False), (Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setenv("NO_COLOR", "1") if no_color else monkeypatch.delenv("NO_COLOR", raising=False)
        log.configure("console", stream=stream)
        log.get().info("a.b")
        shown.append("\x1b[" in stream.getvalue())

    assert shown == [True, False, False]


def test_events_below_the_level_are_dropped_and_loggers_follow_a_new_level() -> None:
    stream = io.StringIO()
    logger = log.get()
    log.configure("json", "warning", stream=stream)
    logger.info("too.quiet")
    logger.warning("loud.enough")
    log.configure("json", "debug", stream=stream)
    logger.debug("now.heard")

    assert [event["event"] for event in written(stream)] == ["loud.enough", "now.heard"]


def test_a_filtered_event_of_a_bound_logger_runs_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(_logger: Any, _method: str, event: Any) -> Any:
        calls.append(event)
        return event

    monkeypatch.setattr(log, "mask_secrets", record)
    log.configure("json", "info", stream=io.StringIO())
    logger = log.get().bind()

    logger.debug("a.b")
    assert calls == []
    logger.info("a.b")
    assert len(calls) == 1


def test_by_default_it_goes_to_stderr_and_leaves_stdout_alone() -> None:
    code = "from outboxd import log; log.configure(); log.get().info('a.b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert json.loads(done.stderr)["event"] == "a.b"


@pytest.mark.parametrize("stream", [Broken(), "closed"])
def test_a_stream_that_cannot_be_written_stops_nobody(stream: io.StringIO | str) -> None:
    if isinstance(stream, str):
        target = io.StringIO()
        log.configure("json", stream=target)
        target.close()
    else:
        log.configure("json", stream=stream)

    log.get().error("a.b")
    logging.getLogger("x").error("a.b")


@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_secret_is_written(format_: log.Format) -> None:
    stream = io.StringIO()
    log.configure(format_, stream=stream)
    url = "postgresql://u:hunter2@h/d"

    log.get().info("a.b", dsn=url, session_dsn="host=h password=hunter2", redis_url="redis://:hunter2@h")
    log.get().info("a.b", password="hunter2", api_token="hunter2", db_password="hunter2")
    log.get().info("a.b", error=f"cannot reach {url}: refused", cause=ValueError(url))
    logging.getLogger("library").warning("lost %s", url)
    try:
        local_secret = "hunter2"
        raise ValueError(url[: len(local_secret) + 100])
    except ValueError:
        log.get().exception("a.b")

    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("***") >= 8


def test_the_standard_librarys_records_come_out_in_the_same_form_and_only_once() -> None:
    stream = io.StringIO()
    log.configure("json", "debug", stream=io.StringIO())
    log.configure("json", "debug", stream=stream)

    logging.getLogger("library").warning("slow: %d ms", 5)
    logging.getLogger("library").debug("details of others")

    [event] = written(stream)
    assert (event["event"], event["level"], event["logger"]) == ("slow: 5 ms", "warning", "library")


def test_values_that_json_does_not_know_are_written_as_text() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    log.get().info("a.b", when=dt.date(2026, 1, 2), error=ValueError("no"))

    [event] = written(stream)
    assert (event["when"], event["error"]) == ("2026-01-02", "ValueError: no")
