"""A database that stands still for a moment: nothing is lost, and the drain goes on as soon as it does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.drains import Recorder, draining, outboxd_backends, until_empty, write
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg


async def test_after_a_table_was_locked_for_a_moment_messages_go_out_within_seconds(
    database: str, connection: asyncpg.Connection
) -> None:
    """A look that waited for the lock has cost nothing: resting in proportion to it would take half a minute."""
    seen = Recorder()
    async with draining(database, seen) as pipeline:
        await write(connection, shard=1)
        await until_empty(connection)
        [find] = await outboxd_backends(connection, "find region")
        async with connection.transaction():
            await connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
            await eventually(lambda: is_waiting(connection, find))
            await connection.fetch("SELECT pg_sleep(1)")
        await write(connection, shard=2)
        await until_empty(connection)
    assert seen.shards == [1, 2]
    assert pipeline.totals()["failures"] == 0


async def is_waiting(connection: asyncpg.Connection, pid: int) -> bool:
    await asyncio.sleep(0)
    return bool(await connection.fetchval("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1", pid))
