"""What an operator does to messages by hand: try them again now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from outboxd import choose, contract, errors, inspection, sql
from outboxd.outbox import renderer_of

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey

_STATEMENTS = sql.load("acts.sql")

SHARDS_MAX = 100_000


class Stuck(NamedTuple):
    """A shard that has a failure, and where it lies."""

    outbox: OutboxConfig
    table: Table
    shard: ShardKey

    @property
    def columns(self) -> dict[str, Any]:
        """The shard's columns by name; `region_name` is None where the outbox has none."""
        return {"region_name": None, **dict(zip(self.table.shard_columns, self.shard, strict=True))}

    def name(self, config: Config) -> str:
        """Name it for people: scope, identifier and region; the outbox where there are several."""
        columns = self.columns
        scopes = {scope.value: name for name, scope in config.scopes.items()}
        scope, region = columns["shard_scope"], columns["region_name"]
        where = f" of outbox {self.outbox.name}" if len(config.outboxes) > 1 else ""
        return f"{scopes.get(scope, scope)} {columns['shard_identifier']}{f' in {region}' if region else ''}{where}"


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


async def has_messages(connection: asyncpg.Connection, config: Config, one: Stuck) -> bool:
    """Tell whether anything waits in a shard; one index probe."""
    statement = renderer_of(one.table, config.schema).render(_STATEMENTS["has_messages"])
    with inspection.translated(f"looking at a shard of outbox {one.outbox.name}"):
        found: bool = await connection.fetchval(statement, *one.shard)
    return found


async def find_stuck(
    connection: asyncpg.Connection,
    config: Config,
    outboxes: Sequence[OutboxConfig],
    categories: Sequence[int] | None = None,
    wanted: Callable[[Stuck], bool] = lambda _: True,
) -> tuple[list[Stuck], list[errors.OutboxdError]]:
    """
    Find the shards that have a failure.

    Args:
        connection: Anybody's.
        config: Schema.
        outboxes: Where to look.
        categories: Only with a failure in one of these; None: every one.
        wanted: Only those for which it says so.

    Returns:
        The shards, and what is wrong with outboxes that could not be looked at: the others do not wait for them (I14).
    """
    found: list[Stuck] = []
    problems: list[errors.OutboxdError] = []
    for outbox in outboxes:
        try:
            table = await inspection.inspect_table(connection, outbox)
            shards = await failing_shards(connection, config, outbox, table, categories)
        except (errors.SchemaError, errors.StatementFailed, errors.InvalidOutboxError) as exc:
            problems.append(exc)
        else:
            found += filter(wanted, (Stuck(outbox, table, shard) for shard in shards))
    return found, problems


async def retry_shards(
    connection: asyncpg.Connection, config: Config, stuck: Sequence[Stuck], categories: Sequence[int] | None = None
) -> int:
    """Make shards due now, one after another, each in a transaction of its own; returns how many messages moved."""
    return sum([await retry_shard(connection, config, one.outbox, one.table, one.shard, categories) for one in stuck])
