"""Two daemons: one of them walks a table, and the other takes over when it dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.drains import connected, outboxd_backends
from tests.eventually import eventually
from tests.walks import (
    create_members,
    let_a_minute_pass,
    model,
    objects,
    one_batch,
    progress_of,
    set_option,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg


async def test_one_daemon_walks_a_table_and_another_takes_over_when_it_dies(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 30)
    config = with_models(backfills_per_minute=10)
    async with walking(database, config) as first, walking(database, config) as second:
        assert await first.tick(paced=False)
        [pid] = await outboxd_backends(connection, "backfill")
        await let_a_minute_pass(connection)
        assert not await second.tick(paced=False)
        assert progress_of(second).condition == "elsewhere"
        assert progress_of(second).low_bound == "11", "it is known all the same"

        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        await eventually(lambda: second.tick(paced=False))
        await let_a_minute_pass(connection)
        assert not await first.tick(paced=False), "its session is gone"
        await first.tick(paced=False)
        assert progress_of(first).condition == "elsewhere"

        await eventually(lambda: second.tick(paced=False))
        assert progress_of(second).rows == 20

    assert await objects(connection) == list(range(1, 31))


async def test_a_daemon_that_pauses_or_ends_leaves_the_walk_to_others(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 30)
    config = with_models(backfills_per_minute=10)
    async with walking(database, config) as first, walking(database, config) as second:
        assert await first.tick(paced=False)
        await connection.execute("INSERT INTO outboxd.pause (kind) VALUES ('backfill')")
        await first.switchboard.refresh()
        await first.tick(paced=False)
        await let_a_minute_pass(connection)
        assert await second.tick(paced=False), "it has not heard of the pause yet"
        await connection.execute("DELETE FROM outboxd.pause")

    async with walking(database, config) as third:
        await let_a_minute_pass(connection)
        assert await third.tick(paced=False)

    assert await objects(connection) == list(range(1, 31))


async def test_two_daemons_share_two_tables(database: str, connection: asyncpg.Connection) -> None:
    tables = ("public.first", "public.second")
    for table in tables:
        await create_members(connection, 50, table=table)
    config = with_models(*(model(table=table) for table in tables))
    async with walking(database, config) as one, walking(database, config) as other:
        await one_batch(one, 10, tables[0])
        await one_batch(other, 10, tables[1])
        assert await one_batch(one, 10, tables[1]) is None
        assert await one_batch(other, 10, tables[0]) is None
        assert progress_of(one, tables[1]).condition == progress_of(other, tables[0]).condition == "elsewhere"


async def test_walkers_that_both_believe_to_hold_the_walk_write_nothing_twice(
    database: str, connection: asyncpg.Connection
) -> None:
    """The lock is only for peace; the row of the watermark is what keeps a batch from being written twice."""
    await create_members(connection, 200)
    async with walking(database) as one, walking(database) as other:
        for backfill in (one, other):
            await backfill.session.fetch("opening", "SELECT 1")
            backfill.walkers[0]._locked_on = backfill.session.life
        while any(await asyncio.gather(one_batch(one, 7), one_batch(other, 7))):
            continue
        assert progress_of(one).rows > 0
        assert progress_of(other).rows > 0

    assert await objects(connection) == list(range(1, 201))
    assert await watermark(connection) == ("0", 2)


async def test_a_rolling_deploy_walks_with_the_higher_version_once(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 10)
    new = with_models(model(replication_version=2))
    async with walking(database) as old_daemon, walking(database, new) as new_daemon:
        await old_daemon.tick(paced=False)
        assert await watermark(connection) == ("0", 2)
        await old_daemon.tick(paced=False)
        assert await new_daemon.tick(paced=False)
        await old_daemon.tick(paced=False)
        assert progress_of(old_daemon).condition == "finished"
        await set_option(connection, "outbox_replication.organizationmember.replication_version", "1")
        for daemon in (old_daemon, new_daemon):
            await daemon.switchboard.refresh()
            assert not await daemon.tick(paced=False)

    assert await watermark(connection) == ("0", 3)
    assert await objects(connection) == sorted([*range(1, 11)] * 2)


async def test_a_batch_waits_for_one_that_has_not_committed(database: str, connection: asyncpg.Connection) -> None:
    """Somebody rewinds, or a walker's session lives on without it: the watermark's row is locked."""
    await create_members(connection, 10)
    await connection.execute("INSERT INTO outboxd.backfill_watermark VALUES ('organizationmember', '1', 1)")
    async with walking(database) as backfill, connected(database) as other:
        async with other.transaction():
            await other.execute("UPDATE outboxd.backfill_watermark SET low_bound = '8'")
            batch = asyncio.create_task(one_batch(backfill, 100))

            async def waits() -> bool:
                return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await eventually(waits)
        await batch

    assert await objects(connection) == [8, 9, 10]
