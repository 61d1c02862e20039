"""What a process needs in order to write messages: configuration, the tables as they are, and who flushes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outboxd import errors, inspection, load, log, registry, sql
from outboxd.model import Message
from outboxd.outbox import renderer_of
from outboxd.producer import counts
from outboxd.producer.batch import Batch
from outboxd.producer.context import OutboxContext
from outboxd.producer.draft import NewMessage, Route, columns_of, find_route
from outboxd.producer.flush import Flusher
from outboxd.producer.portal import PORTAL
from outboxd.producer.transaction import transaction_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outboxd.config import OutboxConfig
    from outboxd.inspection import Table
    from outboxd.load import Loaded
    from outboxd.producer.flush import Unflushed
    from outboxd.producer.seat import Flushed
    from outboxd.producer.transaction import Transaction
    from outboxd.registry import Registry

_STATEMENTS = sql.load("producer.sql")
SHARD_COLUMNS = 4
"""How many columns stand before those of the shard, in what the statement takes."""
ALWAYS = dt.datetime(2016, 8, 1, tzinfo=dt.UTC)


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
        self.source = loaded.source
        self.is_pooled = False
        """Whether there is no direct connection to flush on: then daemons are woken."""
        self.is_at_home = False
        """Whether flushes are known to work in the database that is written in."""
        self._loaded = loaded
        self._receivers = list(receivers)
        self._registry = registry
        self._routes: dict[tuple[str, str | None, bool], Route] = {}
        self._tables: dict[str, Table] = {}
        self._statements: dict[int, str] = {}
        self._flushers: dict[asyncio.AbstractEventLoop, Flusher] = {}

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
        self,
        connection: Any = None,
        *,
        flush: bool | None = None,
        flush_timeout_s: float | None = None,
        default_flush: bool = False,
    ) -> OutboxContext:
        """Return a context as `outbox_context` does, by this configuration; see `OutboxContext` for *default_flush*."""
        transaction = None if connection is None else transaction_on(connection)
        timeout_s = self.config.producer.flush_timeout_s if flush_timeout_s is None else flush_timeout_s
        if not 0 < timeout_s < math.inf:
            raise errors.OutboxContextError(f"flush_timeout_s must be a number of seconds above 0, not {timeout_s}")
        return OutboxContext(self, transaction, flush=flush, flush_timeout_s=timeout_s, default_flush=default_flush)

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
            for ended in [each for each in self._flushers if each.is_closed()]:
                del self._flushers[ended]
            assert self._registry is not None
            found = Flusher(self.config, self._registry, functools.partial(load.session_dsn, self._loaded))
            self._flushers[loop] = found
        return found

    async def flush(self, shards: Sequence[Flushed], timeout_s: float, *, waits: bool) -> list[Unflushed]:
        """Flush in the event loop that runs; see `Flusher`."""
        return await self.flusher().flush(shards, timeout_s, waits=waits)

    def flush_blocking(self, shards: Sequence[Flushed], timeout_s: float, *, waits: bool) -> list[Unflushed]:
        """Flush in an event loop of our own, for an application without one."""
        return PORTAL.run(self.flush(shards, timeout_s, waits=waits), otherwise=self.flush_once(shards, timeout_s))

    async def flush_once(self, shards: Sequence[Flushed], timeout_s: float) -> list[Unflushed]:
        """Flush inside a receiver that blocks our own event loop: in one that ends with it, connections and all."""
        try:
            return await self.flush(shards, timeout_s, waits=False)
        finally:
            await self.close()

    def close_blocking(self) -> None:
        """Close the connections of our own event loop."""
        if self._flushers:  # else the loop's thread may not be there yet, and nobody needs it
            PORTAL.run(self.close())

    async def close(self) -> None:
        """Close the connections of the event loop that runs; a later flush opens new ones."""
        found = self._flushers.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.close()

    async def write(
        self, transaction: Transaction, messages: Sequence[NewMessage], *, flush: bool
    ) -> tuple[list[int], list[Batch]]:
        """
        Write messages, by one statement for each outbox; all are checked before the first is written.

        Returns:
            Their ids, in order; and what was written in each outbox.

        Raises:
            InvalidOutboxError: One breaks a rule.
            SchemaError: A table is not there.
        """
        by_outbox: dict[str, list[int]] = {}
        routes = list(map(self._route, messages))
        for number, route in enumerate(routes):
            by_outbox.setdefault(route.outbox.name, []).append(number)
        parts = []
        for numbers in by_outbox.values():
            outbox = routes[numbers[0]].outbox
            table = await self._table(transaction, outbox)
            own = [messages[number] for number in numbers]
            columns = columns_of(own, [routes[number] for number in numbers], table)
            parts.append((numbers, own, columns, Batch(outbox, table, flush)))
        ids = [0] * len(messages)
        for numbers, own, columns, batch in parts:
            rows = await transaction.fetch(self._save_statement(batch.table), *columns)
            batch.ids = [row["id"] for row in rows]
            batch.categories = Counter(message.category for message in own)
            if flush:
                batch.messages, batch.shards = own, list(zip(*columns[SHARD_COLUMNS:], strict=True))
            for number, id_ in zip(numbers, batch.ids, strict=True):
                ids[number] = id_
        return ids, [batch for *_, batch in parts]

    async def wake(self, transaction: Transaction, batches: Iterable[Batch]) -> None:
        """Wake the daemons of the outboxes that were written in."""
        for oid in {batch.table.oid for batch in batches}:
            await transaction.fetch(_STATEMENTS["wake"], f"outboxd_{oid}")

    async def note_database(self, transaction: Transaction, batches: Iterable[Batch]) -> None:
        """Note where what is to be flushed was committed, until a flush has found that to be where it works itself."""
        flushed = [batch for batch in batches if batch.flush]
        if not flushed or self.is_at_home or not self.can_flush:
            return
        with contextlib.suppress(Exception):  # it is committed: without the connection there is nothing to compare
            row = await transaction.fetchrow(_STATEMENTS["database"])
            for batch in flushed:
                batch.database = row["database"]

    async def refuse_broken(self, transaction: Transaction) -> None:
        """Raise the driver's error where a COMMIT would be a ROLLBACK in silence, because a statement has failed."""
        await transaction.fetch(_STATEMENTS["nothing"])

    async def still_there(self, transaction: Transaction, batches: Iterable[Batch]) -> tuple[int, Message | None]:
        """Tell how many of the messages are in their outbox still; and the first of them, where that is known."""
        count, first = 0, None
        for batch in batches:
            statement = renderer_of(batch.table, self.config.schema).render(_STATEMENTS["still_there"])
            left = [row["id"] for row in await transaction.fetch(statement, batch.ids)]
            count += len(left)
            first = first or (self.message_of(batch, left[0]) if left else None)
        return count, first

    def message_of(self, batch: Batch, id_: int) -> Message | None:
        """Return a message as a receiver would get it, where its content was kept; its times are about those of now."""
        if not batch.messages:
            return None
        index = batch.ids.index(id_)
        new, shard = batch.messages[index], batch.shards[index]
        columns = dict(zip(batch.table.shard_columns, shard, strict=True))
        return Message(
            id=id_,
            outbox=batch.outbox.name,
            shard_scope=columns["shard_scope"],
            shard_identifier=columns["shard_identifier"],
            region_name=columns.get("region_name"),
            category=self.config.categories[new.category].value,
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
