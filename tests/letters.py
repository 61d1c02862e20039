"""Dead letters in tests: written without a burial, and looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg


async def write_letters(
    connection: asyncpg.Connection,
    count: int = 1,
    *,
    outbox: str = "region",
    first_message: int = 1_000,
    shard: str = "1",
    category: int = 1,
    region: str | None = None,
    age_s: float = 0,
    payload: str | None = None,
) -> list[int]:
    """
    Write dead letters about objects 1, 2, …, of messages with ids from *first_message* on, and return their ids.

    Args:
        age_s: How long ago they were buried.
        payload: JSON text.
    """
    rows = await connection.fetch(
        "INSERT INTO outboxd.dead_letter (outbox, message_id, region_name, shard_scope, shard_identifier, category,"
        " object_identifier, payload, scheduled_from, scheduled_for, date_added, attempts, reason, buried_by,"
        " buried_at)"
        " SELECT $1, $2::bigint + n, $3, 0, $4, $5, (n + 1)::text, $6::jsonb, now(), now(),"
        " '2026-01-02 03:04:05+00', 3, 'it never worked', 'ada', now() - make_interval(secs => $7)"
        " FROM generate_series(0, $8::int - 1) AS n RETURNING id",
        outbox,
        first_message,
        region,
        shard,
        category,
        payload,
        age_s,
        count,
    )
    return [row[0] for row in rows]


async def letters(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch("SELECT * FROM outboxd.dead_letter ORDER BY id")


async def letter_ids(connection: asyncpg.Connection) -> list[int]:
    return [row["id"] for row in await letters(connection)]
