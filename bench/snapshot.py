"""W5: five rounds of W1 while another session holds a snapshot from before; then what idling costs with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import asyncpg

from bench import stage
from bench.drain import LOADS
from bench.figures import Series, Table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.options import Options

ROUNDS = 5
IDLE_S = 45.0
"""Costly passes rest for 15 s: three or so are in it."""
IDLE_S_QUICK = 20.0
WAKE_UPS_S = 20


async def measure(options: Options) -> list[Table]:
    """Measure both; each run has a server of its own, because what is dead there stays."""
    load, _ = LOADS["W1"]
    load = load.quarter() if options.quick else load
    loads = max(ROUNDS, options.scaled(10, 2))
    idle_s = IDLE_S_QUICK if options.quick else IDLE_S
    table = Table(
        "W5",
        f"{ROUNDS} rounds of {load} behind one held snapshot; then {WAKE_UPS_S} wake-ups a second for {idle_s:.0f} s"
        f" over {loads * load.rows:,} delivered rows that cannot be vacuumed, beside the same without a snapshot.",
        [
            *(Series(f"round {number}, rows/s") for number in range(1, ROUNDS + 1)),
            Series("round 5 / round 1", 2, at_least=0.95),
            Series("CPU of idle wake-ups, no snapshot, ms/s", 1),
            Series("CPU of idle wake-ups, held snapshot, ms/s", 1),
            Series("idle CPU: held / none", 2, at_most=2.0),
        ],
    )
    for number in range(1, options.rounds + 1):
        async with stage.server() as (dsn, connection), stage.daemon(dsn) as daemon:
            await daemon.retire(connection, load)
            await connection.execute("VACUUM (ANALYZE) outbox_drained")
            idle_without = await _idle(connection, idle_s)
            async with hold(dsn):
                rows_s = [load.rows / (await daemon.retire(connection, load)).seconds for _ in range(ROUNDS)]
                for _ in range(loads - ROUNDS):
                    await daemon.retire(connection, load)
                await asyncio.sleep(1)
                idle_with = await _idle(connection, idle_s)
        table.add(*rows_s, rows_s[-1] / rows_s[0], idle_without, idle_with, idle_with / idle_without)
        options.say(f"W5 run {number}: round 5 / round 1 {rows_s[-1] / rows_s[0]:.2f}, {idle_with / idle_without:.2f}")
    return [table]


async def _idle(connection: asyncpg.Connection, seconds: float) -> float:
    """Milliseconds of processor a second, of daemon and database, while producers only wake the daemon."""
    oid = await connection.fetchval("SELECT 'outbox_drained'::regclass::oid")
    cpu_s = time.process_time() + await stage.database_cpu_s(connection)
    started_at = time.perf_counter()
    while time.perf_counter() - started_at < seconds:
        await connection.execute(f"NOTIFY outboxd_{oid}")
        await asyncio.sleep(1 / WAKE_UPS_S)
    passed_s = time.perf_counter() - started_at
    return 1_000 * (time.process_time() + await stage.database_cpu_s(connection) - cpu_s) / passed_s


@contextlib.asynccontextmanager
async def hold(dsn: str) -> AsyncIterator[None]:
    """Hold one, as a long report or a forgotten psql does."""
    connection = await asyncpg.connect(dsn)
    async with connection.transaction(isolation="repeatable_read"):
        await connection.fetch("SELECT count(*) FROM outbox_drained")
        yield
    await connection.close()
