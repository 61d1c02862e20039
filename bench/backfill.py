"""
How fast a backfill writes, beside the floor: one plain `INSERT … SELECT` of the same rows.

Both run in turn on one embedded PostgreSQL with default durability, so the ratio means something where absolute
numbers do not. See `bench/README.md` for the method and for results.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import asyncpg
import msgspec
import psutil

from bench.errors import FailedError
from bench.figures import Series, Table
from outboxd import backfill
from outboxd.backfill import Backfill
from outboxd.config import BackfillConfig, CategoryConfig, Config, ModelConfig, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.migrate import migrate
from outboxd.options import SwitchBoard
from outboxd.watermark import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.options import Options

UNLIMITED = 100_000_000
SPARSE_ROWS = 10_000
SPARSE_STEP = 100_000
SPARSE_BATCH_ROWS = 1_000
CONFIG = Config(
    silo_mode="region",
    outbox=[
        OutboxConfig(name="backfilled", table="outbox_backfilled", silo="region"),
        # Of the other silo: the backfill leaves it alone, and the floor has a table of the same shape to itself.
        OutboxConfig(name="floor", table="outbox_floor", silo="control"),
    ],
    scopes={"ORGANIZATION": ScopeConfig(value=0)},
    categories={"MEMBER_UPDATE": CategoryConfig(value=1, scope="ORGANIZATION")},
    backfill=BackfillConfig(backfills_per_minute=UNLIMITED),
)
CREATE = "CREATE TABLE {table} (id bigint PRIMARY KEY, organization_id bigint, slug text)"
FILL = """
INSERT INTO {table} (id, organization_id, slug)
SELECT i * {step}, i / 10, 'member-' || i FROM generate_series(1, {rows}) AS i
"""
FLOOR = """
INSERT INTO outbox_floor (shard_scope, shard_identifier, category, object_identifier)
SELECT 0, organization_id, 1, id FROM member
"""


def resident_mb() -> float:
    """Tell how much memory this process holds now."""
    return float(psutil.Process().memory_info().rss) / 1e6


@contextlib.asynccontextmanager
async def walking(dsn: str, table: str) -> AsyncIterator[Backfill]:
    """Open a backfill of one table, as the daemon does."""
    model = ModelConfig(table=table, outbox="backfilled", category="MEMBER_UPDATE", shard_identifier="organization_id")
    config = msgspec.structs.replace(CONFIG, model=[model])
    switchboard = SwitchBoard(config, lambda: dsn)
    context = Backfill(config, switchboard, lambda: dsn, lambda: "", is_stopping=lambda: False)
    try:
        await switchboard.refresh()
        yield context
    finally:
        await context.close()
        await switchboard.close()


async def clear(connection: asyncpg.Connection) -> None:
    """Give both the same start: empty tables, nothing left to be written by a checkpoint or vacuumed."""
    await connection.execute("TRUNCATE outbox_backfilled, outbox_floor, outboxd.backfill_spending")
    await connection.execute("VACUUM (ANALYZE) outbox_backfilled, outbox_floor")
    await connection.execute("CHECKPOINT")


async def check(connection: asyncpg.Connection, table: str, rows: int) -> None:
    written = await connection.fetchval(f"SELECT count(*) FROM {table}")
    if written != rows:
        raise FailedError(f"{table} holds {written} rows, {rows} were expected")


async def measure_floor(connection: asyncpg.Connection, rows: int) -> float:
    """Seconds to write all rows in one statement."""
    await clear(connection)
    started_at = time.perf_counter()
    await connection.execute(FLOOR)
    seconds = time.perf_counter() - started_at
    await check(connection, "outbox_floor", rows)
    return seconds


async def measure_backfill(connection: asyncpg.Connection, context: Backfill, rows: int) -> float:
    """Seconds to write all rows as the daemon does: tick after tick, batch after batch."""
    await clear(connection)
    await context.watermarks.set_processing_state("member", State())
    started_at = time.perf_counter()
    await context.spend_a_minute()
    seconds = time.perf_counter() - started_at
    await check(connection, "outbox_backfilled", rows)
    return seconds


async def measure(options: Options) -> list[Table]:
    """Let the backfill take turns with its floor; then count the batches of a walk over wide gaps."""
    rows = options.scaled(1_000_000)
    table = Table(
        "Backfill",
        f"{rows:,} source rows, beside one INSERT ... SELECT; and {SPARSE_ROWS:,} rows with ids up to"
        f" {SPARSE_ROWS * SPARSE_STEP:,}, in batches of {SPARSE_BATCH_ROWS:,}.",
        [
            Series("floor, rows/s"),
            Series("backfill, rows/s"),
            Series("backfill / floor", 2, at_least=0.8),
            Series("resident memory before, MB", 1),
            Series("resident memory after, MB", 1),
            Series("batches of the sparse walk", at_most=SPARSE_ROWS // SPARSE_BATCH_ROWS + 1),
        ],
    )
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}) as dsn:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, msgspec.structs.replace(CONFIG, silo_mode="monolith"))
        batches = await count_batches(connection, dsn)
        await connection.execute(CREATE.format(table="member") + ";" + FILL.format(table="member", rows=rows, step=1))
        await connection.execute("VACUUM (ANALYZE) member")
        async with walking(dsn, "member") as context:
            for number in range(options.rounds + 1):
                floor_s = await measure_floor(connection, rows)
                before_mb = resident_mb()
                backfill_s = await measure_backfill(connection, context, rows)
                if number:  # the first round only warms caches and connections
                    rates = (rows / floor_s, rows / backfill_s)
                    table.add(*rates, floor_s / backfill_s, before_mb, resident_mb(), batches)
                    options.say(f"backfill: round {number}, {floor_s / backfill_s:.2f} of the floor")
        await connection.close()
    return [table]


async def count_batches(connection: asyncpg.Connection, dsn: str) -> int:
    """Count the batches that a walk over a table with wide gaps between its ids takes."""
    await clear(connection)
    fill = FILL.format(table="sparse", rows=SPARSE_ROWS, step=SPARSE_STEP)
    await connection.execute(CREATE.format(table="sparse") + ";" + fill)
    async with walking(dsn, "sparse") as context:
        context.left = context.window_max = UNLIMITED
        batches, has_more = 0, True
        while has_more:
            batch = await backfill.process_outbox_backfill_batch(context, context.walkers[0], SPARSE_BATCH_ROWS)
            batches, has_more = batches + 1, batch is not None and batch.has_more
    await check(connection, "outbox_backfilled", SPARSE_ROWS)
    return batches
