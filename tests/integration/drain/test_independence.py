"""A locked, missing or broken outbox table never stops another one (I14)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing

import outboxd.branch
from outboxd.inspection import inspect_table
from outboxd.migrate import create_statements
from tests.drains import (
    CONTROL,
    REGION,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failures,
    remaining,
    until_empty,
    write,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.inspection import Table

BOTH = configure(REGION, CONTROL)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at a missing table again after a moment."""
    monkeypatch.setattr(outboxd.branch, "LOOK_AGAIN_S", 0.05)


def of_outbox(seen: Recorder, name: str) -> list[int]:
    return [message.id for message in seen.messages if message.outbox == name]


def has_seen(seen: Recorder, written: int) -> bool:
    return written in of_outbox(seen, "control")


async def write_control(connection: asyncpg.Connection, **values: int) -> int:
    return await write(connection, table="control_outbox", region="eu", **values)


async def create(connection: asyncpg.Connection) -> None:
    for statement in create_statements(REGION):
        await connection.execute(statement)


async def test_one_locked_table_does_not_stop_another_outbox(database: str, connection: asyncpg.Connection) -> None:
    seen = Recorder()
    async with draining(database, seen, BOTH), connected(database) as blocker:
        await write(connection)
        await until_empty(connection)
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
            for shard in range(5):
                written = await write_control(connection, shard=shard)
                await eventually(functools.partial(has_seen, seen, written))
            await until_empty(connection, "control_outbox")


async def test_a_table_that_is_locked_at_the_start_does_not_stop_another_outbox(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    waiting = await write(connection)
    async with connected(database) as blocker:
        producer = blocker.transaction()
        await producer.start()
        await blocker.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        async with draining(database, seen, BOTH):
            await write_control(connection)
            await until_empty(connection, "control_outbox")
            assert of_outbox(seen, "region") == []

            await producer.rollback()
            await until_empty(connection)

    assert of_outbox(seen, "region") == [waiting]


async def test_a_missing_table_does_not_stop_another_outbox_and_is_drained_when_it_appears(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("DROP TABLE outbox")
    seen = Recorder()
    async with draining(database, seen, BOTH):
        await write_control(connection)
        await until_empty(connection, "control_outbox")

        await create(connection)
        written = await write(connection)
        await until_empty(connection)

    assert of_outbox(seen, "region") == [written]


@pytest.mark.parametrize("minutes_pass", [False, True])
async def test_a_missing_table_is_said_at_once_and_then_once_a_minute(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, minutes_pass: bool
) -> None:
    looks = 0

    async def look(*arguments: Any) -> Table:
        nonlocal looks
        looks += 1
        return await inspect_table(*arguments)

    monkeypatch.setattr(outboxd.branch, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(outboxd.branch, "SAID_EVERY_S", 0.0 if minutes_pass else 60.0)
    monkeypatch.setattr(outboxd.branch, "inspect_table", look)
    await connection.execute("DROP TABLE outbox")
    with structlog.testing.capture_logs() as logs:
        async with draining(database, Recorder()):
            await eventually(lambda: looks >= 10)

    said = [line for line in logs if line["event"] == "outbox.not_ready"]
    assert len(said) >= 9 if minutes_pass else len(said) == 1


async def test_a_table_that_is_dropped_and_made_again_is_drained_again(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with draining(database, seen, BOTH):
        await write(connection, obj=1)
        await until_empty(connection)
        await connection.execute("DROP TABLE outbox")
        await write_control(connection)
        await until_empty(connection, "control_outbox")

        await create(connection)
        await write(connection, obj=2)
        await until_empty(connection)

    assert [m.object_identifier for m in seen.messages if m.outbox == "region"] == [1, 2]


async def test_a_table_that_is_replaced_by_another_under_its_name_is_drained(
    database: str, connection: asyncpg.Connection
) -> None:
    """A swap in one transaction: no statement fails for want of the table."""
    seen = Recorder()
    async with draining(database, seen):
        await write(connection, obj=1)
        await until_empty(connection)
        async with connection.transaction():
            await connection.execute("ALTER TABLE outbox RENAME TO outbox_old")
            await create(connection)
        await write(connection, obj=2)

        await until_empty(connection)

    assert seen.objects == [1, 2]


async def test_a_column_that_is_dropped_stops_only_its_own_outbox(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with draining(database, seen, BOTH):
        await connection.execute("ALTER TABLE outbox DROP COLUMN payload")
        await connection.execute("INSERT INTO outbox VALUES (DEFAULT, 0, 1, 1, 1)")
        for shard in range(3):
            await write_control(connection, shard=shard)
        await until_empty(connection, "control_outbox")

        await connection.execute("ALTER TABLE outbox ADD COLUMN payload jsonb")
        await until_empty(connection)


async def test_a_bounded_run_drains_what_it_can_and_keeps_the_error_of_a_missing_table(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("DROP TABLE outbox")
    await write_control(connection)

    pipeline = await drain_once(database, Recorder(), BOTH)

    region, control = pipeline.branches
    assert "outbox" in str(region.error)
    assert control.error is None
    assert await remaining(connection, "control_outbox") == []


async def test_a_table_without_its_indexes_is_not_drained(database: str, connection: asyncpg.Connection) -> None:
    written = await write(connection)
    await connection.execute("DROP INDEX outbox_scheduled_for_shard_scope_shard_identifier_idx")
    seen = Recorder()

    pipeline = await drain_once(database, seen, BOTH)

    assert "migrate" in (pipeline.branches[0].error or AssertionError()).hint  # type: ignore[union-attr]
    assert seen.messages == []
    assert await remaining(connection) == [written]


async def test_failures_of_one_outbox_are_not_those_of_another(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    await write_control(connection)

    def fail_region(message: object) -> None:
        if getattr(message, "outbox", "") == "region":
            raise ValueError

    await drain_once(database, Recorder(fail_region), BOTH)

    assert [failure["outbox"] for failure in await failures(connection)] == ["region"]
    assert await remaining(connection, "control_outbox") == []
