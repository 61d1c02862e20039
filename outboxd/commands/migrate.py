"""`outboxd migrate`: create or complete the tables, or print the script that does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from outboxd import display, load, migrate, migration_script, session

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.load import Loaded


@click.command(name="migrate")
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL for a DBA; needs no database.")
@click.option("--notify", is_flag=True, help="Also add triggers that wake the daemon on INSERT.")
@click.pass_obj
def command(context: Context, *, as_sql: bool, notify: bool) -> None:
    """
    Create or complete the outbox tables and outboxd's own schema.

    Safe to run again, and while daemons run: indexes on existing tables are built concurrently. A table
    that is there already is adopted: only what is missing is added, and what cannot be is refused.
    """
    loaded = context.load()
    loaded.config.require_outboxes()
    if as_sql:
        click.echo(migration_script.migration_sql(loaded.config, notify=notify), nl=False)
        return
    done = asyncio.run(_migrate(loaded, notify=notify))
    display.say("\n".join(done) if done else "nothing to do: the database is up to date")


async def _migrate(loaded: Loaded, *, notify: bool) -> list[str]:
    # Directly: behind a pooler in transaction mode the migration lock would be stranded.
    dsn = load.read_secret(loaded, "session_dsn") or load.read_secret(loaded, "dsn")
    connection = await session.connect(dsn, name="migrate")
    try:
        return await migrate.migrate(connection, loaded.config, notify=notify)
    finally:
        await session.close_quietly(connection)
