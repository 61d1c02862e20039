"""Walks over real tables: versions, batches, and what becomes of the watermark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.drains import REGION, UUID
from tests.walks import (
    create_members,
    let_a_minute_pass,
    model,
    objects,
    progress_of,
    set_option,
    walk_to_the_end,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.backfill import Metrics


async def test_every_row_gets_a_message_and_the_walk_ends(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 25)
    async with walking(database) as backfill:
        await walk_to_the_end(backfill, connection)
        assert progress_of(backfill).condition == "finished"
        assert (progress_of(backfill).rows, progress_of(backfill).messages) == (25, 25)

    assert await objects(connection) == list(range(1, 26))
    assert await watermark(connection) == ("0", 2)
    row = await connection.fetchrow("SELECT * FROM outbox WHERE object_identifier = 25")
    assert row is not None
    assert (row["shard_scope"], row["shard_identifier"], row["category"], row["payload"]) == (0, 2, 1, None)


async def test_a_batch_holds_so_many_rows_at_most_and_the_next_goes_on(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 25)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        assert await backfill.tick(paced=False)
        assert await objects(connection) == list(range(1, 11))
        assert await watermark(connection) == ("11", 1)
        assert not await backfill.tick(paced=False), "the minute's allowance is spent"
        assert progress_of(backfill).condition == "budget"
        await let_a_minute_pass(connection)
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == list(range(1, 26))
    assert await watermark(connection) == ("0", 2)


async def test_an_option_holds_the_version_back_and_the_walk_begins_anew_when_it_is_raised(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    await set_option(connection, "outbox_replication.organizationmember.replication_version", "1")
    async with walking(database, with_models(model(replication_version=2))) as backfill:
        await walk_to_the_end(backfill, connection)
        assert await watermark(connection) == ("0", 2)
        assert progress_of(backfill).condition == "waiting"

        await set_option(connection, "outbox_replication.organizationmember.replication_version", "5")
        await backfill.switchboard.refresh()
        await walk_to_the_end(backfill, connection)

    assert await watermark(connection) == ("0", 3)
    assert await objects(connection) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("key", ["smallint", "integer", "uuid"])
async def test_keys_of_other_types(database: str, connection: asyncpg.Connection, key: str) -> None:
    await create_members(connection, 25, key=key)
    table = "uuid_outbox" if key == "uuid" else "outbox"
    config = with_models(
        model(outbox="uuid", shard_identifier="", shard_identifier_sql="id") if key == "uuid" else model(),
        outboxes=(REGION, UUID),
        backfills_per_minute=10,
    )
    async with walking(database, config) as backfill:
        while await backfill.tick(paced=False):
            await let_a_minute_pass(connection, table)

    assert len(set(await objects(connection, table))) == len(await objects(connection, table)) == 25
    assert await watermark(connection) == ("0", 2)


async def test_every_tick_is_reported_also_one_that_walks_nothing(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    seen: list[Metrics] = []
    async with walking(database) as backfill:
        backfill.on_tick = seen.append
        await backfill.tick(paced=False)
        await backfill.tick(paced=False)

    first, last = seen
    assert first.backfilled_total == last.backfilled_total == {"organizationmember": 3}
    assert (first.low_bound, last.low_bound) == (
        {("organizationmember", 1): "0"},
        {("organizationmember", 2): "0"},
    )
    assert (last.target_version, last.watermark_missing_total, last.watermark_errors_total) == (
        {"organizationmember": 1},
        0,
        0,
    )
