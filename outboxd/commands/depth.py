"""`outboxd depth`: how many messages of one category wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, diagnosis, diagnosis_display
from outboxd.commands import shared
from outboxd.query import fetch

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.config import OutboxConfig
    from outboxd.load import Loaded
    from outboxd.query import Query


@click.command(name="depth")
@click.argument("category")
@shared.with_outbox
@shared.with_json
@shared.with_sql
@click.pass_obj
def command(
    context: Context, /, *, category: str, outbox: str | None, region: str | None, as_json: bool, as_sql: bool
) -> None:
    """
    Show how many messages of one category wait.

    CATEGORY is a name or a number. Of a large outbox a part is counted, and the answer is an estimate.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    chosen = choose.choose_outbox(loaded.config, outbox, region, needs_region=False)
    number = choose.choose_category(loaded.config, category)
    shared.note_unknown(loaded.config, category=number)
    query = diagnosis.depth(loaded.config, chosen, number, region=region)
    if as_sql:
        shared.echo_sql(query.for_psql())
        return
    rows, now = asyncio.run(_ask(loaded, chosen, query))
    if as_json:
        shared.echo_json(rows)
    else:
        diagnosis_display.show_depth(rows[0], now)
    if not rows[0]["depth"]:
        shared.note_elsewhere(loaded.config, chosen, outbox, region)


async def _ask(loaded: Loaded, outbox: OutboxConfig, query: Query) -> tuple[list[Any], str]:
    async with access.opened(loaded, "reader", name="depth") as connection:
        rows = await fetch(connection, query, f"counting a category of outbox {outbox.name}", outbox=outbox)
        return rows, await diagnosis.now(connection)
