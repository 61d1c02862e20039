"""`outboxd backfill`: where the walks over existing tables are, what they would write, and how to steer them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import uuid
from collections import deque
from typing import TYPE_CHECKING

import click
import msgspec

from outboxd import access, backfill_display, backfill_report, choose, display, errors, inspection, session, suggest
from outboxd.backfill import Backfill, find_replication_version
from outboxd.commands import shared
from outboxd.load import Loaded, read_secret, session_dsn
from outboxd.options import SwitchBoard
from outboxd.source import FRESH
from outboxd.watermark import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncpg

    from outboxd.backfill_report import Plan, Status
    from outboxd.backfill_run import Drainer, Interrupt
    from outboxd.commands import Context
    from outboxd.privileges import RoleKind
    from outboxd.registry import Registry
    from outboxd.source import Source
    from outboxd.walker import Walker

INTERRUPTED = 130
BROKEN = 78

_with_tables = click.argument("tables", nargs=-1, metavar="[TABLE]...")
_with_table = click.argument("table")


@click.group(name="backfill")
def command() -> None:
    """
    Look at backfills, and steer them.

    The daemon and --once walk tables by themselves. These commands show where they are, walk in the foreground, or
    move a walk.
    """


@command.command()
@shared.with_json
@shared.with_sql
@click.pass_obj
def status(context: Context, *, as_json: bool, as_sql: bool) -> None:
    """
    Show where every backfill is.

    Version, condition, low bound, rows done and left, messages of the last minute, and the time that is left.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    loaded = context.load()
    if as_sql:
        shared.echo_sql(backfill_report.watermark_query(loaded.config))
        return
    found = asyncio.run(_statuses(loaded))
    if as_json:
        shared.echo_json(found)
    else:
        backfill_display.show_statuses(found)


@command.command()
@_with_tables
@shared.with_json
@click.pass_obj
def plan(context: Context, *, tables: tuple[str, ...], as_json: bool) -> int:
    """
    Tell what a walk would write, and write nothing.

    Counts the rows that are left exactly, which takes as long as reading them; also for a backfill that is paused or
    waits for an option. Shows the first messages. Without TABLE: every model. Exit code 78 when a model is broken.

    There is no --sql: the query depends on the table's key and on where the walk is, which takes a connection to know.
    """
    loaded = context.load()
    found = asyncio.run(_plans(loaded, tables))
    if as_json:
        shared.echo_json(found)
    else:
        rate = loaded.config.backfill.backfills_per_minute
        lines = [line for each in found for line in backfill_display.plan_lines(each, rate)]
        display.say("\n".join(lines or [backfill_display.NO_MODEL]))
    return BROKEN if any(each.condition == "broken" for each in found) else 0


@command.command()
@_with_tables
@click.option("--force-synchronous", is_flag=True, help="Ignore the options that hold versions back.")
@click.option(
    "--rate",
    type=click.IntRange(1, 100_000_000),
    metavar="N",
    help="Messages a minute, instead of backfills_per_minute.",
)
@click.option("--drain", is_flag=True, help="Also deliver, between the batches and at the end, until nothing is due.")
@click.pass_obj
def run(context: Context, *, tables: tuple[str, ...], force_synchronous: bool, rate: int | None, drain: bool) -> int:
    """
    Walk in the foreground.

    Until the tables are finished or can go no further. Ctrl-C ends it after the batch under way; the next run, or a
    daemon, goes on there. Without TABLE: every model.

    Exit code 0 when every table is finished, 1 when one is held back or a delivery has failed, 78 when one is
    broken, 130 after Ctrl-C.
    """
    from outboxd import main  # it brings the whole drain with it: only this command needs that

    loaded = _at_rate(context.load(), rate)
    built = main.equip(loaded) if drain else None
    return main.run_to_the_end(_run(loaded, tables, force_synchronous=force_synchronous, built=built))


