"""`outboxd options`: what can be set while daemons run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, display, log, query, setting
from outboxd.commands import shared
from outboxd.options import about

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outboxd.commands import Context
    from outboxd.load import Loaded
    from outboxd.switching import By, Row

_log = log.get()

NOT_SET = 1


@click.group(name="options")
def command() -> None:
    """
    Look at options, set and unset them.

    Daemons obey within five seconds, without a restart; an --once run, as it starts.
    """


@command.command(name="list")
@click.option("--all", "unset_too", is_flag=True, help="Also the options that are not set.")
@shared.with_json
@shared.with_sql
@click.pass_obj
def list_(context: Context, *, unset_too: bool, as_json: bool, as_sql: bool) -> None:
    """Show the options that are set: by whom, why, until when, and whether they count."""
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    asked = setting.options_query(loaded.config, unset_too=unset_too)
    if as_sql:
        shared.echo_sql(asked.for_psql())
        return
    rows = asyncio.run(_list(loaded, asked))
    shared.note_cut(rows)
    if as_json:
        shared.echo_json(rows)
    elif rows:
        display.show_lines(line for row in rows for line in _lines(row))
    else:
        display.say("no option is set")


@command.command(name="get")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: value, state, who, why, and when.")
@shared.with_sql
@click.pass_obj
def get(context: Context, *, key: str, as_json: bool, as_sql: bool) -> int:
    """
    Print the value of KEY, as JSON.

    Exit code 1 when it is not set, or does not count (any more).
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    if as_sql:
        text = choose.parse_text(key, "the key")
        shared.echo_sql(setting.options_query(loaded.config, unset_too=True, only=text).for_psql())
        return 0
    row = asyncio.run(_find(loaded, key))
    if as_json:
        shared.echo_json(row)
    elif row["state"] != "not set":
        click.echo(_value(row))
    if row["state"] != "in force":
        display.say(f"{key} is {row['state']}", err=True)
    return 0 if row["state"] == "in force" else NOT_SET


@command.command(name="set")
@click.argument("key")
@click.argument("value", metavar="JSON")
@shared.with_reason
@shared.with_author
@click.pass_obj
def set_(
    context: Context, *, key: str, value: str, reason: str | None, expires: str | None, author: str | None
) -> None:
    """
    Set KEY to a JSON value; - reads standard input, @FILE a file.

    What it was, with its reason and its end, is replaced. With --expires it is set for that long.
    """
    by = shared.by(reason, expires, author)
    text = choose.read_json(value, "the value")
    assert text is not None
    row, before = asyncio.run(_set(context.load(), key, text, by))
    was = "" if before["state"] == "not set" else f" (was: {_value(before)}, {before['state']})"
    label = f"{key} = {_value(row)}"
    display.say(about(label, row["updated_by"], row["reason"], row["expires_at"]) + was)


@command.command(name="unset")
@click.argument("key")
@shared.with_reason
@click.pass_obj
def unset(context: Context, *, key: str, reason: str | None, expires: str | None) -> int:
    """
    Unset KEY.

    With --expires, for that long: the value comes back by itself, unless it ends before. The --reason goes to the log,
    because there is no row that it could stand in. Exit code 1 when it was not set.
    """
    by = shared.by(reason, expires)
    done = asyncio.run(_unset(context.load(), key, by))
    if done == "not set":
        display.say(f"{key} is not set", err=True)
        return NOT_SET
    again = f"; it comes back after {expires}" if done == "lifted" else "; it does not come back: it ends before that"
    display.say(f"{key} is unset{again if expires else ''}")
    if by.reason:
        _log.info("option.unset", key=key, reason=by.reason, author=by.author, expires=expires)
    return 0


def _lines(row: Row) -> Iterator[str]:
    """Write one option; below each other, because keys and values are long."""
    if row["state"] == "not set":
        yield f"{row['key']} is not set"
        return
    yield f"{row['key']} = {_value(row)}"
    tense = "again from" if row["state"] == "lifted" else "since"
    yield "  " + about(
        f"{row['state']}, {tense} {display.moment(row['updated_at'])}",
        row["updated_by"],
        row["reason"],
        row["expires_at"],
    )
    if row["problem"]:
        yield f"  has no effect, or not all of it has: {row['problem']}"


def _value(row: Row) -> str:
    """Write the value of an option that is set, as the server has it."""
    return "null" if row["value"] is None else query.as_written(row["value"])


async def _list(loaded: Loaded, asked: query.Query) -> list[dict[str, Any]]:
    async with access.opened(loaded, "reader", name="option") as connection:
        return await query.fetch(connection, asked, "reading options")


async def _find(loaded: Loaded, key: str) -> Row:
    async with access.opened(loaded, "reader", name="option") as connection:
        return await setting.find_option(connection, loaded.config, key)


async def _set(loaded: Loaded, key: str, text: str, by: By) -> tuple[Row, Row]:
    async with access.opened(loaded, "operator", name="option") as connection:
        before = await setting.find_option(connection, loaded.config, key)
        await setting.set_option(connection, loaded.config, key, text, by)
        return await setting.find_option(connection, loaded.config, key), before


async def _unset(loaded: Loaded, key: str, by: By) -> setting.Unset:
    async with access.opened(loaded, "operator", name="option") as connection:
        return await setting.unset_option(connection, loaded.config, key, by)
