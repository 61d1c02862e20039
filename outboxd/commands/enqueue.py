"""`outboxd enqueue`: write one message, to try a receiver or to repair by hand."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, enqueue, load, session

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.load import Loaded


@click.command(name="enqueue")
@click.argument("category")
@click.option("--shard", required=True, metavar="ID", help="Shard identifier: number, uuid or text.")
@click.option("--object", "object_", required=True, metavar="ID", help="Object identifier.")
@click.option("--payload", metavar="JSON", help="JSON; - reads standard input, @FILE a file.")
@click.option("--headers", metavar="JSON", help="A JSON object, such as a traceparent; - and @FILE too.")
@click.option("--region", metavar="NAME", help="Region, for an outbox that shards by region.")
@click.option("--outbox", metavar="NAME", help="Outbox; needed when more than one fits.")
@click.option("--scope", metavar="SCOPE", help="Refuse unless the category belongs to this scope.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead of the bare id.")
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    category: str,
    object_: str,
    payload: str | None,
    headers: str | None,
    as_json: bool,
    **names: Any,
) -> None:
    """Write one message and print its id. It is due at once. CATEGORY is a name or a number."""
    loaded = context.load()
    new = enqueue.NewMessage(
        category=category,
        object=object_,
        payload=choose.read_json(payload, "--payload"),
        headers=choose.read_json(headers, "--headers"),
        **names,
    )
    # What needs no database is refused without one.
    enqueue.find_category(loaded.config, new.category, new.scope)
    choose.choose_outbox(loaded.config, new.outbox, new.region)
    outbox, number = asyncio.run(_write(loaded, new))
    click.echo(json.dumps({"id": number, "outbox": outbox}) if as_json else number)


async def _write(loaded: Loaded, new: enqueue.NewMessage) -> tuple[str, int]:
    dsn = functools.partial(load.session_dsn, loaded)
    async with access.naming_grants(dsn, loaded.config, "producer"), session.visit(dsn(), name="enqueue") as connection:
        return await enqueue.enqueue(connection, loaded.config, new)
