"""Primary keys of all types, at the ends of their range, with gaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.drains import REGION, UUID
from tests.walks import (
    create_members,
    model,
    objects,
    one_batch,
    progress_of,
    walk_to_the_end,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.backfill import Backfill


async def with_keys(connection: asyncpg.Connection, key: str, *keys: int) -> None:
    await create_members(connection, 0, key=key)
    await connection.execute("INSERT INTO organizationmember SELECT unnest($1::int8[]), 1", keys)


async def walk_in_batches(backfill: Backfill, rows: int) -> int:
    """Walk to the end; returns how many batches that took."""
    batches = 0
    while await one_batch(backfill, rows) is not None:
        batches += 1
        assert batches < 100, "it walks in a circle"
    return batches


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("smallint", (-(2**15), -1, 0, 1, 2**15 - 2, 2**15 - 1)),
        ("integer", (-(2**31), -2, -1, 5, 2**31 - 1)),
        ("bigint", (-(2**63), -1, 1, 2**63 - 1)),
        ("bigint", (-3, -2, -1)),
        ("bigint", (-1,)),
        ("bigint", (0,)),
        ("bigint", (2**63 - 1,)),
    ],
    ids=str,
)
async def test_each_key_gets_one_message_whatever_the_size_of_a_batch(
    database: str, connection: asyncpg.Connection, key: str, keys: tuple[int, ...], rows: int
) -> None:
    await with_keys(connection, key, *keys)
    async with walking(database) as backfill:
        batches = await walk_in_batches(backfill, rows)

    assert await objects(connection) == sorted(keys)
    assert await watermark(connection) == ("0", 2)
    assert batches == len(keys) // rows + 1


async def test_after_a_batch_that_ends_with_minus_one_the_walk_goes_on_behind_it(
    database: str, connection: asyncpg.Connection
) -> None:
    await with_keys(connection, "bigint", -2, -1, 0, 1)
    async with walking(database) as backfill:
        await one_batch(backfill, 2)
    async with walking(database) as another:
        await one_batch(another, 2)

    assert await objects(connection) == [-2, -1, 0, 1]


async def test_gaps_cost_nothing(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 0)
    await connection.execute("INSERT INTO organizationmember SELECT n * 100000, n FROM generate_series(1, 10000) AS n")
    async with walking(database) as backfill:
        batches = await walk_in_batches(backfill, 1_000)
        assert progress_of(backfill).rows == 10_000

    assert batches == 11
    assert await connection.fetchval("SELECT max(object_identifier) FROM outbox") == 10**9


@pytest.mark.parametrize("rows", [1, 7, 25, 26])
async def test_uuid_keys(database: str, connection: asyncpg.Connection, rows: int) -> None:
    await create_members(connection, 25, key="uuid")
    await connection.execute("INSERT INTO organizationmember VALUES ('ffffffff-ffff-ffff-ffff-ffffffffffff')")
    await connection.execute("INSERT INTO organizationmember VALUES ('00000000-0000-0000-0000-000000000000')")
    config = with_models(model(outbox="uuid", shard_identifier="", shard_identifier_sql="id"), outboxes=(REGION, UUID))
    async with walking(database, config) as backfill:
        first = await one_batch(backfill, rows)
        assert first is not None
        assert await watermark(connection) == (first.up, 1)
        batches = 1 + await walk_in_batches(backfill, rows)

    assert [key.int for key in await objects(connection, "uuid_outbox")] == [*range(26), 2**128 - 1]
    assert await watermark(connection) == ("0", 2)
    assert batches == 27 // rows + 1


async def test_a_key_that_is_widened_in_mid_walk_is_walked_to_its_new_end(
    database: str, connection: asyncpg.Connection
) -> None:
    await with_keys(connection, "integer", 1, 2**31 - 1)
    async with walking(database) as backfill:
        await one_batch(backfill, 2)
        await connection.execute("ALTER TABLE organizationmember ALTER id TYPE bigint")
        await connection.execute("INSERT INTO organizationmember VALUES (2147483648, 1)")
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == [1, 2**31 - 1, 2**31]


async def test_rows_written_behind_the_walk_are_their_writers_matter(
    database: str, connection: asyncpg.Connection
) -> None:
    await with_keys(connection, "bigint", 10, 20, 30)
    async with walking(database) as backfill:
        await one_batch(backfill, 2)
        await connection.execute("INSERT INTO organizationmember VALUES (15, 1), (25, 1)")
        await connection.execute("DELETE FROM organizationmember WHERE id = 30")
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == [10, 20, 25]
