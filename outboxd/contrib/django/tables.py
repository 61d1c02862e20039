"""
outboxd's own tables in the databases that Django makes for tests.

Elsewhere `manage.py outboxd migrate` makes them, when somebody says so: it takes locks, and a role that owns them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.migrations.executor import MigrationExecutor

from outboxd import errors, load, migrate, session, sql
from outboxd.contrib.django import configuration
from outboxd.producer.blocking import at_once
from outboxd.producer.on_django import DjangoTransaction
from outboxd.producer.portal import PORTAL

if TYPE_CHECKING:
    from outboxd.config import Config

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("testing.sql").items()}
_OWN = ("option", "pause", "failure", "dead_letter", "tombstone", "backfill_watermark", "backfill_spending")
_made: dict[str, set[str]] = {}
"""What this process has made in each database: it is emptied also where a test has named another configuration."""


def follow_django(*, using: str, **more: Any) -> None:
    """
    Receive `post_migrate`: make the tables where Django has migrated a test's database; empty them where it flushed.

    Django flushes after each test of a `TransactionTestCase`, but only what belongs to its models.

    Raises:
        OutboxdError: As `outboxd migrate`.
    """
    if connections[using].vendor != "postgresql" or not configuration.is_test(using):
        return
    has_outboxes = using in configuration.aliases()
    is_flushed = "plan" not in more  # only `migrate` has one
    if is_flushed and (has_outboxes or using in _made):
        _empty(using)
    elif has_outboxes and not is_flushed:
        _make(using)


def _make(using: str) -> None:
    connection = connections[using]
    if connection.in_atomic_block:  # a `TestCase`: ours would see nothing of what it did, and wait for its locks
        return
    loaded = configuration.load_of(using)
    config = loaded.config
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):  # a test of migrations: models are not there yet
        config = msgspec.structs.replace(
            config, model=[msgspec.structs.replace(model, capture=False) for model in config.model]
        )
    PORTAL.run(_migrate(load.session_dsn(loaded), config))
    _made.setdefault(using, set()).update(_tables(config))


async def _migrate(dsn: str, config: Config) -> None:
    async with session.visit(dsn, name="migrate") as connection:
        await migrate.migrate(connection, config)


def _empty(using: str) -> None:
    """Forget what tests have left, and close what their flushes have opened: else no database could be dropped."""
    made = set(_made.get(using, ()))
    with contextlib.suppress(errors.ConfigError, ImproperlyConfigured):  # a test may name any; what was made is known
        made |= _tables(configuration.load_of(using).config)
    there = at_once(
        DjangoTransaction(using, transaction.atomic(using=using)).fetch(_STATEMENTS["that_exist"], sorted(made))
    )
    if there:
        names = {"tables": ", ".join(row["name"] for row in there)}
        with connections[using].cursor() as cursor:
            cursor.execute(sql.Renderer(names, {}).render(_STATEMENTS["empty"]))
    configuration.close_flushers()


def _tables(config: Config) -> set[str]:
    """Name what is filled while an outbox is used; what `migrate` has written itself stays."""
    own = {f"{sql.quote(config.schema)}.{name}" for name in _OWN}
    return own | {sql.quote_qualified(outbox.table) for outbox in config.outboxes}
