"""Whoever only watches the drain (metrics, reports of failures) can neither stop it nor change an ending."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing

from outboxd import errors
from outboxd.drain import Drain
from outboxd.meter import Meter
from outboxd.readahead import Reader
from tests.drains import Recorder, configure, draining, failures, remaining, until_empty, write
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message


def events(logs: Any) -> set[str]:
    return {log["event"] for log in logs}


async def test_a_report_that_raises_leaves_the_failure_a_failure(database: str, connection: asyncpg.Connection) -> None:
    def report(*_: object) -> None:
        raise OSError("the error tracker is away")

    def fail(_message: Message) -> None:
        raise ValueError("broken")

    await write(connection)
    with structlog.testing.capture_logs() as logs:
        async with draining(database, Recorder(fail)) as pipeline:
            pipeline.live.on_failed = report
            await eventually(lambda: pipeline.totals()["failures"] == 1)

    [failure] = await failures(connection)
    assert failure["attempts"] == 1
    assert "broken" in failure["last_error"]
    assert "failure.unreported" in events(logs)
    assert "shard.crashed" not in events(logs)


@pytest.mark.parametrize(
    ("owner", "method", "error", "event"),
    [
        (Drain, "_drain", errors.StatementFailed("torn"), "shard.unreadable"),
        (Drain, "_drain", ZeroDivisionError(), "shard.crashed"),
        (Reader, "_read", errors.StatementFailed("torn", sqlstate="XX001"), "shard.unreadable"),
    ],
)
async def test_a_shard_is_logged_as_texts(
    database: str,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    error: Exception,
    event: str,
) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(owner, method, fail)
    await write(connection)
    with structlog.testing.capture_logs() as logs:
        async with draining(database, Recorder()):
            await eventually(lambda: event in events(logs))

    assert next(log["shard"] for log in logs if log["event"] == event) == ["0", "1"]


async def test_a_meter_that_raises_does_not_end_the_drain(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Meter, "observe", observe)
    with structlog.testing.capture_logs() as logs:
        async with draining(database, Recorder()) as pipeline:
            pipeline.branches[0].meter.timed = True
            await write(connection, shard=1)
            await until_empty(connection)
            await write(connection, shard=2)
            await until_empty(connection)
            await eventually(lambda: pipeline.totals()["delivered"] == 2)

    assert "metrics.crashed" in events(logs)


async def test_what_a_receiver_raised_is_not_kept_while_the_failure_waits_to_be_written(
    database: str, connection: asyncpg.Connection
) -> None:
    """Its traceback holds the message, and with it the payload (I10)."""

    class BrokenError(Exception):
        pass

    raised: list[weakref.ref[BrokenError]] = []

    def fail(_message: Message) -> None:
        error = BrokenError()
        raised.append(weakref.ref(error))
        raise error

    await write(connection)
    async with draining(database, Recorder(fail), configure()) as pipeline:
        async with connection.transaction():
            await connection.execute("LOCK TABLE outboxd.failure IN SHARE MODE")  # it can be read, not written
            await eventually(lambda: raised)
            settler = pipeline.branches[0].settler
            assert settler is not None
            await eventually(lambda: not settler.idle.is_set())
            gc.collect()
            assert raised[0]() is None
            assert pipeline.totals()["failures"] == 0
        await eventually(lambda: pipeline.totals()["failures"] == 1)
    assert len(await remaining(connection)) == 1