@command.command()
@_with_table
@click.option("--to", metavar="ID", help="The first key to walk again. Default: the lowest there is.")
@shared.with_yes
@click.pass_obj
def rewind(context: Context, *, table: str, to: str | None, yes: bool) -> None:
    """
    Walk TABLE again.

    From its beginning, or from a key on, with the version that it may be walked with now. Its rows get messages once
    more, when a daemon or a run comes by.
    """
    loaded = context.load()
    before, after = asyncio.run(_find_move(loaded, table, to, skip=False))
    place = "its beginning" if to is None else f"key {to}"
    _move(loaded, table, before, after, yes=yes, question=f"Walk {table} again from {place}?")


@command.command()
@_with_table
@shared.with_yes
@click.pass_obj
def skip(context: Context, *, table: str, yes: bool) -> None:
    """
    Mark the backfill of TABLE as finished.

    The rows that are left get no message. Raising replication_version starts it again.
    """
    loaded = context.load()
    before, after = asyncio.run(_find_move(loaded, table, None, skip=True))
    _move(
        loaded, table, before, after, yes=yes, question=f"Leave the rows of {table} that are not done without message?"
    )


def _at_rate(loaded: Loaded, rate: int | None) -> Loaded:
    config = loaded.config
    if rate is not None:
        backfill = msgspec.structs.replace(config.backfill, backfills_per_minute=rate)
        return dataclasses.replace(loaded, config=msgspec.structs.replace(config, backfill=backfill))
    if not config.backfill.backfills_per_minute:
        raise errors.UsageError("backfills_per_minute is 0: nothing would ever be written", hint="Give a --rate.")
    return loaded


async def _statuses(loaded: Loaded) -> list[Status]:
    async with _opened(loaded, "reader") as backfill:
        return await backfill_report.statuses(backfill)


async def _plans(loaded: Loaded, tables: Sequence[str]) -> list[Plan]:
    async with _opened(loaded, "reader") as backfill:
        _choose(backfill, tables)
        await backfill.look()
        async with session.visit(session_dsn(loaded), name="plan") as connection:
            return [await _plan(backfill, walker, connection) for walker in backfill.walkers]


async def _run(loaded: Loaded, tables: Sequence[str], *, force_synchronous: bool, built: Registry | None) -> int:
    from outboxd import backfill_run

    async with _opened(loaded) as backfill:
        _choose(backfill, tables)
        _leave_out_what_is_never_walked(backfill, tables)
        walkers = list(backfill.walkers)  # while they walk, they change places
        interrupt = backfill_run.Interrupt()
        interrupt.listen()
        backfill.is_stopping = lambda: interrupt.happened
        drainer = backfill_run.Drainer(loaded, built, interrupt) if built is not None else None
        screen = backfill_display.Display(backfill, await backfill_report.statuses(backfill), loaded.config.log)
        foreground = backfill_run.Foreground(
            backfill, interrupt, force_synchronous=force_synchronous, on_tick=screen.show, drainer=drainer
        )
        try:
            with screen:
                await foreground.run()
        except asyncio.CancelledError:
            if not interrupt.happened:
                raise
        finally:
            for walker in walkers:
                display.say(backfill_display.result_line(backfill, walker))
        return _outcome(backfill, interrupt, drainer)


def _outcome(backfill: Backfill, interrupt: Interrupt, drainer: Drainer | None) -> int:
    """Say what is left to say, and tell the exit code."""
    if drainer is not None:
        display.say(f"delivered {drainer.delivered:,}; {drainer.failures:,} deliveries failed")
    conditions = {walker.table: walker.progress.condition for walker in backfill.walkers}
    if interrupt.happened:
        display.say("interrupted: the next run, or a daemon, goes on where it is", err=True)
        return INTERRUPTED
    if "broken" in conditions.values():
        broken = ", ".join(table for table, condition in conditions.items() if condition == "broken")
        display.say(f"error: cannot be walked: {broken}", err=True)
        return BROKEN
    is_done = all(condition == "finished" for condition in conditions.values())
    return 0 if is_done and not (drainer is not None and drainer.failures) else 1


