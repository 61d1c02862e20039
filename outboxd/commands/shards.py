"""`outboxd shards`: where messages wait, and what is stuck."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, diagnosis, diagnosis_display, display, switching
from outboxd.commands import shared
from outboxd.query import fetch

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.config import OutboxConfig
    from outboxd.load import Loaded
    from outboxd.query import Query

SHARDS = 10
STUCK = 20


@click.command(name="shards")
@click.option("--stuck", is_flag=True, help="Only shards in backoff, the one that has failed longest first.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help=f"Shards at most. Default: {SHARDS}; {STUCK} with --stuck.",
)
@shared.with_outboxes
@shared.with_json
@shared.with_sql
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    stuck: bool,
    limit: int | None,
    outbox: str | None,
    region: str | None,
    as_json: bool,
    as_sql: bool,
) -> None:
    """
    Show the deepest shards, or the stuck ones.

    Of every outbox of the silo mode, in one list; with --region, of those that have regions. Whatever is switched off
    is shown, too.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    outboxes = choose.choose_outboxes(loaded.config, outbox, region)
    ask = diagnosis.stuck if stuck else diagnosis.shards
    limit = limit or (STUCK if stuck else SHARDS)
    query = ask(loaded.config, outboxes, limit=limit, region=region)
    if as_sql:
        shared.echo_sql(query.for_psql())
        return
    rows, off, now, is_partial = asyncio.run(_ask(loaded, outboxes, query))
    if is_partial and not stuck:
        display.say("note: only a part of a large table was read, and no message was in it", err=True)
    if as_json:
        shared.echo_json(rows)
    elif stuck:
        diagnosis_display.show_stuck(rows, off, now)
        shared.note_limit(rows, limit, "first")
    else:
        diagnosis_display.show_shards(rows, off, now)
        shared.note_limit(rows, limit, "deepest")


async def _ask(loaded: Loaded, outboxes: list[OutboxConfig], query: Query) -> tuple[list[Any], list[Any], str, bool]:
    """Return the shards, what is switched off, the time, and whether there may be messages although none was seen."""
    config = loaded.config
    async with access.opened(loaded, "reader", name="shards") as connection:
        rows = await fetch(connection, query, "looking at shards")
        tables = {model.table for model in config.model if model.outbox in {each.name for each in outboxes}}
        off = [row for row in await switching.switched_off(connection, config) if _is_shown(row, outboxes, tables)]
        total = None if rows else await diagnosis.get_total_outbox_count(connection, config, outboxes=outboxes)
        return rows, off, await diagnosis.now(connection), total is not None and total.is_estimate


def _is_shown(row: switching.Row, outboxes: list[OutboxConfig], tables: set[str]) -> bool:
    """Whether something is switched off now that concerns these outboxes, or the backfill of one of these tables."""
    is_here = row["outbox"] in (None, *(each.name for each in outboxes)) and row["table_name"] in (None, *tables)
    return bool(row["in_force"]) and is_here
