"""When a message is tried: what is due, what wakes a shard in backoff, and times at the edge of time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.drains import Recorder, configure, drain_once, draining, failing, make_due, remaining, until_empty, write
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg


async def test_a_message_scheduled_ahead_is_left_until_then(database: str, connection: asyncpg.Connection) -> None:
    ahead = await write(connection, due_in_s=3600)
    await write(connection, shard=2)
    seen = Recorder()

    pipeline = await drain_once(database, seen)

    assert seen.shards == [2]
    assert await remaining(connection) == [ahead]
    assert pipeline.remaining_due == 0


async def test_a_message_scheduled_ahead_while_its_shard_drains_is_left_until_then(
    database: str, connection: asyncpg.Connection
) -> None:
    """The turn ends at its bound of rows, so the shard is read again; but nothing in it is due any more."""
    written: list[int] = []

    async def schedules(_message: object) -> None:
        if not written:
            written.append(await write(connection, obj=99, due_in_s=3600))

    for number in range(10):
        await write(connection, obj=number)
    seen = Recorder(schedules)

    await drain_once(database, seen, configure(turn_rows_max=10))

    assert seen.objects == list(range(10))
    assert await remaining(connection) == written


async def test_a_message_scheduled_ahead_is_delivered_when_it_becomes_due(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with draining(database, seen):
        await write(connection, due_in_s=0.2)
        await until_empty(connection)

    [message] = seen.messages
    assert message.scheduled_for > message.date_added


async def test_a_shard_with_one_due_message_is_drained_whole(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1, due_in_s=3600)
    await write(connection, obj=2)
    await write(connection, obj=3, due_in_s=3600)
    seen = Recorder()

    await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert await remaining(connection) == []


async def test_a_new_message_does_not_wake_a_shard_that_has_just_failed(
    database: str, connection: asyncpg.Connection
) -> None:
    failed = await write(connection, obj=1)
    await drain_once(database, Recorder(failing()))
    newer = await write(connection, obj=2)
    seen = Recorder()

    await drain_once(database, seen, configure(retry_on_new_message_s=60))

    assert seen.messages == []
    assert await remaining(connection) == [failed, newer]


async def test_a_new_message_wakes_a_shard_whose_failure_is_long_enough_ago(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    await drain_once(database, Recorder(failing()))
    await connection.execute(
        "UPDATE outbox SET scheduled_for = now() + interval '1 hour', scheduled_from = now();"
        "UPDATE outboxd.failure SET last_failed_at = now() - interval '61 seconds'"
    )
    await write(connection, obj=2)
    seen = Recorder()

    await drain_once(database, seen, configure(retry_on_new_message_s=60))

    assert seen.objects == [1, 2]
    assert await remaining(connection) == []


async def test_a_shard_whose_failure_is_long_ago_is_not_tried_before_its_time_without_a_new_message(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    await drain_once(database, Recorder(failing()))
    await connection.execute(
        "UPDATE outbox SET scheduled_for = now() + interval '1 hour', scheduled_from = now();"
        "UPDATE outboxd.failure SET last_failed_at = now() - interval '50 minutes'"
    )
    seen = Recorder()

    await drain_once(database, seen, configure(retry_on_new_message_s=0))

    assert seen.messages == []


async def test_new_messages_wake_a_failing_shard_at_most_once_in_the_time_configured(
    database: str, connection: asyncpg.Connection
) -> None:
    config = configure(retry_on_new_message_s=60)
    await write(connection)
    seen = Recorder(failing())
    await drain_once(database, seen, config)
    await connection.execute("UPDATE outboxd.failure SET last_failed_at = now() - interval '61 seconds'")

    for obj in range(2, 6):
        await write(connection, obj=obj)
        await drain_once(database, seen, config)

    assert [message.attempt for message in seen.messages] == [1, 2]


async def test_each_new_message_wakes_a_failing_shard_when_so_configured(
    database: str, connection: asyncpg.Connection
) -> None:
    config = configure(retry_on_new_message_s=0)
    seen = Recorder(failing())
    for obj in range(1, 4):
        await write(connection, obj=obj)
        await drain_once(database, seen, config)

    assert [message.attempt for message in seen.messages] == [1, 2, 3]
    assert set(seen.objects) == {1}


async def test_a_shard_that_an_operator_makes_due_is_tried_at_once(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    tries = Recorder(failing())
    await drain_once(database, tries)

    await make_due(connection)
    await drain_once(database, tries)

    assert [message.attempt for message in tries.messages] == [1, 2]


@pytest.mark.parametrize("column", ["scheduled_from", "scheduled_for", "date_added"])
@pytest.mark.parametrize("moment", ["-infinity", "4713-01-02 BC", "0001-01-01", "1999-12-31 23:59:59.999999+00"])
async def test_a_message_from_the_beginning_of_time_is_delivered(
    database: str, connection: asyncpg.Connection, column: str, moment: str
) -> None:
    await write(connection)
    await connection.execute(f"UPDATE outbox SET {column} = '{moment}'")
    await write(connection, shard=2)
    seen = Recorder()

    await drain_once(database, seen)

    assert sorted(seen.shards) == [1, 2]
    assert await remaining(connection) == []


@pytest.mark.parametrize("column", ["scheduled_from", "scheduled_for", "date_added"])
@pytest.mark.parametrize("moment", ["-infinity", "infinity", "294276-12-31"])
async def test_a_message_from_the_end_of_time_fails_and_waits_like_any_other(
    database: str, connection: asyncpg.Connection, column: str, moment: str
) -> None:
    extreme = await write(connection, obj=1)
    await connection.execute(f"UPDATE outbox SET {column} = '{moment}'")
    due = await write(connection, obj=2)
    seen = Recorder(failing())

    await drain_once(database, seen)

    assert seen.ids == [extreme]
    delay_s, moved = await _schedule(connection, extreme)
    assert 2 <= delay_s <= 3600
    assert moved == (await _schedule(connection, due))[1]


async def _schedule(connection: asyncpg.Connection, message_id: int) -> tuple[float, object]:
    row = await connection.fetchrow("SELECT scheduled_from, scheduled_for FROM outbox WHERE id = $1", message_id)
    assert row is not None
    return (row[1] - row[0]).total_seconds(), row[1]


async def test_a_message_that_is_never_due_does_not_keep_others_from_being_found(
    database: str, connection: asyncpg.Connection
) -> None:
    never = await write(connection)
    await connection.execute("UPDATE outbox SET scheduled_for = 'infinity'")
    seen = Recorder()
    async with draining(database, seen):
        for shard in (2, 3):
            await write(connection, shard=shard)
            await eventually(functools.partial(_has_seen, seen, shard))

    assert await remaining(connection) == [never]


def _has_seen(seen: Recorder, shard: int) -> bool:
    return shard in seen.shards


async def test_the_delay_of_a_group_is_that_of_its_lowest_message(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    await drain_once(database, Recorder(failing()))
    await make_due(connection)
    await write(connection, obj=1)

    await drain_once(database, Recorder(failing()))

    rows = await connection.fetch("SELECT scheduled_for - scheduled_from FROM outbox")
    assert [row[0].total_seconds() for row in rows] == [4.0, 4.0]