async def _plan(backfill: Backfill, walker: Walker, connection: asyncpg.Connection) -> Plan:
    """Plan one model; what is wrong with it is its own matter."""
    found = await walker.guarded(backfill_report.plan(backfill, walker, connection))
    return found or await backfill_report.plan(backfill, walker, connection)


async def _find_move(loaded: Loaded, table: str, to: str | None, *, skip: bool) -> tuple[str, State]:
    """Tell where the walk is, in words, and where it is to be."""
    async with _opened(loaded) as backfill:
        _choose(backfill, [table])
        _leave_out_what_is_never_walked(backfill, [table])
        walker = backfill.walkers[0]
        # Not beyond what an option allows: when it is raised, the later version is another walk.
        target = find_replication_version(backfill, walker.model)
        version = target if target > 0 else walker.model.replication_version
        try:
            state = await backfill.watermarks.get_processing_state(table)
            before = f"version {state.version}, low bound {state.low_bound}"
        except errors.WatermarkError as exc:  # to mend it is what they are here for
            before = str(exc)
        if skip:
            return before, State(FRESH, version + 1)
        low_bound = FRESH if to is None else _low_bound((await walker.walk()).source, to)
        return before, State(low_bound, version)


def _low_bound(source: Source, to: str) -> str:
    """Tell the low bound with which *to* is the first key that is walked."""
    key = choose.parse_identifier(to, source.key_type, "--to")
    if isinstance(key, uuid.UUID):
        return str(uuid.UUID(int=key.int - 1)) if key.int else FRESH
    return source.low_bound_after(str(int(key) - 1))


def _move(loaded: Loaded, table: str, before: str, after: State, *, yes: bool, question: str) -> None:
    if not yes:
        shared.ask(f"{question} (now: {before})")
    asyncio.run(_set(loaded, table, after))
    display.say(f"{table}: version {after.version}, low bound {after.low_bound} (was: {before})")


async def _set(loaded: Loaded, table: str, state: State) -> None:
    async with _opened(loaded) as backfill:
        await backfill.watermarks.set_processing_state(table, state)


@contextlib.asynccontextmanager
async def _opened(loaded: Loaded, kind: RoleKind = "daemon") -> AsyncIterator[Backfill]:
    """
    Open the backfills of a configuration, with options and pauses as they are now; *kind* is what will be done.

    Raises:
        OutboxdError: With its exit code; nothing is waited for.
    """
    config = loaded.config
    config.require_outboxes()
    dsn = functools.partial(session_dsn, loaded)
    async with access.naming_grants(dsn, config, kind):
        await inspection.require_database(dsn(), config)
        switchboard = SwitchBoard(config, dsn)
        backfill = Backfill(
            config, switchboard, dsn, lambda: read_secret(loaded, "redis_url"), is_stopping=lambda: False, kind=kind
        )
        try:
            await switchboard.refresh()
            yield backfill
        finally:
            await backfill.close()
            await switchboard.close()


def _choose(backfill: Backfill, tables: Sequence[str]) -> None:
    """Leave only the tables that were named; all when none was. What the others have spent still counts."""
    known = {walker.table for walker in backfill.walkers}
    for table in tables:
        if table in known:
            continue
        if any(model.table == table for model in backfill.config.model):
            raise errors.UsageError(f"{table} is not walked in silo mode {backfill.config.silo_mode}")
        raise errors.UsageError(f"there is no model of a table {table}{suggest.nearest(table, known)}")
    if tables:
        backfill.walkers = deque(walker for walker in backfill.walkers if walker.table in tables)


def _leave_out_what_is_never_walked(backfill: Backfill, tables: Sequence[str]) -> None:
    backfill.walkers = deque(walker for walker in backfill.walkers if walker.model.replication_version)
    for table in tables:
        if all(walker.table != table for walker in backfill.walkers):
            raise errors.UsageError(f"{table} is never backfilled: its replication_version is 0")
