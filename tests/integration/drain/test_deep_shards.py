"""A deep shard is drained turn after turn under one claim, while nothing else waits; and what may happen meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.drains import (
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    remaining,
    shard_locks,
    until,
    until_empty,
    write,
    write_many,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message

ROWS = 500
PAUSE = "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier) VALUES ('shard', 0, '1')"
SHORT_TURNS = configure(turn_rows_max=20)


async def test_one_claim_is_enough_and_the_order_is_kept(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, ROWS)
    seen = Recorder()
    pipeline = await drain_once(database, seen, SHORT_TURNS)

    assert seen.objects == list(range(ROWS))
    assert pipeline.totals()["claimed"] <= 2
    assert await remaining(connection) == []


async def test_the_claim_is_kept_until_the_last_delete_is_committed(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, ROWS)
    seen = Recorder()
    async with connected(database) as other, draining(database, seen, SHORT_TURNS):
        async with other.transaction():
            await other.execute("SELECT 1 FROM outbox WHERE object_identifier = 5 FOR UPDATE")
            await until(lambda: len(seen.messages) == ROWS)
            assert await shard_locks(connection) == 1
            assert 5 in [row[0] for row in await connection.fetch("SELECT object_identifier FROM outbox")]
        await until_empty(connection)
        await until(lambda: _are_free(connection))

    assert seen.objects == list(range(ROWS))


async def _are_free(connection: asyncpg.Connection) -> bool:
    return await shard_locks(connection) == 0


async def test_a_failure_ends_it_and_what_was_delivered_is_gone(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, ROWS)
    seen = Recorder(failing(110))
    await drain_once(database, seen, SHORT_TURNS)

    assert seen.objects == list(range(111))
    assert len(await remaining(connection)) == ROWS - 110
    [failure] = await failures(connection)
    assert (failure["object_identifier"], failure["attempts"]) == ("110", 1)


async def test_a_pause_stops_it(database: str, connection: asyncpg.Connection) -> None:
    async def pause(message: Message) -> None:
        if message.object_identifier == 50:
            async with connected(database) as own:
                await own.execute(PAUSE)
            await until(lambda: bool(running[0].live.switches.shards))

    await write_many(connection, ROWS)
    seen = Recorder(pause)
    running = []
    async with draining(database, seen, SHORT_TURNS) as pipeline:
        running.append(pipeline)
        await until(lambda: len(seen.messages) == 51)
        await until(lambda: _are_free(connection))

    assert len(await remaining(connection)) == ROWS - 51


async def test_messages_that_commit_late_are_delivered_when_it_is_through(
    database: str, connection: asyncpg.Connection
) -> None:
    async with connected(database) as late, draining(database, seen := Recorder(), SHORT_TURNS):
        transaction = late.transaction()
        await transaction.start()
        number = await write(late, obj=1_000_000)
        await write_many(connection, ROWS)
        await until(lambda: len(seen.messages) >= 100)
        await transaction.commit()
        await until_empty(connection)

    assert sorted(seen.objects) == [*range(ROWS), 1_000_000]
    assert number in seen.ids


@pytest.mark.parametrize("category", ["SKIPPING", "AUDIT"])
async def test_categories_of_their_own_rules(database: str, connection: asyncpg.Connection, category: str) -> None:
    await write_many(connection, ROWS, category=category)
    seen = Recorder(failing(110))
    await drain_once(database, seen, SHORT_TURNS)

    done = ROWS - 1 if category == "SKIPPING" else 110
    assert len(await remaining(connection)) == ROWS - done
