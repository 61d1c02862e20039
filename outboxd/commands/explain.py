"""`outboxd explain`: one answer to "why does this shard not move?"."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from outboxd import access, choose, display, explain
from outboxd.commands import shared

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.explain import Answer, Asked
    from outboxd.load import Loaded
    from outboxd.shard_case import Known


@click.command(name="explain")
@click.argument("scope")
@click.argument("shard")
@shared.with_outbox
@click.option("--json", "as_json", is_flag=True, help="One JSON document: an object with all reasons and the facts.")
@shared.with_sql
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    scope: str,
    shard: str,
    outbox: str | None,
    region: str | None,
    as_json: bool,
    as_sql: bool,
) -> None:
    """
    Say why a shard does not move.

    SCOPE is a name or a number, SHARD the shard identifier. The first line is the answer; what is behind it follows,
    then what to do, after "->", and whatever else is worth knowing.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    asked = explain.Asked(
        choose.choose_outbox(loaded.config, outbox, region),
        choose.choose_scope(loaded.config, scope),
        shard,
        None if region is None else choose.parse_text(region, "--region"),
    )
    shared.note_unknown(loaded.config, scope=asked.scope)
    if as_sql:
        shared.note_type(asked.outbox, shard, "the shard identifier")
        shared.echo_sql(explain.ask(loaded.config, asked).for_psql())
        return
    answer = asyncio.run(_explain(loaded, asked, explain.look_up(loaded, asked.outbox)))
    if as_json:
        shared.echo_json(answer)
    else:
        display.show_lines(explain.lines(answer))
    if answer.reason == "empty":
        shared.note_elsewhere(loaded.config, asked.outbox, outbox, region)


async def _explain(loaded: Loaded, asked: Asked, known: Known) -> Answer:
    async with access.opened(loaded, "reader", name="explain") as connection:
        return await explain.explain(connection, loaded.config, asked, known)
