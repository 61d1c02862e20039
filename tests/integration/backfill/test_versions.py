"""Which version a table is walked with, and what stands in the watermark then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outboxd.backfill import Backfill, find_replication_version
from tests.walks import (
    create_members,
    model,
    objects,
    one_batch,
    progress_of,
    set_option,
    walk_to_the_end,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg

OPTION = "outbox_replication.organizationmember.replication_version"


async def set_watermark(connection: asyncpg.Connection, low_bound: str, version: int) -> None:
    await connection.execute(
        "INSERT INTO outboxd.backfill_watermark (table_name, low_bound, version) VALUES ('organizationmember', $1, $2)",
        low_bound,
        version,
    )


async def gate(backfill: Backfill, connection: asyncpg.Connection, value: str) -> None:
    await set_option(connection, OPTION, value)
    await backfill.switchboard.refresh()


async def test_the_version_that_was_run_is_stored_not_the_one_of_the_code(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    async with walking(database, with_models(model(replication_version=7))) as backfill:
        await gate(backfill, connection, "2")
        await walk_to_the_end(backfill, connection)
        assert await watermark(connection) == ("0", 3)
        assert await objects(connection) == [1, 2, 3], "version 1 is passed over"
        await gate(backfill, connection, "7")
        await walk_to_the_end(backfill, connection)

    assert await watermark(connection) == ("0", 8)
    assert await objects(connection) == [1, 1, 2, 2, 3, 3]


async def test_a_version_raised_in_mid_walk_begins_at_the_lowest_key(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 5)
    async with walking(database, with_models(model(replication_version=2))) as backfill:
        await gate(backfill, connection, "1")
        await one_batch(backfill, 3)
        assert await watermark(connection) == ("4", 1)
        await gate(backfill, connection, "2")
        await one_batch(backfill, 2)
        assert await watermark(connection) == ("3", 2)

        await gate(backfill, connection, "1")
        assert await one_batch(backfill, 2) is None
        await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "waiting"

    assert await watermark(connection) == ("3", 2), "a lower version never moves it back"


@pytest.mark.parametrize(
    ("stored", "condition"), [(("0", 2), "finished"), (("17", 9), "finished")], ids=["finished", "a later walk"]
)
async def test_a_stored_version_above_the_target_is_left_alone(
    database: str, connection: asyncpg.Connection, stored: tuple[str, int], condition: str
) -> None:
    await create_members(connection, 3)
    await set_watermark(connection, *stored)
    async with walking(database) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == condition

    assert await watermark(connection) == stored
    assert await objects(connection) == []


async def test_version_zero_is_never_walked(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    async with walking(database, with_models(model(replication_version=0))) as backfill:
        assert not await backfill.tick(paced=False)
        assert not await backfill.tick(paced=False, force_synchronous=True)
        assert await one_batch(backfill, 10) is None
        assert progress_of(backfill).condition == "never"

    assert await watermark(connection) is None


@pytest.mark.parametrize("value", ["0", "-1", '"many"', "[]", "true"])
async def test_an_option_that_allows_no_version_holds_the_walk(
    database: str, connection: asyncpg.Connection, value: str
) -> None:
    await create_members(connection, 3)
    async with walking(database) as backfill:
        await gate(backfill, connection, value)
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "waiting"
        assert await watermark(connection) is None

        await connection.execute("DELETE FROM outboxd.option")
        await backfill.switchboard.refresh()
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == [1, 2, 3]


async def test_force_synchronous_ignores_the_option(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    async with walking(database, with_models(model(replication_version=4))) as backfill:
        await gate(backfill, connection, "0")
        walked = backfill.walkers[0].model
        assert find_replication_version(backfill, walked) == 0
        assert find_replication_version(backfill, walked, force_synchronous=True) == 4
        assert await backfill.tick(paced=False, force_synchronous=True)

    assert await watermark(connection) == ("0", 5)


async def test_an_empty_table_is_finished_at_once(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 0)
    async with walking(database) as backfill:
        await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "finished"

    assert await watermark(connection) == ("0", 2)
