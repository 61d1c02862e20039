"""What an operator does to messages by hand: try them again now; and who is at work on a shard meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from outboxd import choose, contract, display, errors, inspection, sql
from outboxd.claims import SHARD_CLASS, WORKER_CLASS
from outboxd.outbox import renderer_of

if TYPE_CHECKING:
    import datetime as dt

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey

_STATEMENTS = sql.load("acts.sql")

SHARDS_MAX = 100_000
PATIENCE_S = 5.0
"""How long an act waits for a shard that somebody else is at work on."""
TRY_EVERY_S = 0.25
LOCK_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 100


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a shard's lock; the last three are those of the daemon that the session belongs to, where it does."""

    backend_pid: int
    application_name: str | None
    pid: int | None
    host: str | None
    started_at: dt.datetime | None

    def __str__(self) -> str:
        if self.started_at is not None:
            since = display.moment(self.started_at)
            return f"the outboxd with pid {self.pid} on {self.host}, which runs since {since}"
        return f"the session with backend pid {self.backend_pid} ({self.application_name or 'without a name'})"


@contextlib.asynccontextmanager
async def transaction(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """
    Open a transaction that waits for no lock longer than `LOCK_TIMEOUT_S`, nor runs on for ever.

    An act moves a few rows of tables of any size, whose statistics are often those of an empty one: by index.
    """
    async with connection.transaction():
        await connection.execute(
            f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s';"
            " SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off;"
            " SET LOCAL jit = off"
        )
        yield


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


async def lock_key(connection: asyncpg.Connection, config: Config, table: Table, shard: ShardKey) -> int:
    """Return the key that a shard is locked by."""
    statement = renderer_of(table, config.schema).render(_STATEMENTS["lock_key"])
    with inspection.translated("making the lock key of a shard"):
        key: int = await connection.fetchval(statement, *shard)
    return key


async def count_shard(connection: asyncpg.Connection, config: Config, table: Table, shard: ShardKey) -> int:
    """Count the messages of a shard; takes a second for some millions."""
    statement = renderer_of(table, config.schema).render(_STATEMENTS["count_shard"])
    with inspection.translated("counting the messages of a shard"):
        messages: int = await connection.fetchval(statement, *shard)
    return messages


async def find_holder(connection: asyncpg.Connection, config: Config, key: int) -> Holder | None:
    """Tell who holds the lock of a shard; None when nobody does any more."""
    statement = sql.Renderer({"schema": sql.quote(config.schema)}, {}).render(_STATEMENTS["holder"])
    with inspection.translated("looking for the holder of a shard"):
        row = await connection.fetchrow(statement, SHARD_CLASS, key, WORKER_CLASS)
    return None if row is None else Holder(*row)
