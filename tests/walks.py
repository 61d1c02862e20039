"""
Backfills in tests: source tables, models, and the context that walks them.

    await create_members(connection, 10)
    async with walking(database) as backfill:
        await backfill.tick(paced=False)
    assert await objects(connection) == [1, …, 10]
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd.backfill import Backfill, BackfillBatch, process_outbox_backfill_batch
from outboxd.config import BackfillConfig, Config, ModelConfig
from outboxd.options import SwitchBoard
from outboxd.sql import quote_qualified
from tests.drains import CATEGORIES, REGION, configure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.config import OutboxConfig
    from outboxd.walker import Progress

MEMBER = ModelConfig(table="organizationmember", outbox="region", category="MEMBER", shard_identifier="organization_id")


def model(**values: Any) -> ModelConfig:
    """Copy the model of members with other values."""
    return msgspec.structs.replace(MEMBER, **values)


def with_models(*models: ModelConfig, outboxes: tuple[OutboxConfig, ...] = (REGION,), **backfill: Any) -> Config:
    """Build a configuration; *backfill* are keys of `[backfill]`."""
    config = configure(*outboxes, categories=CATEGORIES)
    return msgspec.structs.replace(
        config, model=list(models or (MEMBER,)), backfill=msgspec.convert(backfill, BackfillConfig)
    )


async def create_members(
    connection: asyncpg.Connection, count: int, *, table: str = "organizationmember", key: str = "bigint"
) -> None:
    """Create a source table with the keys 1 to *count* (or uuids), ten members an organization."""
    value = "n" if key != "uuid" else "lpad(to_hex(n), 32, '0')::uuid"
    name = quote_qualified(table)
    await connection.execute(
        f"CREATE TABLE {name} (id {key} PRIMARY KEY, organization_id bigint, slug text, region text[]);"
        f"INSERT INTO {name} SELECT {value}, (n - 1) / 10, 'member-' || n, ARRAY['us']"
        f" FROM generate_series(1, {count}) AS n"
    )


@contextlib.asynccontextmanager
async def walking(dsn: str, config: Config | None = None, redis_url: str = "") -> AsyncIterator[Backfill]:
    """Open the context of one process's backfills; options and pauses are read once, see `refresh`."""
    config = config or with_models()
    switchboard = SwitchBoard(config, lambda: dsn)
    backfill = Backfill(config, switchboard, lambda: dsn, lambda: redis_url, is_stopping=lambda: False)
    try:
        await switchboard.refresh()
        yield backfill
    finally:
        await backfill.close()
        await switchboard.close()


async def set_option(connection: asyncpg.Connection, key: str, value: str) -> None:
    """Set an option to a JSON text."""
    await connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES ($1, $2::jsonb)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        key,
        value,
    )


async def one_batch(
    backfill: Backfill, rows: int, table: str = "organizationmember", messages: int = 1_000_000
) -> BackfillBatch | None:
    """Write one batch of at most so many rows, as if there were nothing else to do in this tick."""
    backfill.left = backfill.window_max = messages
    walker = next(walker for walker in backfill.walkers if walker.table == table)
    return await process_outbox_backfill_batch(backfill, walker, rows)


async def let_time_pass(connection: asyncpg.Connection, seconds: float) -> None:
    """Move what was spent into the past."""
    await connection.execute(
        "UPDATE outboxd.backfill_spending SET spent_at = spent_at - make_interval(secs => $1)", seconds
    )


async def let_a_minute_pass(connection: asyncpg.Connection, *tables: str) -> None:
    """Move what was spent into the past, as a minute does, and what was written out of the way, as a drain does."""
    await let_time_pass(connection, 61)
    for table in tables or ("outbox",):
        await connection.execute(f"UPDATE {quote_qualified(table)} SET scheduled_for = now() + interval '1 day'")


async def walk_to_the_end(backfill: Backfill, connection: asyncpg.Connection) -> None:
    """Tick, a minute each time, until nothing more is written."""
    while await backfill.tick(paced=False):
        await let_a_minute_pass(connection)


async def objects(connection: asyncpg.Connection, table: str = "outbox") -> list[Any]:
    """Tell the object identifiers in the outbox, in order, each as often as it is there."""
    rows = await connection.fetch(f"SELECT object_identifier FROM {quote_qualified(table)} ORDER BY object_identifier")
    return [row[0] for row in rows]


def progress_of(backfill: Backfill, table: str = "organizationmember") -> Progress:
    """Tell what is known of a table's walk."""
    return next(walker.progress for walker in backfill.walkers if walker.table == table)


async def watermark(connection: asyncpg.Connection, table: str = "organizationmember") -> tuple[str, int] | None:
    """Read the watermark of a table."""
    row = await connection.fetchrow(
        "SELECT low_bound, version FROM outboxd.backfill_watermark WHERE table_name = $1", table
    )
    return None if row is None else (row[0], row[1])
