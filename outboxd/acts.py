"""What an operator does to messages by hand: try them again now; and who is at work on a shard meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
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

Categories = Sequence[int] | None
OnRetried = Callable[[Sequence["Stuck"]], Awaitable[None]]

_STATEMENTS = sql.load("acts.sql")

_LOCKED = "55P03"
PAGE_SHARDS = 200
"""So many are made due in one statement, which locks up to `backoff_rows_max` messages of each for a moment."""
REFUSED_MAX = 5
PATIENCE_S = 5.0
"""How long an act waits for a shard that somebody else is at work on."""
TRY_EVERY_S = 0.25
DEADLOCK_TRIES = 3
_DEADLOCK = "40P01"
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
async def transaction(connection: asyncpg.Connection, doing: str) -> AsyncIterator[None]:
    """
    Open a transaction that waits for no lock longer than `LOCK_TIMEOUT_S`, nor runs on for ever.

    An act moves a few rows of tables of any size, whose statistics are often those of an empty one: by index.

    Args:
        connection: Of an operator.
        doing: Opens the message of an error that has none yet.

    Raises:
        StatementFailed: With a hint where somebody else has the lock.
        SchemaError, StoreUnavailable: As the database has it.
    """
    try:
        with inspection.translated(doing):
            async with connection.transaction():
                await connection.execute(
                    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s';"
                    f" SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s';"
                    " SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off;"
                    " SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_custom_plan"
                )
                yield
    except errors.StatementFailed as exc:
        if exc.sqlstate == _LOCKED:
            exc.hint = "Another session has locked it: `outboxd doctor` shows open transactions."
        raise


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


class Moved(NamedTuple):
    """How many messages were made due, and in how many shards."""

    messages: int
    shards: int


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


async def retry_shard(connection: asyncpg.Connection, config: Config, one: Stuck, categories: Categories = None) -> int:
    """
    Make a shard due now: its first `backoff_rows_max` messages, and the first of as many objects that failed.

    Args:
        connection: Anybody's; one statement.
        config: Schema and bounds.
        one: Whether it has a failure or not.
        categories: Only messages of these; None: all.

    Returns:
        How many messages were moved; 0 when none was waiting.
    """
    return (await _retry_page(connection, config, [one], categories)).messages


async def make_due(
    connection: asyncpg.Connection, config: Config, page: Sequence[Stuck], categories: Categories = None
) -> Moved:
    """
    Do that for shards of one outbox in a transaction of its own.

    Again, when it has met a drain that moves the same messages in another order.
    """
    for tries_left in reversed(range(DEADLOCK_TRIES)):
        try:
            async with transaction(connection, _retrying(page, config)):
                return await _retry_page(connection, config, page, categories)
        except errors.StatementFailed as exc:
            if exc.sqlstate != _DEADLOCK or not tries_left:
                raise
    raise AssertionError


async def _retry_page(
    connection: asyncpg.Connection, config: Config, page: Sequence[Stuck], categories: Categories
) -> Moved:
    """Do that for shards of one outbox, in one statement."""
    outbox, table = page[0].outbox, page[0].table
    statement = renderer_of(table, config.schema).render(_STATEMENTS["retry_shards"])
    only = None if categories is None else list(categories)
    shards = [list(column) for column in zip(*(one.shard for one in page), strict=True)]
    with inspection.translated(_retrying(page, config)):
        [row] = await connection.fetch(statement, outbox.name, config.drain.backoff_rows_max, only, *shards)
    return Moved(*row)


def _retrying(page: Sequence[Stuck], config: Config) -> str:
    first = page[0]
    shard = f"retrying shard {first.name(config)}"
    return shard if len(page) == 1 else f"{shard} and {len(page) - 1} more"


async def has_messages(connection: asyncpg.Connection, config: Config, one: Stuck) -> bool:
    """Tell whether anything waits in a shard; one index probe."""
    statement = renderer_of(one.table, config.schema).render(_STATEMENTS["has_messages"])
    async with transaction(connection, f"looking at a shard of outbox {one.outbox.name}"):
        found: bool = await connection.fetchval(statement, *one.shard)
    return found


async def find_categories(
    connection: asyncpg.Connection, config: Config, page: Sequence[Stuck], rows_max: int
) -> list[set[int]]:
    """Tell of which categories the first messages of shards of one outbox are, at most so many messages each."""
    outbox, table = page[0].outbox, page[0].table
    statement = renderer_of(table, config.schema).render(_STATEMENTS["categories_of_shards"])
    shards = [list(column) for column in zip(*(one.shard for one in page), strict=True)]
    async with transaction(connection, f"looking at shards of outbox {outbox.name}"):
        rows = await connection.fetch(statement, rows_max, *shards)
    return [set(row[0]) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    Which of the shards that have a failure; None: all.

    Attributes:
        categories: Only with a failure in one of these, of which only such messages are moved.
        shard: Scope, and an identifier whose spelling does not matter: only shards like that are looked at.
        accepts: Only those for which it says so.
    """

    categories: Categories = None
    shard: tuple[int | None, str | None] = (None, None)
    accepts: Callable[[Stuck], bool] = lambda _: True


