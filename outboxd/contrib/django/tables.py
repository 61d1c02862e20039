"""
outboxd's own tables in the databases that Django makes for tests.

Elsewhere `manage.py outboxd migrate` makes them, when somebody says so: it takes locks, and a role that owns them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from django.db import connections

from outboxd import load, migrate, session, sql
from outboxd.contrib.django import configuration

_STATEMENTS = sql.load("testing.sql")


def follow_django(*, using: str, **more: Any) -> None:
    """
    Receive `post_migrate`: make the tables where Django has migrated a test's database; empty them where it flushed.

    Django flushes after each test of a `TransactionTestCase`, but only what belongs to its models.

    Raises:
        OutboxdError: As `outboxd migrate`.
    """
    if not configuration.is_test() or using not in configuration.aliases():
        return
    if connections[using].vendor != "postgresql":
        return
    if "plan" in more:  # of `migrate`; `flush` has none
        asyncio.run(_migrate(configuration.load_of(using)))
    else:
        _empty(using)


async def _migrate(loaded: load.Loaded) -> None:
    async with session.visit(load.session_dsn(loaded), name="migrate") as connection:
        await migrate.migrate(connection, loaded.config)


def _empty(using: str) -> None:
    """Forget what tests have left, and close what their flushes have opened: else no database could be dropped."""
    config = configuration.load_of(using).config
    tables = ", ".join(sql.quote_qualified(outbox.table) for outbox in config.outboxes)
    names = {"tables": tables, "schema": sql.quote(config.schema)}
    with connections[using].cursor() as cursor:
        cursor.execute(sql.Renderer(names, {}).render(_STATEMENTS["empty"]))
    configuration.close_flushers()
