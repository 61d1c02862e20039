"""Resident memory of a daemon beside millions of waiting rows."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import psutil

from bench import stage
from bench.figures import Series, Table
from outboxd import log, registry

if TYPE_CHECKING:
    from bench.options import Options

FILL = """
INSERT INTO outbox_drained (shard_scope, shard_identifier, category, object_identifier)
SELECT 0, i / 10, 1, i FROM generate_series({start}, {end} - 1) AS i
"""
CHUNK = 500_000
WATCH_S = 20.0


@registry.receiver("ACCOUNT_UPDATE")
async def hang(message: object) -> None:
    """Never come back: what waits, waits behind the drainers."""
    await asyncio.sleep(3_600)


async def measure(options: Options) -> list[Table]:
    """Look at the peak of a daemon that finds as many due rows as it can and delivers none."""
    rows = options.scaled(10_000_000)
    table = Table(
        "Memory",
        f"A daemon of its own process for {WATCH_S:.0f} s beside {rows:,} due rows in {rows // 10:,} shards; its five"
        " receivers are busy all the time.",
        [Series("resident memory, idle, MB", 1), Series("peak of resident memory, MB", 1, at_most=100)],
    )
    async with stage.server() as (dsn, connection):
        idle_mb = await _peak_mb(dsn, 2.0)
        for start in range(0, rows, CHUNK):
            options.say(f"memory: {start:,} rows written")
            await connection.execute(FILL.format(start=start, end=min(rows, start + CHUNK)))
        await connection.execute("ANALYZE outbox_drained")
        table.add(idle_mb, await _peak_mb(dsn, WATCH_S))
    return [table]


async def _peak_mb(dsn: str, seconds: float) -> float:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.memory", dsn, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()  # ready
    watched = psutil.Process(process.pid)
    ends_at, peak = time.monotonic() + seconds, 0
    while time.monotonic() < ends_at:
        peak = max(peak, watched.memory_info().rss)
        await asyncio.sleep(0.05)
    process.kill()
    await process.wait()
    return peak / 1e6


async def _serve(dsn: str) -> None:
    log.configure("json", "warning")
    async with stage.daemon(dsn, hang):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
