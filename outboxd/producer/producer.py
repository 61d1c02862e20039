"""What a process needs in order to write messages: configuration, the tables as they are, and who flushes."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd import inspection, load, log, registry, sql
from outboxd.model import Message
from outboxd.outbox import renderer_of
from outboxd.producer import counts
from outboxd.producer.context import OutboxContext
from outboxd.producer.draft import NewMessage, Route, columns_of, find_route, row_of
from outboxd.producer.flush import Flusher
from outboxd.producer.portal import PORTAL
from outboxd.producer.transaction import transaction_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outboxd.config import OutboxConfig
    from outboxd.inspection import Table
    from outboxd.load import Loaded
    from outboxd.model import ShardKey
    from outboxd.producer.flush import Unflushed
    from outboxd.producer.seat import Flushed
    from outboxd.producer.transaction import Transaction
    from outboxd.registry import Registry

_STATEMENTS = sql.load("producer.sql")
ALWAYS = dt.datetime(2016, 8, 1, tzinfo=dt.UTC)


class Saved(msgspec.Struct, frozen=True):
    """A message that was written, and whether it is to be flushed; only then its content is kept."""

    id: int
    route: Route
    category: str
    table: Table
    shard: ShardKey
    message: NewMessage | None
    flush: bool


class Producer:
    """
    Writes messages, and flushes them, by one configuration.

    Args:
        loaded: The configuration.
        receivers: Functions marked with `@receiver`, besides those of `[receivers] modules`.
        registry: The receivers of this process, where they are known already.
    """

    def __init__(
        self, loaded: Loaded, receivers: Iterable[Callable[..., Any]] = (), *, registry: Registry | None = None
    ) -> None:
        self.config = loaded.config
        self.is_pooled = False
        """Whether there is no direct connection to flush on: then daemons are woken."""
        self._loaded = loaded
        self._receivers = list(receivers)
        self._registry = registry
        self._routes: dict[tuple[str, str | None, bool], Route] = {}
        self._tables: dict[str, Table] = {}
        self._statements: dict[int, str] = {}
        self._flushers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Flusher] = weakref.WeakKeyDictionary()

    @classmethod
    def load(cls, config: Path | str | None = None, *, receivers: Iterable[Callable[..., Any]] = ()) -> Producer:
        """
        Load a configuration, by default the one that the daemon would use (OUTBOX_CONFIG, ./outboxd.toml …).

        What it writes and flushes is then on the metrics page of the process, where that has one; what there is to say
        of a flush goes to the standard library's logging.

        Raises:
            ConfigError: It is missing or wrong.
        """
        counts.publish()
        log.configure_as_library()
        return cls(load.load(Path(config) if config is not None else None), receivers)

    def context(
        self, connection: Any = None, *, flush: bool | None = None, flush_timeout_s: float | None = None
    ) -> OutboxContext:
        """Return a context as `outbox_context` does, by this configuration."""
        transaction = None if connection is None else transaction_on(connection)
        timeout_s = self.config.producer.flush_timeout_s if flush_timeout_s is None else flush_timeout_s
        return OutboxContext(self, transaction, flush=flush, flush_timeout_s=timeout_s)

    def prepare(self) -> None:
        """
        Import the receivers, once.

        Raises:
            ConfigError: A module does not import, or a category is unknown.
        """
        if self._registry is None:
            functions = registry.load_receivers(self.config.receivers.modules, self._loaded.folder)
            functions += [each for each in self._receivers if each not in functions]
            self._registry = registry.build(self.config, functions)

    @property
    def can_flush(self) -> bool:
        """Whether this process has receivers, and a direct connection to hold locks on."""
        return not self.is_pooled and self._registry is not None and self._registry.receiver_count > 0

    def flusher(self) -> Flusher:
        """Return what flushes in the event loop that runs."""
        loop = asyncio.get_running_loop()
        found = self._flushers.get(loop)
        if found is None:
            assert self._registry is not None
            found = Flusher(self.config, self._registry, functools.partial(load.session_dsn, self._loaded))
            self._flushers[loop] = found
        return found

    async def flush(self, shards: Sequence[Flushed], timeout_s: float, *, waits: bool) -> list[Unflushed]:
        """Flush in the event loop that runs; see `Flusher`."""
        return await self.flusher().flush(shards, timeout_s, waits=waits)

    def flush_blocking(self, shards: Sequence[Flushed], timeout_s: float, *, waits: bool) -> list[Unflushed]:
        """Flush in an event loop of our own, for an application without one."""
        return PORTAL.run(self.flush(shards, timeout_s, waits=waits))

    def close_blocking(self) -> None:
        """Close the connections of our own event loop."""
        PORTAL.run(self.close())

    async def close(self) -> None:
        """Close the connections of the event loop that runs; a later flush opens new ones."""
        found = self._flushers.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.close()

    async def write(self, transaction: Transaction, messages: Sequence[NewMessage], *, flush: bool) -> list[Saved]:
        """
        Write messages; all are checked before the first is written.

        Raises:
            InvalidOutboxError: One breaks a rule.
            SchemaError: A table is not there.
        """
        by_outbox: dict[str, list[tuple[int, NewMessage, Route]]] = {}
        for number, message in enumerate(messages):
            route = self._route(message)
            by_outbox.setdefault(route.outbox.name, []).append((number, message, route))
        batches = []
        for batch in by_outbox.values():
            table = await self._table(transaction, batch[0][2].outbox)
            batches.append((batch, table, [row_of(message, route, table) for _, message, route in batch]))
        saved: list[Saved | None] = [None] * len(messages)
        for batch, table, rows in batches:
            ids = await transaction.fetch(self._save_statement(table), *columns_of(rows))
            for (number, message, route), row, record in zip(batch, rows, ids, strict=True):
                saved[number] = Saved(
                    record["id"], route, message.category, table, row[4:], message if flush else None, flush
                )
        return [each for each in saved if each is not None]

    async def wake(self, transaction: Transaction, saved: Iterable[Saved]) -> None:
        """Wake the daemons of the outboxes that were written in."""
        for oid in {each.table.oid for each in saved}:
            await transaction.fetch(_STATEMENTS["wake"], f"outboxd_{oid}")

    async def still_there(self, transaction: Transaction, saved: Iterable[Saved]) -> list[Saved]:
        """Return those that are in their outbox still."""
        by_table: dict[int, dict[int, Saved]] = {}
        for each in saved:
            by_table.setdefault(each.table.oid, {})[each.id] = each
        left = []
        for own in by_table.values():
            table = next(iter(own.values())).table
            statement = renderer_of(table, self.config.schema).render(_STATEMENTS["still_there"])
            left += [own[row["id"]] for row in await transaction.fetch(statement, list(own))]
        return left

    def count(self, saved: Iterable[Saved]) -> None:
        """Count what was committed."""
        counts.save((each.route.outbox.name, each.category) for each in saved)

    def message_of(self, saved: Saved) -> Message | None:
        """Return a message as a receiver would get it, where its content was kept; its times are about those of now."""
        new, config = saved.message, saved.route.outbox
        if new is None:
            return None
        columns = dict(zip(saved.table.shard_columns, saved.shard, strict=True))
        return Message(
            id=saved.id,
            outbox=config.name,
            shard_scope=saved.route.scope,
            shard_identifier=columns["shard_identifier"],
            region_name=columns.get("region_name"),
            category=saved.route.category,
            category_name=new.category,
            scope_name=self.config.categories[new.category].scope,
            object_identifier=new.object_identifier,
            payload=new.payload,
            headers=None if new.headers is None else dict(new.headers),
            date_added=dt.datetime.now(dt.UTC),
            scheduled_for=ALWAYS,
            attempt=1,
            coalesced=1,
        )

    def _route(self, message: NewMessage) -> Route:
        key = (message.category, message.outbox, message.region_name is not None)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = find_route(self.config, message)
        return route

    async def _table(self, transaction: Transaction, outbox: OutboxConfig) -> Table:
        """Look at a table once. Only its columns: a producer goes on while an index is being rebuilt."""
        table = self._tables.get(outbox.name)
        if table is None:
            table = self._tables[outbox.name] = await inspection.read_table(transaction, outbox)
        return table

    def _save_statement(self, table: Table) -> str:
        statement = self._statements.get(table.oid)
        if statement is None:
            has = table.has_headers
            renderer = renderer_of(
                table,
                self.config.schema,
                object_type=table.object_type,
                headers_name="headers, " if has else "",
                headers_value="new.headers::jsonb, " if has else "",
            )
            statement = self._statements[table.oid] = renderer.render(_STATEMENTS["save"])
        return statement
