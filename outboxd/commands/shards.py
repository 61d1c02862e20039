"""`outboxd shards`: where messages wait, and what is stuck."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from outboxd import access, choose, diagnosis, diagnosis_display, display, errors, switching
from outboxd.commands import shared
from outboxd.load import session_dsn
from outboxd.query import fetch

if TYPE_CHECKING:
    import asyncpg

    from outboxd.commands import Context
    from outboxd.config import OutboxConfig
    from outboxd.load import Loaded
    from outboxd.query import Query

SHARDS = 10
STUCK = 20

_OF_A_TABLE = (errors.SchemaError, errors.StatementFailed)
_Question = Callable[[Sequence["OutboxConfig"]], "Query"]


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
    is shown, too. Where one outbox cannot be looked at, the others are shown all the same, and the error is told.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    outboxes = choose.choose_outboxes(loaded.config, outbox, region)
    ask = diagnosis.stuck if stuck else diagnosis.shards
    limit = limit or (STUCK if stuck else SHARDS)

    def question(asked: Sequence[OutboxConfig]) -> Query:
        return ask(loaded.config, asked, limit=limit, region=region)

    if as_sql:
        shared.echo_sql(question(outboxes).for_psql())
        return
    seen = asyncio.run(_look(loaded, outboxes, question))
    rows = sorted(seen.rows, key=_first_failed if stuck else _deepest)[:limit]
    if seen.is_partial and not stuck:
        display.say("note: only a part of a large table was read, and no message was in it", err=True)
    if as_json:
        shared.echo_json(rows)
    elif stuck:
        diagnosis_display.show_stuck(rows, seen.off, seen.now)
    else:
        diagnosis_display.show_shards(rows, seen.off, seen.now)
    shared.note_limit(rows, limit, "first" if stuck else "deepest")
    shared.echo_problems(seen.problems[1:])
    if seen.problems:
        raise seen.problems[0]


def _deepest(row: dict[str, Any]) -> int:
    return -int(row["depth"])


def _first_failed(row: dict[str, Any]) -> str:
    return str(row["first_failed_at"])


class _Seen(NamedTuple):
    """
    What was seen.

    Attributes:
        rows: The shards.
        off: What is switched off.
        now: The time that schedules are compared with.
        is_partial: There may be messages although none was seen.
        problems: Why outboxes could not be looked at, in their order.
    """

    rows: list[Any]
    off: list[Any]
    now: str
    is_partial: bool
    problems: list[errors.OutboxdError]


async def _look(loaded: Loaded, outboxes: list[OutboxConfig], question: _Question) -> _Seen:
    config = loaded.config
    async with access.opened(loaded, "reader", name="shards") as connection:
        rows, problems = await _ask(connection, outboxes, question)
        for problem in problems.values():
            await access.name_grants(problem, functools.partial(session_dsn, loaded), config, "reader")
        tables = {model.table for model in config.model if model.outbox in {each.name for each in outboxes}}
        off = [row for row in await switching.switched_off(connection, config) if _is_shown(row, outboxes, tables)]
        readable = [each for each in outboxes if each.name not in problems]
        total = None if rows else await diagnosis.get_total_outbox_count(connection, config, outboxes=readable)
        is_partial = total is not None and total.is_estimate
        return _Seen(rows, off, await diagnosis.now(connection), is_partial, list(problems.values()))


async def _ask(
    connection: asyncpg.Connection, outboxes: Sequence[OutboxConfig], question: _Question
) -> tuple[list[Any], dict[str, errors.OutboxdError]]:
    """
    Ask all of them together; where that fails, each by itself.

    Returns:
        Rows, outbox by outbox where each was asked by itself; and why others could not be, by their names.
    """
    problems: dict[str, errors.OutboxdError] = {}
    try:
        return await _fetch(connection, outboxes, question), problems
    except _OF_A_TABLE:
        if len(outboxes) == 1:
            raise
    rows: list[Any] = []
    for outbox in outboxes:
        try:
            rows += await _fetch(connection, [outbox], question)
        except _OF_A_TABLE as exc:
            problems[outbox.name] = exc
    if len(problems) == len(outboxes):
        first, *others = problems.values()
        shared.echo_problems(others)
        raise first
    return rows, problems


async def _fetch(connection: asyncpg.Connection, outboxes: Sequence[OutboxConfig], question: _Question) -> list[Any]:
    names = f"outbox{'es' if len(outboxes) > 1 else ''} {', '.join(each.name for each in outboxes)}"
    one = outboxes[0] if len(outboxes) == 1 else None
    return await fetch(connection, question(outboxes), f"looking at shards of {names}", outbox=one)


def _is_shown(row: switching.Row, outboxes: list[OutboxConfig], tables: set[str]) -> bool:
    """Whether something is switched off now that concerns these outboxes, or the backfill of one of these tables."""
    is_here = row["outbox"] in (None, *(each.name for each in outboxes)) and row["table_name"] in (None, *tables)
    return bool(row["in_force"]) and is_here
