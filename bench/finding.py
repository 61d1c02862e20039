"""W4: what finding 1 000 due shards costs among 2 000 000 rows of 200 000 shards that wait for their next attempt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench import stage
from bench.errors import FailedError
from bench.figures import Series, Table
from bench.load import Load
from outboxd.config import DrainConfig
from outboxd.outbox import FIND_PAIRS

if TYPE_CHECKING:
    import asyncpg

    from bench.options import Options

WAITING = """
INSERT INTO outbox_drained (shard_scope, shard_identifier, category, object_identifier, scheduled_from, scheduled_for)
SELECT 0, 1000000 + shard, 1, shard * 10 + i, now(), now() + interval '1 hour'
FROM generate_series(1, {shards}) AS shard, generate_series(0, 9) AS i
"""
FAILURES = """
INSERT INTO outboxd.failure (
    outbox, region_name, shard_scope, shard_identifier, category, object_identifier,
    message_id, attempts, last_error, first_failed_at, last_failed_at
)
SELECT 'drained', '', 0, shard_identifier::text, 1, min(object_identifier)::text, min(id), 3, 'refused', now(), now()
FROM outbox_drained GROUP BY shard_identifier
"""
DUE = Load(1_000, 1, 1)


async def measure(options: Options) -> list[Table]:
    """Measure the whole of it, and the statements that find alone."""
    shards = options.scaled(200_000, 20)
    table = Table(
        "W4",
        f"{DUE.rows:,} due shards among {10 * shards:,} rows in {shards:,} shards in backoff, beside the same alone.",
        [
            Series("found alone, ms", 1),
            Series("found among the others, ms", 1),
            Series("found: among the others / alone", 2, at_most=1.5),
            Series("commit to delivered, alone, ms", 1),
            Series("commit to delivered, among the others, ms", 1),
            Series("delivered: among the others / alone", 2),
        ],
    )
    async with stage.server() as alone, stage.server() as among:
        options.say(f"W4: writing {10 * shards:,} rows")
        await among[1].execute(WAITING.format(shards=shards))
        await among[1].execute(FAILURES)
        for number in range(options.rounds + 1):
            (found, delivered), (found_among, delivered_among) = await _round(*alone), await _round(*among)
            if number:
                ratios = (found_among / found, delivered_among / delivered)
                table.add(found, found_among, ratios[0], delivered, delivered_among, ratios[1])
                options.say(f"W4 round {number}: found in {found:.1f} and {found_among:.1f} ms")
    return [table]


async def _round(dsn: str, connection: asyncpg.Connection) -> tuple[float, float]:
    """Milliseconds to find, and to deliver."""
    await connection.execute("VACUUM (ANALYZE) outbox_drained, outboxd.failure")
    found_s = await _find(dsn, connection)
    async with stage.daemon(dsn, drain=DrainConfig(poll_interval_s=3_600)) as daemon:
        retired = await daemon.retire(connection, DUE)
    return 1_000 * found_s, 1_000 * retired.seconds


async def _find(dsn: str, connection: asyncpg.Connection) -> float:
    """Seconds that a pass of the daemon's own finder takes over due shards that nobody drains."""
    outbox = await stage.outbox(dsn, connection)
    await connection.execute(DUE.fill("outbox_drained"))
    await outbox.find_scheduled_shards(None, FIND_PAIRS)  # its session opens, the statement is prepared
    started_at = time.perf_counter()
    after, found = None, 0
    while True:
        candidates, after = await outbox.find_scheduled_shards(after, FIND_PAIRS)
        found += len(candidates)
        if after is None:
            break
    seconds = time.perf_counter() - started_at
    await outbox.close()
    if found != DUE.rows:
        raise FailedError(f"{found} shards were found, not {DUE.rows}")
    await connection.execute("DELETE FROM outbox_drained WHERE shard_identifier < 1000000")
    await connection.execute("VACUUM outbox_drained")
    return seconds
