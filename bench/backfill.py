"""
How fast a backfill writes, beside the floor: one plain `INSERT … SELECT` of the same rows.

Both run in turn on one embedded PostgreSQL with default durability, so the ratio means something where absolute
numbers do not. See `bench/README.md` for the method and for results.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from outboxd import backfill, log
from outboxd.backfill import Backfill
from outboxd.config import BackfillConfig, CategoryConfig, Config, ModelConfig, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.migrate import migrate
from outboxd.options import SwitchBoard
from outboxd.watermark import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


@dataclasses.dataclass
class Figures:
    """One entry a round: rows/s of both and their ratio; resident memory of this process before and after, in MB."""

    floor_rows_s: list[float] = dataclasses.field(default_factory=list)
    backfill_rows_s: list[float] = dataclasses.field(default_factory=list)
    ratio: list[float] = dataclasses.field(default_factory=list)
    resident_before_mb: list[float] = dataclasses.field(default_factory=list)
    resident_after_mb: list[float] = dataclasses.field(default_factory=list)


def resident_mb() -> float:
    """Tell how much memory this process holds now."""
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], check=True, capture_output=True, text=True)
    return int(listed.stdout) / 1024


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
        raise SystemExit(f"{table} holds {written} rows, {rows} were expected")


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


async def measure(connection: asyncpg.Connection, dsn: str, rows: int, rounds: int) -> Figures:
    figures = Figures()
    await connection.execute(CREATE.format(table="member") + ";" + FILL.format(table="member", rows=rows, step=1))
    await connection.execute("VACUUM (ANALYZE) member")
    async with walking(dsn, "member") as context:
        for number in range(rounds + 1):
            floor_s = await measure_floor(connection, rows)
            before_mb = resident_mb()
            backfill_s = await measure_backfill(connection, context, rows)
            if number:  # the first round only warms caches and connections
                figures.resident_before_mb.append(before_mb)
                figures.resident_after_mb.append(resident_mb())
                figures.floor_rows_s.append(rows / floor_s)
                figures.backfill_rows_s.append(rows / backfill_s)
                figures.ratio.append(floor_s / backfill_s)
                print(f"round {number}: ratio {figures.ratio[-1]:.2f}", file=sys.stderr)
    return figures


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


async def run(rows: int, rounds: int) -> tuple[Figures, int]:
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}) as dsn:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, msgspec.structs.replace(CONFIG, silo_mode="monolith"))
        figures = await measure(connection, dsn, rows, rounds)
        batches = await count_batches(connection, dsn)
        await connection.close()
    return figures, batches


def report(rows: int, figures: Figures, batches: int) -> str:
    lines = [
        f"{rows:,} source rows; default durability; Python {platform.python_version()}",
        f"{'':34}{'median':>12}{'min':>12}{'max':>12}",
    ]
    for label, values, digits in (
        ("floor, rows/s", figures.floor_rows_s, 0),
        ("backfill, rows/s", figures.backfill_rows_s, 0),
        ("ratio", figures.ratio, 2),
        ("resident memory before, MB", figures.resident_before_mb, 1),
        ("resident memory after, MB", figures.resident_after_mb, 1),
    ):
        numbers = (statistics.median(values), min(values), max(values))
        lines.append(f"{label:34}" + "".join(f"{number:12,.{digits}f}" for number in numbers))
    lines.append(
        f"{SPARSE_ROWS:,} rows with ids up to {SPARSE_ROWS * SPARSE_STEP:,}, in batches of {SPARSE_BATCH_ROWS:,}: "
        f"{batches} batches, the last of which finds nothing more"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures of every round to this file")
    options = parser.parse_args()
    log.configure("json", "warning")
    figures, batches = asyncio.run(run(options.rows, options.rounds))
    print(report(options.rows, figures, batches))
    if options.json:
        found = {"rows": options.rows, "sparse_batches": batches, **dataclasses.asdict(figures)}
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