class Retry:
    """
    Makes the shards due that have a failure: page by page, each in a transaction of its own, until there is none.

    Args:
        connection: Of an operator.
        config: Schema and bounds.
        outboxes: Where to look.
        wanted: Which of their shards.

    Attributes:
        messages, shards: How many were made due, so far, and in how many shards.
        seen: How many shards were looked at for that.
        problems: Why an outbox, or a shard in which somebody has locked a message, was passed over: the others do not
            wait for it (I14). After `REFUSED_MAX` such shards the rest of the outbox is passed over.
    """

    def __init__(
        self, connection: asyncpg.Connection, config: Config, outboxes: Sequence[OutboxConfig], wanted: Wanted
    ) -> None:
        self.messages = 0
        self.shards = 0
        self.seen = 0
        self.problems: list[errors.OutboxdError] = []
        self._connection = connection
        self._config = config
        self._outboxes = outboxes
        self._wanted = wanted

    async def count(self) -> int:
        """Tell how many shards it is about; problems are left to `run`."""
        return sum([len(page) for outbox in self._outboxes async for page in self._pages(outbox, [])])

    async def run(self, on_retried: OnRetried | None = None) -> None:
        """Make them due, and tell of each page."""
        for outbox in self._outboxes:
            refused: list[errors.OutboxdError] = []
            async with contextlib.aclosing(self._pages(outbox, self.problems)) as pages:
                async for page in pages:
                    await self._retry(page, refused, on_retried)
                    if len(refused) >= REFUSED_MAX:
                        text = f"outbox {outbox.name}: {len(refused)} shards were refused, the rest was not tried"
                        refused.append(errors.StatementFailed(text, hint="Try again when nobody locks its messages."))
                        break
            self.problems += refused

    async def _retry(self, page: list[Stuck], refused: list[errors.OutboxdError], on_retried: OnRetried | None) -> None:
        """Make a page due; when that is refused, shard by shard."""
        try:
            moved = await make_due(self._connection, self._config, page, self._wanted.categories)
        except errors.StatementFailed as exc:
            if len(page) == 1:
                refused.append(exc)
                return
        else:
            self.messages += moved.messages
            self.shards += moved.shards
            self.seen += len(page)
            if on_retried is not None:
                await on_retried(page)
            return
        for one in page:
            if len(refused) < REFUSED_MAX:
                await self._retry([one], refused, on_retried)

    async def _pages(self, outbox: OutboxConfig, problems: list[errors.OutboxdError]) -> AsyncGenerator[list[Stuck]]:
        try:
            table = await inspection.inspect_table(self._connection, outbox)
            rows = await self._failing(outbox, None)
            while rows:
                page = [Stuck(outbox, table, _shard_of_row(outbox, table, row)) for row in rows]
                if chosen := [one for one in page if self._wanted.accepts(one)]:
                    yield chosen
                rows = await self._failing(outbox, rows[-1])
        except (errors.SchemaError, errors.StatementFailed, errors.InvalidOutboxError) as exc:
            problems.append(exc)

    async def _failing(self, outbox: OutboxConfig, behind: asyncpg.Record | None) -> list[asyncpg.Record]:
        statement = sql.Renderer({"schema": sql.quote(self._config.schema)}, {}).render(_STATEMENTS["failing_shards"])
        wanted = self._wanted
        only = None if wanted.categories is None else list(wanted.categories)
        arguments = (outbox.name, only, *wanted.shard, *(behind or (None, None, None)), PAGE_SHARDS)
        async with transaction(self._connection, f"looking for failing shards of outbox {outbox.name}"):
            rows: list[asyncpg.Record] = await self._connection.fetch(statement, *arguments)
        return rows


def _shard_of_row(outbox: OutboxConfig, table: Table, row: asyncpg.Record) -> ShardKey:
    return shard_of(table, row[0], row[1], row[2] if contract.has_region(outbox) else None)


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


async def is_all_of(connection: asyncpg.Connection, config: Config, stuck: Stuck, categories: Collection[int]) -> bool:
    """Whether the shard has messages, and none that is of another category."""
    statement = renderer_of(stuck.table, config.schema).render(_STATEMENTS["is_all_of_categories"])
    async with transaction(connection, "looking at the categories of a shard"):
        is_all: bool = await connection.fetchval(statement, list(categories), *stuck.shard)
    return is_all


async def find_holder(connection: asyncpg.Connection, config: Config, key: int) -> Holder | None:
    """Tell who holds the lock of a shard; None when nobody does any more."""
    statement = sql.Renderer({"schema": sql.quote(config.schema)}, {}).render(_STATEMENTS["holder"])
    with inspection.translated("looking for the holder of a shard"):
        row = await connection.fetchrow(statement, SHARD_CLASS, key, WORKER_CLASS)
    return None if row is None else Holder(*row)
