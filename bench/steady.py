"""W8: a steady load from other processes: lag, processor time, WAL, and what is left dead."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from bench import stage
from bench.errors import FailedError
from bench.figures import Series, Table, percentiles
from outboxd import registry

if TYPE_CHECKING:
    from bench.options import Options

ROWS_S = 2_000
ROWS_A_TRANSACTION = 10
PRODUCERS = 4
SHARDS = 1_000
INSERT = """
INSERT INTO outbox_drained (shard_scope, shard_identifier, category, object_identifier, payload)
SELECT 0, $1::int8 / {rows} % {shards}, 1, $1::int8 + i, to_jsonb($2::float8) FROM generate_series(1, {rows}) AS i
"""
WAL_OF_DAEMON = """
SELECT sum((pg_stat_get_backend_wal(pid)).wal_bytes)::float8
FROM pg_stat_activity WHERE application_name LIKE 'outboxd: %'
"""
DEAD = "SELECT dead_tuple_count FROM pgstattuple('outbox_drained')"
FLUSHED_AFTER_S = 11.0
"""An idle session reports what it has written after ten seconds at the latest."""
POSTGRESQL_MIN = 180000
"""Since when a backend says how much WAL it has written."""
_lags_s: list[float] = []
_received: list[int] = []


@registry.receiver("ACCOUNT_UPDATE")
async def look_at_clock(message: Any) -> None:
    """Note how long ago the message was written: CLOCK_MONOTONIC is one for all processes."""
    _lags_s.append(time.monotonic() - message.payload)
    _received.append(message.id)


async def measure(options: Options) -> list[Table]:
    """Let producers write for a minute, and look at everything that it costs."""
    seconds = options.scaled(60, 6)
    table = Table(
        "W8",
        f"{PRODUCERS} producers write {ROWS_S:,} rows/s for {seconds} s, {ROWS_A_TRANSACTION} a transaction. Lag is"
        " from before the INSERT to the receiver, so it has the producer's commit in it.",
        [
            Series("delivered, rows/s"),
            Series("lag p50, ms", 1),
            Series("lag p99, ms", 1, at_most=50),
            Series("lag max, ms", 1),
            Series("CPU of the daemon, s per 10,000 rows", 3),
            Series("CPU of the database, s per 10,000 rows, INSERTs too", 3),
            Series("WAL of the drain, bytes a row", 1, at_most=60),
            Series("dead tuples at the end"),
        ],
    )
    for number in range(1, options.rounds + 1):
        async with stage.server() as (dsn, connection), stage.daemon(dsn, look_at_clock):
            if int(await connection.fetchval("SHOW server_version_num")) < POSTGRESQL_MIN:
                raise FailedError("W8 needs PostgreSQL 18 or later, which tells of each session how much WAL it wrote")
            _lags_s.clear()
            _received.clear()
            daemon_s = time.process_time()
            database_s, started_at = await stage.database_cpu_s(connection), time.perf_counter()
            rows = await stage.produced_by("bench.steady", dsn, seconds)
            await stage.until_empty(connection)
            passed_s = time.perf_counter() - started_at
            used = (time.process_time() - daemon_s, await stage.database_cpu_s(connection) - database_s)
            await connection.execute("CREATE EXTENSION pgstattuple")
            dead = await connection.fetchval(DEAD)
            await asyncio.sleep(FLUSHED_AFTER_S)
            wal_row = await connection.fetchval(WAL_OF_DAEMON) / rows
        if len(_received) != rows or len(set(_received)) != rows:
            raise FailedError(f"{rows} messages: {len(set(_received))} were delivered, {len(_received)} times")
        lags_ms = [1_000 * lag for lag in (*percentiles(_lags_s), max(_lags_s))]
        table.add(rows / passed_s, *lags_ms, *(10_000 * each / rows for each in used), wal_row, dead)
        options.say(f"W8 run {number}: lag p50 {lags_ms[0]:.1f} ms, p99 {lags_ms[1]:.1f} ms")
    return [table]


async def _write(dsn: str, seconds: float) -> None:
    """Print how many rows were written."""
    connections = [await asyncpg.connect(dsn) for _ in range(PRODUCERS)]
    statement = INSERT.format(shards=SHARDS, rows=ROWS_A_TRANSACTION)
    written = 0
    start = time.monotonic()

    async def produce(connection: asyncpg.Connection) -> None:
        nonlocal written
        while (now := time.monotonic()) < start + seconds:
            due = int((now - start) * ROWS_S) - written
            if due < ROWS_A_TRANSACTION:
                await asyncio.sleep((ROWS_A_TRANSACTION - due) / ROWS_S)
                continue
            written += ROWS_A_TRANSACTION
            await connection.execute(statement, written, time.monotonic())

    await asyncio.gather(*map(produce, connections))
    for connection in connections:
        await connection.close()
    print(json.dumps(written))


if __name__ == "__main__":
    asyncio.run(_write(sys.argv[1], float(sys.argv[2])))
