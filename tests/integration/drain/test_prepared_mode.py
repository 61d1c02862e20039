"""After a death each delivery is counted before it starts: a deadly message has pushed itself back (I9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import outboxd.claims
from outboxd.errors import Discard, RetryLater
from tests.drains import (
    Gate,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    make_due,
    remaining,
    until,
    write,
    write_many,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message
    from outboxd.pipeline import Pipeline

DEAD = (
    "INSERT INTO outboxd.worker (pid, host, version, silo_mode, outboxes)"
    " VALUES (1, 'gone', '0', 'monolith',"
    """ '[{"name": "region", "table": "outbox", "sharding_columns": ["shard_scope", "shard_identifier"]}]')"""
)
"""The row of a daemon whose lock is free."""


@pytest.fixture(autouse=True)
async def died(connection: asyncpg.Connection) -> None:
    await connection.execute(DEAD)


async def schedules(connection: asyncpg.Connection) -> list[float]:
    """Seconds from scheduled_from to scheduled_for of what is not due, in order of id."""
    rows = await connection.fetch(
        "SELECT scheduled_for - scheduled_from FROM outbox WHERE scheduled_for > now() ORDER BY id"
    )
    return [row[0].total_seconds() for row in rows]


async def test_the_death_of_a_daemon_is_marked_by_whoever_finds_it(
    database: str, connection: asyncpg.Connection
) -> None:
    await drain_once(database, Recorder())

    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker WHERE died_at IS NOT NULL") == 1


async def test_a_delivery_is_counted_before_it_starts(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)
    seen: list[tuple[int, str, list[float]]] = []

    async def look(_message: Message) -> None:
        async with connected(database) as other:
            [failure] = await failures(other)
            seen.append((failure["attempts"], failure["last_error"], await schedules(other)))

    await drain_once(database, Recorder(look))

    attempts, error, waits = seen[0]
    assert attempts == 1
    assert "died" in error
    assert waits == [2.0, 2.0]


async def test_a_success_deletes_and_puts_the_rest_of_the_shard_back(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 1, 3):
        await write(connection, obj=obj)
    seen = Recorder()

    pipeline = await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert [(message.attempt, message.coalesced) for message in seen.messages] == [(1, 2), (1, 1), (1, 1)]
    assert await remaining(connection) == []
    assert await failures(connection) == []
    assert (pipeline.totals()["delivered"], pipeline.totals()["retired"]) == (3, 4)


async def test_the_rest_of_a_shard_is_due_when_a_daemon_stops_after_a_delivery(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 3):
        await write(connection, obj=obj)
    gate = Gate()
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        pipeline.stop()
        gate.opened.set()

    assert len(gate.messages) == 1
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for <= now()") == 2
    assert await failures(connection) == []


async def test_messages_beyond_those_that_a_failure_moves_are_not_touched(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    ahead = await write(connection, obj=2, due_in_s=3600)
    before = await connection.fetchval("SELECT scheduled_for FROM outbox WHERE id = $1", ahead)
    await drain_once(database, Recorder(failing()), configure(backoff_rows_max=1))
    await make_due(connection)
    await connection.execute("UPDATE outbox SET scheduled_for = $1 WHERE id = $2", before, ahead)
    gate = Gate()

    async with draining(database, gate, configure(backoff_rows_max=1)):
        await gate.closed_behind()
        assert await connection.fetchval("SELECT scheduled_for FROM outbox WHERE id = $1", ahead) == before
        gate.opened.set()


async def test_a_failure_keeps_the_delay_that_was_counted_ahead_and_is_not_counted_twice(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)

    pipeline = await drain_once(database, Recorder(failing(error=ValueError("its own words"))))

    [failure] = await failures(connection)
    assert (failure["attempts"], failure["object_identifier"]) == (1, "1")
    assert "its own words" in failure["last_error"]
    assert await schedules(connection) == [2.0, 2.0]
    assert pipeline.totals()["failures"] == 1


async def test_repeated_failures_grow_as_they_do_without_a_death(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    waits = []
    for _ in range(4):
        await drain_once(database, Recorder(failing()))
        waits += await schedules(connection)
        await make_due(connection)

    assert waits == [2.0, 4.0, 8.0, 16.0]
    assert [failure["attempts"] for failure in await failures(connection)] == [4]


async def test_a_message_that_kills_the_process_has_pushed_itself_back(
    database: str, connection: asyncpg.Connection
) -> None:
    deadly = await write(connection, shard=1)
    await write(connection, shard=2)
    gate = Gate()

    async def kill(message: Message) -> None:
        if message.shard_identifier == 1:
            await gate(message)

    async with draining(database, Recorder(kill)) as pipeline:
        await gate.closed_behind()
        await until(lambda: pipeline.totals()["delivered"] == 1)
        die(pipeline)

    seen = Recorder()
    await drain_once(database, seen)
    assert 1 not in seen.shards
    assert await remaining(connection) == [deadly]
    assert await schedules(connection) == [2.0]
    [failure] = await failures(connection)
    assert (failure["attempts"], "died" in failure["last_error"]) == (1, True)


def die(pipeline: Pipeline) -> None:
    """End the delivery under way as a death would: nothing is settled any more."""
    settler = pipeline.branches[0].settler
    assert settler is not None
    settler.add = lambda _ending: None  # type: ignore[method-assign,assignment]
    pipeline.stop_hard()


@pytest.mark.parametrize("failed_before", [False, True])
async def test_a_delivery_that_is_cancelled_by_a_hard_stop_is_no_failure(
    database: str, connection: asyncpg.Connection, failed_before: bool
) -> None:
    await write(connection, category="LIMITED")
    if failed_before:
        await drain_once(database, Recorder(failing(error=ValueError("before"))))
        await make_due(connection)
    gate = Gate()

    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        assert [failure["attempts"] for failure in await failures(connection)] == [1 + failed_before]
        pipeline.stop_hard()

    assert [failure["attempts"] for failure in await failures(connection)] == [1] * failed_before
    assert all("before" in failure["last_error"] for failure in await failures(connection))
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for <= now()") == 1


async def test_deaths_count_towards_max_attempts(database: str, connection: asyncpg.Connection) -> None:
    deadly = await write(connection, category="LIMITED")
    for _ in range(3):
        gate = Gate()
        async with draining(database, gate) as pipeline:
            await gate.closed_behind()
            die(pipeline)
        await make_due(connection)

    seen = Recorder()
    await drain_once(database, seen)

    assert seen.messages == []
    [letter] = await connection.fetch("SELECT message_id, attempts, reason FROM outboxd.dead_letter")
    assert (letter["message_id"], letter["attempts"] >= 3, "died" in letter["reason"]) == (deadly, True, True)
    assert await remaining(connection) == []
    assert await failures(connection) == []


async def test_failures_count_towards_max_attempts_once_each(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, category="LIMITED")
    seen = Recorder(failing())
    for _ in range(4):
        await drain_once(database, seen)
        await make_due(connection)

    assert [message.attempt for message in seen.messages] == [1, 2, 3]
    [letter] = await connection.fetch("SELECT attempts FROM outboxd.dead_letter")
    assert letter["attempts"] == 3


async def test_a_burial_puts_the_rest_of_the_shard_back(database: str, connection: asyncpg.Connection) -> None:
    for obj in (1, 2, 3):
        await write(connection, obj=obj)
    seen = Recorder(failing(1, error=Discard("no")))

    await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert await remaining(connection) == []
    assert await failures(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM outboxd.dead_letter") == 1


async def test_on_error_skip_moves_only_the_object_that_is_delivered(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 1):
        await write(connection, category="SKIPPING", obj=obj)
    seen = Recorder(failing(1))

    await drain_once(database, seen)

    assert seen.objects == [1, 2]
    assert await schedules(connection) == [2.0, 2.0]
    assert len(await failures(connection)) == 1


async def test_a_category_that_is_off_is_not_moved_by_a_delivery_of_another(
    database: str, connection: asyncpg.Connection
) -> None:
    off = await write(connection, category="MEMBER", due_in_s=-60)
    await write(connection, category="TEAM", obj=1)
    await write(connection, category="TEAM", obj=2)
    before = await connection.fetchrow("SELECT * FROM outbox WHERE id = $1", off)
    await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 1)")
    seen = Recorder()

    await drain_once(database, seen)

    assert seen.objects == [1, 2]
    assert await connection.fetchrow("SELECT * FROM outbox WHERE id = $1", off) == before


async def test_retry_later_still_lets_the_message_be_tried_again(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)

    await drain_once(database, Recorder(failing(error=RetryLater(5))))

    [wait] = await schedules(connection)
    assert wait in (2.0, 5.0)
    assert [failure["attempts"] for failure in await failures(connection)] == [1]


async def test_many_shards_are_delivered_and_nothing_is_lost(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 200, shards=40, category="AUDIT")
    written = await remaining(connection)
    seen = Recorder()
    async with draining(database, seen):
        await until(lambda: len(seen.messages) == 200)

    assert sorted(seen.ids) == written
    assert await remaining(connection) == []
    assert await failures(connection) == []


async def test_a_death_is_noticed_while_running_and_forgotten_after_five_minutes(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.claims, "PING_INTERVAL_S", 0.05)
    await connection.execute("UPDATE outboxd.worker SET died_at = now() - interval '4 minutes'")
    async with draining(database, Recorder()) as pipeline:
        assert pipeline.live.prepared
        await connection.execute("UPDATE outboxd.worker SET died_at = now() - interval '5 minutes' WHERE pid = 1")
        await until(lambda: not pipeline.live.prepared)

        await connection.execute(DEAD)
        await until(lambda: pipeline.live.prepared)


async def test_a_clean_end_is_no_death(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("DELETE FROM outboxd.worker")
    for _ in range(4):
        async with draining(database, Recorder()) as pipeline:
            assert not pipeline.live.prepared

    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker") == 0
