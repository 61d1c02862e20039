"""`outboxd object`: the messages about one object."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, diagnosis, diagnosis_display, display
from outboxd.commands import shared
from outboxd.query import fetch

if TYPE_CHECKING:
    from outboxd.commands import Context


@click.command(name="object")
@click.argument("category")
@click.argument("object_", metavar="OBJECT")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help="Messages at most."
)
@shared.with_outbox
@shared.with_json
@shared.with_sql
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    category: str,
    object_: str,
    limit: int,
    outbox: str | None,
    region: str | None,
    as_json: bool,
    as_sql: bool,
) -> None:
    """
    Show the messages about one object, the newest first.

    CATEGORY is a name or a number. No index knows objects: of a large outbox only the newest million messages are
    looked at, and that is said.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    config = loaded.config
    chosen = choose.choose_outbox(config, outbox, region, needs_region=False)
    number = choose.choose_category(config, category)
    shared.note_unknown(config, category=number)
    if as_sql:
        text = choose.parse_text(object_, "the object identifier")
        query = diagnosis.messages_of_object(config, chosen, number, text, limit=limit, region=region)
        shared.echo_sql(query.for_psql())
        return

    async def ask() -> tuple[list[Any], str, bool]:
        async with access.opened(loaded, "reader", name="object") as connection:
            type_ = await diagnosis.type_of(connection, chosen, "object_identifier")
            identifier = choose.parse_identifier(object_, type_, "the object identifier")
            query = diagnosis.messages_of_object(config, chosen, number, identifier, limit=limit, region=region)
            rows = await fetch(connection, query, "looking for an object")
            count = await diagnosis.get_total_outbox_count(connection, config, outboxes=[chosen])
            is_partial = len(rows) < limit and count.messages > diagnosis.BOUNDS.object_rows
            return rows, await diagnosis.now(connection), is_partial

    rows, now, is_partial = asyncio.run(ask())
    if is_partial:
        looked_at = f"only the newest {diagnosis.BOUNDS.object_rows:,} messages were looked at"
        display.say(f"note: {looked_at}; there may be older ones", err=True)
    if as_json:
        shared.echo_json(rows)
    else:
        diagnosis_display.show_messages(rows, now, f"there, in outbox {chosen.name}", of_object=True)
    shared.note_limit(rows, limit, "newest")
    if not rows:
        shared.note_elsewhere(config, chosen, outbox, region)
