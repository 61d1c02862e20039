"""Capture in tests: a table whose changes are captured, and what was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd.config import ModelConfig
from outboxd.migrate import migrate
from tests.drains import CONTROL, REGION, configure

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config

TABLE = "CREATE TABLE member (id bigint PRIMARY KEY, org bigint, slug text, seen int DEFAULT 0)"
MEMBER = {
    "table": "member",
    "outbox": "region",
    "category": "MEMBER",
    "shard_identifier": "org",
    "capture": True,
    "replication_version": 0,
}


def capturing(*outboxes: Any, **model: Any) -> Config:
    config = configure(*(outboxes or (REGION, CONTROL)))
    return msgspec.structs.replace(config, model=[msgspec.convert(MEMBER | model, ModelConfig)])


async def capture(connection: asyncpg.Connection, table: str = TABLE, **model: Any) -> list[str]:
    await connection.execute(table)
    return await migrate(connection, capturing(**model))


async def taken(connection: asyncpg.Connection, table: str = "outbox") -> list[tuple[Any, ...]]:
    """What was captured since the last look: shard, object, operation, payload."""
    rows = await connection.fetch(f"DELETE FROM {table} RETURNING *")
    return sorted(
        (row["shard_identifier"], row["object_identifier"], json.loads(row["headers"])["op"])
        + ((json.loads(row["payload"]),) if row["payload"] is not None else ())
        for row in rows
    )
