"""
For the tests of Django applications: deliver what was written, at the end of a block.

    with outbox_runner():
        Member.objects.create(...)
    # here every receiver has run

In an `async def` test it is `async with`.

In a `TransactionTestCase` it is the daemon's own loop, as `outboxd.testing.outbox_runner` is. In a `TestCase` nothing
is ever committed and no other connection could see it: so the receivers are called here, in the test's own transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime as dt
import functools
import inspect
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from outboxd import errors, inspection, load, registry, sql, testing
from outboxd.contrib.django import configuration, settled
from outboxd.deliver import is_delivering
from outboxd.model import Message
from outboxd.outbox import renderer_of
from outboxd.producer.blocking import at_once
from outboxd.producer.on_django import DjangoTransaction
from outboxd.producer.portal import PORTAL
from outboxd.turn import coalesce

if TYPE_CHECKING:
    from outboxd.config import OutboxConfig
    from outboxd.registry import Category, Receiver, Registry

_STATEMENTS = sql.load("testing.sql")

Functions = Iterable[Callable[..., Any]]


def outbox_runner(using: str = DEFAULT_DB_ALIAS, *, receivers: Functions = ()) -> Runner:
    """
    Deliver everything that is due when the block, or the decorated function, ends without an error.

    Args:
        using: A database of the settings.
        receivers: Functions marked with `@receiver` to use besides those of the configured modules.

    Raises:
        OutboxFlushError: A receiver raised; bears the message, which stays in the outbox.
        OutboxRecursionLimitError: After ten rounds receivers were still writing messages.
        ConfigError, SchemaError: As for the daemon.
    """
    return Runner(using, receivers)


class Runner(contextlib.ContextDecorator):
    """What `outbox_runner` makes."""

    def __init__(self, using: str, receivers: Functions) -> None:
        self._using = using
        self._receivers = list(receivers)

    def __enter__(self) -> None:
        """
        Begin the block.

        Raises:
            OutboxContextError: In a coroutine, whose thread has another connection than the test.
        """
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise errors.OutboxContextError(
                "outbox_runner in an async def", hint="Write `async with outbox_runner():` there."
            )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Deliver."""
        if kind is None:
            _deliver(self._using, self._receivers)

    async def __aenter__(self) -> None:
        """Begin the block."""

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Deliver, in the thread that Django's database is used in."""
        if kind is None:
            await sync_to_async(_deliver)(self._using, self._receivers)

    def __call__(self, function: Any) -> Any:
        """Decorate a function, which may be a coroutine's."""
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @functools.wraps(function)
        async def run(*args: Any, **options: Any) -> Any:
            async with self:
                return await function(*args, **options)

        return run


def _deliver(using: str, receivers: list[Callable[..., Any]]) -> None:
    loaded = configuration.load_of(using)
    if connections[using].in_atomic_block:
        functions = registry.load_receivers(loaded.config.receivers.modules, loaded.folder)
        functions += [each for each in receivers if each not in functions]
        _deliver_all(using, loaded, registry.build(loaded.config, functions))
    else:
        PORTAL.run(_drain(using, loaded, receivers))


async def _drain(using: str, loaded: load.Loaded, receivers: list[Callable[..., Any]]) -> None:
    dsn = load.session_dsn(loaded)
    async with testing.outbox_runner(configuration.path_of(using), dsn=dsn, receivers=receivers):
        pass


def _deliver_all(using: str, loaded: load.Loaded, built: Registry) -> None:
    outboxes = [_Outbox(using, config, loaded.config.schema, built) for config in loaded.config.require_outboxes()]
    for _ in range(testing.ROUNDS_MAX):
        delivered = [outbox.deliver_due() for outbox in outboxes]
        if not any(delivered):
            return
    if any(outbox.due() for outbox in outboxes):
        raise errors.OutboxRecursionLimitError(f"the outbox was not empty after {testing.ROUNDS_MAX} rounds")


class _Outbox:
    """One outbox, through Django's connection."""

    def __init__(self, using: str, config: OutboxConfig, schema: str, built: Registry) -> None:
        self._using = using
        self._config = config
        self._registry = built
        self._transaction = DjangoTransaction(using, transaction.atomic(using=using))
        self._table = at_once(inspection.read_table(self._transaction, config))
        headers = "o.headers::text" if self._table.has_headers else "NULL::text"
        renderer = renderer_of(self._table, schema, headers_text=headers)
        self._sql = {name: renderer.render(_STATEMENTS[name]) for name in ("due", "retire")}

    def due(self) -> list[dict[str, Any]]:
        return at_once(self._transaction.fetch(self._sql["due"]))

    def deliver_due(self) -> bool:
        """Deliver what is due now, shard by shard, coalesced; False when there is nothing."""
        shards: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self.due():
            shards.setdefault(tuple(row[column] for column in self._table.shard_columns), []).append(row)
        for rows in shards.values():
            by_id = {row["id"]: row for row in rows}
            places: Any = [(0, row["id"], row["category"], row["object_identifier"]) for row in rows]
            for group in coalesce(places, self._registry.apart):
                self._deliver(by_id[group.ids[-1]], group.ids)
        return bool(shards)

    def _deliver(self, newest: dict[str, Any], ids: list[int]) -> None:
        category = self._registry.categories.get(newest["category"])
        if category is None:
            raise errors.OutboxFlushError(f"the configuration has no category with the number {newest['category']}")
        message = self._message(newest, category, len(ids))
        if not category.receivers and self._config.on_unhandled == "fail":
            raise errors.OutboxFlushError(f"no receiver is registered for category {category.name}", message)
        for each in category.receivers:
            try:
                with transaction.atomic(using=self._using):  # a broken statement must not break the test's transaction
                    contextvars.copy_context().run(_call, each, message)
            except errors.Discard:
                break
            except Exception as exc:
                text = f"{each.name} raised {type(exc).__name__}: {exc}"
                raise errors.OutboxFlushError(text, message) from exc
        at_once(self._transaction.fetch(self._sql["retire"], ids))

    def _message(self, row: dict[str, Any], category: Category, coalesced: int) -> Message:
        return Message(
            id=row["id"],
            outbox=self._config.name,
            shard_scope=row["shard_scope"],
            shard_identifier=row["shard_identifier"],
            region_name=row.get("region_name"),
            category=category.value,
            category_name=category.name,
            scope_name=self._registry.scopes.get(row["shard_scope"]) or str(row["shard_scope"]),
            object_identifier=row["object_identifier"],
            payload=None if row["payload"] is None else json.loads(row["payload"]),
            headers=None if row["headers"] is None else json.loads(row["headers"]),
            date_added=dt.datetime.fromtimestamp(row["date_added"], dt.UTC),
            scheduled_for=dt.datetime.fromtimestamp(row["scheduled_for"], dt.UTC),
            attempt=1,
            coalesced=coalesced,
        )


def _call(receiver: Receiver, message: Message) -> None:
    """Call a receiver in this thread, whose connection sees what the test has written."""
    is_delivering.set(True)
    settled(receiver.call(message))
