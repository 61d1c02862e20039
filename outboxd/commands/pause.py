"""`outboxd pause`: switch something off, or show what is off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, display, errors, query, switching
from outboxd.commands import shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outboxd.commands import Context
    from outboxd.load import Loaded
    from outboxd.switching import By, Row, Target

_TO_THE_MINUTE = len("2026-01-01 00:00")


@click.command(name="pause")
@shared.with_target
@shared.with_reason
@shared.with_author
@click.option("--list", "as_list", is_flag=True, help="Show what is switched off, by pauses and by options.")
@shared.with_json
@shared.with_sql
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    reason: str | None,
    expires: str | None,
    author: str | None,
    as_list: bool,
    as_json: bool,
    as_sql: bool,
    **names: Any,
) -> None:
    """
    Switch off a shard, a category, an outbox or a backfill.

    Daemons obey within five seconds, without a restart. What is off stays in the outbox as it is: it is neither
    delivered nor backed off. A delivery under way is not stopped. Each pause stands for itself: of two pauses of one
    thing, ending one leaves the other.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    target = switching.choose_target(loaded.config, **names)
    if as_list:
        if target is not None or reason or expires or author:
            raise errors.UsageError("--list takes no more than --json or --sql")
        _show(loaded, as_json=as_json, as_sql=as_sql)
        return
    if target is None or as_sql:
        raise errors.UsageError(
            "--sql goes with --list" if target else "what is to be paused?",
            hint="Name one of --scope with --shard, --category, --outbox, --backfill, --backfill-all; "
            "or --list what is off.",
        )
    shared.note_unknown(loaded.config, scope=target.shard_scope, category=target.category)
    rows = asyncio.run(_pause(loaded, target, shared.by(reason, expires, author)))
    if as_json:
        shared.echo_json(rows)
    else:
        display.say("\n".join(f"paused: {switching.subject(row)}, {switching.origin(row)}" for row in rows))


def _show(loaded: Loaded, *, as_json: bool, as_sql: bool) -> None:
    asked = switching.switched_off_query(loaded.config)
    if as_sql:
        shared.echo_sql(asked.for_psql())
        return
    rows = asyncio.run(_read(loaded, asked))
    shared.note_cut(rows)
    if as_json:
        shared.echo_json(rows)
    elif rows:
        titles = ("pause", "of", "since (UTC)", "until (UTC)", "by", "reason")
        display.show_table(titles, map(_cells, rows), right=("pause",), folds=("reason",))
        notes = _notes(rows)
        if notes:
            display.show_lines(["", *notes])
    else:
        display.say("nothing is switched off")


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [f"set by option {row['option']}" for row in rows if row["option"]]
    notes += [f"{switching.label(row)} was lifted for a while; it counts again from then on" for row in _lifted(rows)]
    return list(dict.fromkeys(notes))


def _lifted(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row["in_force"]]


def _cells(row: Row) -> list[str]:
    since = display.moment(row["since"])[:_TO_THE_MINUTE]
    until = display.moment(row["expires_at"])[:_TO_THE_MINUTE] if row["expires_at"] else "-"
    number = "option" if row["id"] is None else str(row["id"])
    return [number, switching.subject(row), since, until, row["author"] or "-", row["reason"] or "-"]


async def _read(loaded: Loaded, asked: query.Query) -> list[dict[str, Any]]:
    async with access.opened(loaded, "reader", name="pause") as connection:
        return await query.fetch(connection, asked, "reading pauses")


async def _pause(loaded: Loaded, target: Target, by: By) -> Sequence[Row]:
    async with access.opened(loaded, "operator", name="pause") as connection:
        targets = await switching.checked(connection, loaded.config, target)
        numbers = await switching.add_pauses(connection, loaded.config, targets, by)
        rows = await switching.switched_off(connection, loaded.config)
    written = [row for row in rows if row["id"] in numbers]
    if not written:
        listed = ", ".join(map(str, sorted(numbers)))
        raise errors.OutboxdError(f"pause {listed} was written, and has been ended by somebody else since")
    return written
