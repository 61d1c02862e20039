"""`outboxd dead-letters`: what was buried, and the two ways out: back into the outbox, or gone."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, choose, dead_letters, display, errors, query
from outboxd.commands import shared
from outboxd.dead_letters import COUNT_MAX, Selection, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import asyncpg

    from outboxd.commands import Context
    from outboxd.commands.shared import Decorated
    from outboxd.config import Config, OutboxConfig
    from outboxd.dead_letters import Counted
    from outboxd.load import Loaded

REASON_CHARACTERS_MAX = 120
STAYED = 1

_ID = click.IntRange(1, dead_letters.ID_MAX)


def _with_selection(function: Decorated) -> Decorated:
    options = [
        click.option("--newer-than", metavar="DURATION", help="Buried less long ago: 90s, 15m, 2h, 3d."),
        click.option("--older-than", metavar="DURATION", help="Buried longer ago: 90s, 15m, 2h, 3d."),
        click.option("--region", metavar="NAME", help="Only of this region."),
        click.option("--shard", metavar="ID", help="Only of this shard identifier; takes --scope."),
        click.option("--scope", metavar="NAME", help="Only of this scope, by name or number."),
        click.option("--category", metavar="NAME", help="Only of this category, by name or number."),
        click.option("--outbox", metavar="NAME", help="Only of this outbox, whether it is configured or not."),
    ]
    for option in options:
        function = option(function)
    return function


def _moving(function: Callable[[Loaded, Selection, bool], int]) -> Callable[..., int]:
    """Add the arguments of what is done to many: *function* gets what they select, and whether not to ask."""

    @click.pass_obj
    def run(context: Context, /, *, ids: tuple[int, ...], everything: bool, yes: bool, **options: str | None) -> int:
        loaded = context.load()
        return function(loaded, _required_selection(loaded.config, options, ids, everything=everything), yes)

    with_all = click.option("--all", "everything", is_flag=True, help="Every dead letter.")
    with_ids = click.argument("ids", nargs=-1, type=_ID, metavar="[ID]...")
    return with_ids(_with_selection(with_all(shared.with_yes(functools.update_wrapper(run, function)))))


@click.group(name="dead-letters")
def command() -> None:
    """
    Look at dead letters, put them back, delete them.

    A dead letter is a message that was taken out of its outbox for good: its attempts were used up, its receiver
    discarded it, or somebody buried it.
    """


@command.command(name="list")
@_with_selection
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, metavar="N")
@shared.with_json
@shared.with_sql
@click.pass_obj
def list_(context: Context, /, *, limit: int, as_json: bool, as_sql: bool, **options: str | None) -> None:
    """List dead letters, the newest first."""
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    asked = dead_letters.list_query(loaded.config, _selection(loaded.config, options), limit)
    if as_sql:
        shared.echo_sql(asked.for_psql())
        return
    found = asyncio.run(_fetch(loaded, asked))
    if as_json:
        shared.echo_json(found)
    else:
        _show_list(found)
    shared.note_limit(found, limit, "newest")


@command.command()
@click.argument("letter", type=_ID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@shared.with_sql
@click.pass_obj
def show(context: Context, /, *, letter: int, as_json: bool, as_sql: bool) -> None:
    """Show one dead letter with payload, headers and error. Exit code 1 when there is none."""
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    asked = dead_letters.show_query(loaded.config, letter)
    if as_sql:
        shared.echo_sql(asked.for_psql())
        return
    found = asyncio.run(_fetch(loaded, asked))
    if not found:
        raise errors.ActRefused(f"there is no dead letter {letter}", hint="`outboxd dead-letters list` shows them.")
    if as_json:
        shared.echo_json(found[0])
    else:
        _show(found[0])


@command.command()
@_moving
def retry(loaded: Loaded, selection: Selection, yes: bool) -> int:
    """
    Put dead letters back into their outbox.

    By their ids, or all that the options select. A message has the id there that it had before, so that receivers do
    not take it for news; it is due at once, and its attempts are counted anew. Asks before more than one. Can be
    interrupted, and run again.

    Exit code 1 when one stays: its id is taken in the outbox, or its outbox is not configured.
    """
    counted = asyncio.run(_count(loaded, selection))
    configured = {outbox.name for outbox in loaded.config.outboxes}
    movable = {name: count for name, count in counted.by_outbox.items() if name in configured}
    if movable and not yes and len(selection.ids) != 1:
        shared.ask(f"Put back {_in_words(movable)}?")
    return asyncio.run(_retry(loaded, selection, counted))


@command.command()
@_moving
def purge(loaded: Loaded, selection: Selection, yes: bool) -> int:
    """
    Delete dead letters for good.

    By their ids, or all that the options select. Asks first. Can be interrupted, and run again. The daemon does it by
    itself after [dead_letter] keep_days.
    """
    counted = asyncio.run(_count(loaded, selection))
    if counted.total and not yes:
        shared.ask(f"Delete {_in_words(counted.by_outbox)} for good?")
    return asyncio.run(_purge(loaded, selection, counted))


def _selection(config: Config, options: Mapping[str, str | None], ids: tuple[int, ...] = ()) -> Selection:
    scope, shard, category = options["scope"], options["shard"], options["category"]
    if shard is not None and scope is None:
        raise errors.UsageError("--shard without --scope: an identifier means a shard only within a scope")

    def age(name: str) -> dt.timedelta | None:
        text = options[name.replace("-", "_")]
        return None if text is None else choose.parse_duration(text, f"--{name}")

    selection = Selection(
        ids=tuple(dict.fromkeys(ids)),
        outbox=_text(options["outbox"], "--outbox"),
        region=_text(options["region"], "--region"),
        scope=None if scope is None else choose.choose_scope(config, scope),
        shard=None if shard is None else choose.parse_text(shard, "--shard"),
        category=None if category is None else choose.choose_category(config, category),
        older_than=age("older-than"),
        newer_than=age("newer-than"),
    )
    shared.note_unknown(config, scope=selection.scope, category=selection.category)
    return selection


def _required_selection(
    config: Config, options: Mapping[str, str | None], ids: tuple[int, ...], *, everything: bool
) -> Selection:
    """
    Return what is to be moved.

    Raises:
        UsageError: It is not said, or said twice.
    """
    selection = _selection(config, options, ids)
    by_options = Selection(ids=selection.ids) != selection
    if bool(ids) + by_options + everything > 1:
        raise errors.UsageError("ids, options that select, and --all exclude each other")
    if not everything and selection.is_everything():
        raise errors.UsageError("which dead letters?", hint="Give their ids, an option that selects some, or --all.")
    return selection


def _text(text: str | None, what: str) -> str | None:
    return None if text is None else choose.parse_text(text, what)


async def _fetch(loaded: Loaded, asked: query.Query) -> list[dict[str, Any]]:
    async with access.opened(loaded, "reader", name="letters") as connection:
        return await query.fetch(connection, asked, "reading dead letters")


async def _retry(loaded: Loaded, selection: Selection, counted: Counted) -> int:
    configured = {outbox.name: outbox for outbox in loaded.config.outboxes}
    outboxes = [configured[name] for name in counted.by_outbox if name in configured]
    async with access.opened(loaded, "operator", name="letters") as connection:
        stayed = sum([await _retry_in(connection, loaded.config, o, selection, counted) for o in outboxes])
    for name in counted.by_outbox.keys() - configured.keys():
        display.say(f"outbox {name}: {_many(counted.by_outbox[name])} stay: {_why_not(loaded.config, name)}", err=True)
        stayed += counted.by_outbox[name]
    if not counted.total:
        display.say("no dead letter is meant")
    return STAYED if stayed else 0


async def _retry_in(
    connection: asyncpg.Connection, config: Config, outbox: OutboxConfig, selection: Selection, counted: Counted
) -> int:
    """Put back those of one outbox, and tell how many stay."""
    with _told(lambda moved: f"outbox {outbox.name}: {moved} put back, due now") as tally:
        await dead_letters.retry(connection, config, outbox, selection, tally, until=counted.newest_id)
    if tally.stayed:
        display.say(
            f"outbox {outbox.name}: {_many(tally.stayed)} stay: their ids are taken in the outbox,"
            " or they have headers and the table has no such column",
            err=True,
        )
    return tally.stayed


async def _purge(loaded: Loaded, selection: Selection, counted: Counted) -> int:
    async with access.opened(loaded, "operator", name="letters") as connection:
        with _told(lambda moved: f"{moved} deleted") as tally:
            if counted.total:
                await dead_letters.purge(connection, loaded.config, selection, tally, until=counted.newest_id)
    return 0


@contextlib.contextmanager
def _told(words: Callable[[str], str]) -> Iterator[Tally]:
    """Say how many were moved; also of what is interrupted, or fails, if it had begun: each batch is committed."""
    tally, is_done = Tally(), False
    try:
        yield tally
        is_done = True
    finally:
        if is_done or tally.moved:
            display.say(words(_many(tally.moved)))


async def _count(loaded: Loaded, selection: Selection) -> Counted:
    """Count on a connection of its own: nobody is asked while one is open, nor where an event loop takes Ctrl-C."""
    async with access.opened(loaded, "operator", name="letters") as connection:
        if selection.ids:
            await dead_letters.require_ids(connection, loaded.config, selection.ids)
        return await dead_letters.count(connection, loaded.config, selection)


def _in_words(by_outbox: dict[str, int]) -> str:
    return " and ".join(f"{_many(count)} of outbox {name}" for name, count in by_outbox.items())


def _many(count: int) -> str:
    return f"{'at least ' if count == COUNT_MAX else ''}{display.counted(count, 'dead letter')}"


def _why_not(config: Config, outbox: str) -> str:
    if any(each.name == outbox for each in config.outbox):
        return f"the outbox is not of silo mode {config.silo_mode}"
    return "no such outbox is configured"


def _show_list(found: Sequence[dict[str, Any]]) -> None:
    if not found:
        display.say("no dead letters")
        return
    several = len({row["outbox"] for row in found}) > 1
    titles = ["id", "buried (UTC)", *(["outbox"] if several else []), "shard", "category", "object", "tries", "reason"]
    cells = [_cells(row, several=several) for row in found]
    display.show_table(titles, cells, right=("id", "tries"), folds=("reason",))


def _cells(row: dict[str, Any], *, several: bool) -> list[str]:
    region = [row["region_name"]] if row["region_name"] is not None else []
    characters_max = REASON_CHARACTERS_MAX if display.is_terminal(sys.stdout) else None
    return [
        str(row["id"]),
        row["buried_at"][:16].replace("T", " "),
        *([row["outbox"]] if several else []),
        " ".join([*region, row["scope_name"], row["shard_identifier"]]),
        row["category_name"],
        row["object_identifier"],
        str(row["attempts"]),
        display.one_line(row["reason"] or "", characters_max),
    ]


def _show(row: dict[str, Any]) -> None:
    """Show one dead letter to people; payload and headers are not folded."""
    region = f" in {row['region_name']}" if row["region_name"] is not None else ""
    about = {
        "dead letter": str(row["id"]),
        "outbox": f"{row['outbox']}, message {row['message_id']}",
        "shard": f"{row['scope_name']} {row['shard_identifier']}{region}",
        "category": f"{row['category_name']} ({row['category']})",
        "object": row["object_identifier"],
        "written": display.moment(row["date_added"]),
        "buried": f"{display.moment(row['buried_at'])} by {row['buried_by'] or 'somebody'}",
        "attempts": str(row["attempts"]),
        "reason": row["reason"] or "",
    }
    display.show_lines(display.aligned([(f"{title}:", display.one_line(value)) for title, value in about.items()]))
    for name in ("payload", "headers"):
        if row[name] is not None:
            click.echo(f"{name}:\n{textwrap.indent(shared.indented(query.as_written(row[name])), '  ')}")
