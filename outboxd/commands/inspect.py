"""`outboxd inspect`: the messages of one shard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, diagnosis, diagnosis_display
from outboxd.commands import shared
from outboxd.query import fetch

if TYPE_CHECKING:
    from outboxd.commands import Context


@click.command(name="inspect")
@click.argument("scope")
@click.argument("shard")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="Messages at most."
)
@shared.with_outbox
@shared.with_json
@shared.with_sql
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    scope: str,
    shard: str,
    limit: int,
    outbox: str | None,
    region: str | None,
    as_json: bool,
    as_sql: bool,
) -> None:
    """
    Show the messages of one shard, the newest first.

    SCOPE is a name or a number. Payloads are cut; --json and --sql have them whole, up to 64 kB.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    config = loaded.config
    chosen = choose.choose_outbox(config, outbox, region)
    number = choose.choose_scope(config, scope)
    shared.note_unknown(config, scope=number)
    if as_sql:
        shared.note_type(chosen, shard, "the shard identifier")
        query = diagnosis.messages_of_shard(config, chosen, number, shard, region=region, limit=limit)
        shared.echo_sql(query.for_psql())
        return

    async def ask() -> tuple[list[Any], str]:
        async with access.opened(loaded, "reader", name="inspect") as connection:
            type_ = await diagnosis.type_of(connection, chosen, "shard_identifier")
            identifier = choose.parse_identifier(shard, type_, "the shard identifier")
            query = diagnosis.messages_of_shard(config, chosen, number, identifier, region=region, limit=limit)
            return await fetch(connection, query, "looking at a shard"), await diagnosis.now(connection)

    rows, now = asyncio.run(ask())
    if as_json:
        shared.echo_json(rows)
    else:
        names = {each.value: name for name, each in config.scopes.items()}
        where = f"in shard {shard} of {names.get(number, number)}, outbox {chosen.name}"
        diagnosis_display.show_messages(rows, now, where, of_object=False)
    shared.note_limit(rows, limit, "newest")
    if not rows:
        shared.note_elsewhere(config, chosen, outbox, region)
