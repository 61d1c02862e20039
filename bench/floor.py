"""What PostgreSQL itself allows: one connection that only reads and deletes the rows."""

from __future__ import annotations

import time
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from bench.load import Load

BATCH_ROWS = 1_000
LEAN_READ = """
SELECT id, category, object_identifier, payload, headers, scheduled_for, date_added
FROM outbox_floor WHERE id > $1 ORDER BY id LIMIT $2
"""


async def _fill(connection: asyncpg.Connection, load: Load) -> None:
    await connection.execute(load.fill("outbox_floor"))
    await connection.execute("ANALYZE outbox_floor")  # else its delete goes by the wrong index, at a third of the speed


async def by_batches(connection: asyncpg.Connection, load: Load) -> float:
    """Seconds to read and delete the rows by primary key, in batches of 1 000."""
    await _fill(connection, load)
    started_at = time.perf_counter()
    seen = 0
    while batch := await connection.fetch(
        "SELECT * FROM outbox_floor WHERE id > $1 ORDER BY id LIMIT $2", seen, BATCH_ROWS
    ):
        seen = batch[-1]["id"]
        await connection.execute("DELETE FROM outbox_floor WHERE id = ANY ($1::bigint[])", [row["id"] for row in batch])
    return time.perf_counter() - started_at


async def by_lean_batches(connection: asyncpg.Connection, load: Load) -> float:
    """Seconds for the same with what outboxd spares: the columns that it reads, times as integers, ids as one text."""
    await _fill(connection, load)
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", format="tuple", encoder=lambda us: (us,), decoder=itemgetter(0)
    )
    read = await connection.prepare(LEAN_READ)
    delete = await connection.prepare("DELETE FROM outbox_floor WHERE id = ANY ($1::text::bigint[])")
    started_at = time.perf_counter()
    seen = 0
    while batch := await read.fetch(seen, BATCH_ROWS):
        seen = batch[-1][0]
        await delete.fetch(f"{{{','.join(str(row[0]) for row in batch)}}}")
    seconds = time.perf_counter() - started_at
    await connection.reset_type_codec("timestamptz", schema="pg_catalog")
    return seconds


async def by_one_statement(connection: asyncpg.Connection, load: Load) -> float:
    """Seconds to delete and return all rows at once."""
    await _fill(connection, load)
    started_at = time.perf_counter()
    await connection.fetch("DELETE FROM outbox_floor RETURNING *")
    return time.perf_counter() - started_at
