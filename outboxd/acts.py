"""What an operator does to messages by hand: try them again now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outboxd import choose, contract, inspection, sql
from outboxd.outbox import renderer_of

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey

_STATEMENTS = sql.load("acts.sql")

SHARDS_MAX = 100_000


def shard_of(table: Table, scope: int, identifier: str, region: str | None) -> ShardKey:
    """
    Return the shard that a command line means, in the types of the table's columns.

    Raises:
        InvalidOutboxError: The identifier is not of the column's type.
    """
    type_ = table.shard_columns["shard_identifier"]
    values: dict[str, Any] = {"shard_scope": scope, "region_name": region}
    values["shard_identifier"] = choose.parse_identifier(identifier, type_, "the shard identifier")
    return tuple(values[column] for column in table.shard_columns)


async def retry_shard(
    connection: asyncpg.Connection,
    config: Config,
    outbox: OutboxConfig,
    table: Table,
    shard: ShardKey,
    categories: Sequence[int] | None = None,
) -> int:
    """
    Make a shard due now: its first `backoff_rows_max` messages, and what failed in it.

    Args:
        connection: Anybody's; one statement.
        config: Schema and bounds.
        outbox: Of the shard.
        table: Of the outbox.
        shard: As `shard_of` returns it.
        categories: Only messages of these; None: all.

    Returns:
        How many messages were moved; 0 when none was waiting.
    """
    statement = renderer_of(table, config.schema).render(_STATEMENTS["retry_shard"])
    only = None if categories is None else list(categories)
    with inspection.translated(f"retrying a shard of outbox {outbox.name}"):
        moved: int = await connection.fetchval(statement, outbox.name, config.drain.backoff_rows_max, only, *shard)
    return moved


async def failing_shards(
    connection: asyncpg.Connection,
    config: Config,
    outbox: OutboxConfig,
    table: Table,
    categories: Sequence[int] | None = None,
) -> list[ShardKey]:
    """Return the shards of an outbox that have a failure, at most `SHARDS_MAX`; the one that waits longest first."""
    statement = sql.Renderer({"schema": sql.quote(config.schema)}, {}).render(_STATEMENTS["failing_shards"])
    only = None if categories is None else list(categories)
    with inspection.translated(f"looking for failing shards of outbox {outbox.name}"):
        rows = await connection.fetch(statement, outbox.name, only, SHARDS_MAX)
    has_region = contract.has_region(outbox)
    return [shard_of(table, row[0], row[1], row[2] if has_region else None) for row in rows]
