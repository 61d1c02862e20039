"""
How fast the daemon drains, beside the floor: one connection that only reads and deletes the same rows.

Both run in turn on one embedded PostgreSQL with default durability, so the ratio means something where absolute
numbers do not. See `bench/README.md` for the method and for results.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import asyncpg
import msgspec

from outboxd import log, registry
from outboxd.config import CategoryConfig, Config, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.main import tune_collector
from outboxd.migrate import migrate
from outboxd.pipeline import Pipeline

FLOOR_BATCH_ROWS = 1_000
CONFIG = Config(
    silo_mode="region",
    outbox=[
        OutboxConfig(name="drained", table="outbox_drained", silo="region"),
        # Of the other silo: the daemon leaves it alone, and the floor has a table of the same shape to itself.
        OutboxConfig(name="floor", table="outbox_floor", silo="control"),
    ],
    scopes={"ACCOUNT": ScopeConfig(value=0)},
    categories={"ACCOUNT_UPDATE": CategoryConfig(value=1, scope="ACCOUNT")},
)
FILL = """
INSERT INTO {table} (shard_scope, shard_identifier, category, object_identifier)
SELECT 0, i / ({rows} / {shards}), 1, i % {objects} FROM generate_series(0, {rows} - 1) AS i
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """How many messages, in how many shards, about how many objects (in all; fewer than messages: they coalesce)."""

    rows: int
    shards: int
    objects: int

    def fill(self, table: str) -> str:
        return FILL.format(table=table, rows=self.rows, shards=self.shards, objects=self.objects)


@dataclasses.dataclass
class Figures:
    """One entry a round: rows/s of both and their ratio, receiver calls/s, WAL bytes a drained row."""

    floor_rows_s: list[float] = dataclasses.field(default_factory=list)
    drain_rows_s: list[float] = dataclasses.field(default_factory=list)
    drain_calls_s: list[float] = dataclasses.field(default_factory=list)
    ratio: list[float] = dataclasses.field(default_factory=list)
    wal_bytes_row: list[float] = dataclasses.field(default_factory=list)


@registry.receiver("ACCOUNT_UPDATE")
async def accept(message: object) -> None:
    """Do nothing: the figure is outboxd's own."""


async def measure_floor(connection: asyncpg.Connection, load: Load) -> float:
    """Seconds to read and delete the rows by primary key, in batches, on one connection."""
    await connection.execute(load.fill("outbox_floor"))
    await connection.execute("ANALYZE outbox_floor")  # else its delete goes by the wrong index, at a third of the speed
    started_at = time.perf_counter()
    seen = 0
    while batch := await connection.fetch(
        "SELECT * FROM outbox_floor WHERE id > $1 ORDER BY id LIMIT $2", seen, FLOOR_BATCH_ROWS
    ):
        seen = batch[-1]["id"]
        await connection.execute("DELETE FROM outbox_floor WHERE id = ANY ($1::bigint[])", [row["id"] for row in batch])
    return time.perf_counter() - started_at


async def measure_drain(connection: asyncpg.Connection, pipeline: Pipeline, load: Load) -> tuple[float, int, float]:
    """
    Seconds from the commit of the rows to the commit of the last delete, in a daemon that was idle.

    Returns:
        The seconds, the receiver calls, and the WAL bytes written meanwhile.
    """
    before = pipeline.totals()
    done = asyncio.Event()

    def look() -> None:
        if pipeline.totals()["retired"] - before["retired"] >= load.rows:
            done.set()

    pipeline.live.on_progress = look
    await connection.execute(load.fill("outbox_drained"))
    wal = await connection.fetchval("SELECT pg_current_wal_insert_lsn()")
    started_at = time.perf_counter()
    await done.wait()
    seconds = time.perf_counter() - started_at
    written = await connection.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", wal)
    left = await connection.fetchval("SELECT count(*) FROM outbox_drained")
    if left:
        raise SystemExit(f"{left} rows were left behind")
    return seconds, pipeline.totals()["delivered"] - before["delivered"], float(written)


async def measure(load: Load, rounds: int) -> Figures:
    figures = Figures()
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}) as dsn:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, msgspec.structs.replace(CONFIG, silo_mode="monolith"), notify=True)
        pipeline = Pipeline(CONFIG, registry.build(CONFIG, [accept]), lambda: dsn)
        await pipeline.open()
        for branch in pipeline.branches:
            branch.meter.timed = True  # as in a daemon that is scraped
        tune_collector()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pipeline.run())
            for number in range(rounds + 1):
                await connection.execute("VACUUM (ANALYZE) outbox_floor, outbox_drained")
                floor_s = await measure_floor(connection, load)
                drain_s, calls, wal_bytes = await measure_drain(connection, pipeline, load)
                if number:  # the first round only warms caches and connections
                    figures.floor_rows_s.append(load.rows / floor_s)
                    figures.drain_rows_s.append(load.rows / drain_s)
                    figures.drain_calls_s.append(calls / drain_s)
                    figures.ratio.append(floor_s / drain_s)
                    figures.wal_bytes_row.append(wal_bytes / load.rows)
                    print(f"round {number}: ratio {figures.ratio[-1]:.2f}", file=sys.stderr)
            pipeline.stop()
        await connection.close()
    return figures


def report(load: Load, figures: Figures) -> str:
    lines = [
        f"{load.rows:,} messages in {load.shards:,} shards about {load.objects:,} objects; default durability; "
        f"Python {platform.python_version()}",
        f"{'':34}{'median':>12}{'min':>12}{'max':>12}",
    ]
    for label, values, digits in (
        ("floor, rows/s", figures.floor_rows_s, 0),
        ("outboxd, rows/s", figures.drain_rows_s, 0),
        ("outboxd, receiver calls/s", figures.drain_calls_s, 0),
        ("ratio", figures.ratio, 2),
        ("WAL, bytes a drained row", figures.wal_bytes_row, 1),
    ):
        numbers = (statistics.median(values), min(values), max(values))
        lines.append(f"{label:34}" + "".join(f"{number:12,.{digits}f}" for number in numbers))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--objects", type=int, default=None, help="fewer than rows: messages coalesce (default: rows)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures of every round to this file")
    options = parser.parse_args()
    load = Load(options.rows, options.shards, options.objects or options.rows)
    log.configure("json", "info")
    figures = asyncio.run(measure(load, options.rounds))
    print(report(load, figures))
    if options.json:
        options.json.write_text(json.dumps({"load": dataclasses.asdict(load), **dataclasses.asdict(figures)}, indent=2))


if __name__ == "__main__":
    main()
