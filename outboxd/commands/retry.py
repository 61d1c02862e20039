"""`outboxd retry`: what waits for its next try is due now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from outboxd import access, acts, choose, display, errors, inspection, suggest, switching
from outboxd.acts import Categories, Stuck
from outboxd.commands import shared
from outboxd.switching import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from outboxd.commands import Context
    from outboxd.config import Config, OutboxConfig
    from outboxd.load import Loaded
    from outboxd.switching import Row

NAMED_MAX = 20
NOTHING_THERE = 1


@click.command(name="retry")
@click.argument("scope", required=False)
@click.argument("shard", required=False)
@click.option("--category", metavar="CATEGORY", help="Only messages of this category, by name or number.")
@click.option("--all-stuck", is_flag=True, help="Every shard that is in backoff; asks first.")
@shared.with_outbox
@shared.with_yes
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    scope: str | None,
    shard: str | None,
    category: str | None,
    all_stuck: bool,
    outbox: str | None,
    region: str | None,
    yes: bool,
) -> int:
    """
    Make messages that wait for their next try due now.

    Of a shard the first backoff_rows_max messages are moved, and as many of those that failed behind them. A shard that
    fails again goes on backing off from where it was. What is switched off stays off, and is named.

    Exit code 1 when the shard has no messages, or somebody has locked one of them for longer than five seconds.
    """
    loaded = context.load()
    config = loaded.config
    categories = None if category is None else [choose.choose_category(config, category)]
    shared.note_unknown(config, category=None if categories is None else categories[0])
    if all_stuck:
        if scope is not None or region is not None:
            raise errors.UsageError("--all-stuck goes with --category and --outbox only")
        outboxes = _outboxes(config, outbox)
        if not yes and (found := asyncio.run(_count_stuck(loaded, outboxes, categories))):
            shared.ask(f"Make {display.counted(found, 'shard')} in backoff due now?")
        return asyncio.run(_retry_stuck(loaded, outboxes, categories))
    if scope is None or shard is None:
        raise errors.UsageError("which shard?", hint="Name SCOPE and SHARD, or --all-stuck.")
    chosen = choose.choose_outbox(config, outbox, region)
    number = choose.choose_scope(config, scope)
    shared.note_unknown(config, scope=number)
    code = asyncio.run(_retry_one(loaded, chosen, number, shard, region, categories))
    if code == NOTHING_THERE:
        shared.note_elsewhere(config, chosen, outbox, region)
    return code


async def _retry_one(
    loaded: Loaded,
    outbox: OutboxConfig,
    scope: int,
    identifier: str,
    region: str | None,
    categories: Categories,
) -> int:
    config = loaded.config
    async with access.opened(loaded, "operator", name="retry") as connection:
        table = await inspection.inspect_table(connection, outbox)
        one = Stuck(outbox, table, acts.shard_of(table, scope, identifier, region))
        if not await acts.has_messages(connection, config, one):
            display.say(f"shard {one.name(config)} has no messages", err=True)
            return NOTHING_THERE
        moved = (await acts.make_due(connection, config, [one], categories)).messages
        still_off = await _StillOff.read(connection, config, categories)
        await still_off.add([one])
    done = f"made due: {display.counted(moved, 'message')} of shard {one.name(config)}"
    which = "" if categories is None else " of that category"
    nothing = f"nothing was moved: among the shard's first messages none{which} waits for a later time"
    display.say(done if moved else nothing)
    still_off.show()
    return 0


async def _count_stuck(loaded: Loaded, outboxes: Sequence[OutboxConfig], categories: Categories) -> int:
    """Count on a connection of its own: nobody is asked while one is open, nor where an event loop takes Ctrl-C."""
    async with access.opened(loaded, "operator", name="retry") as connection:
        return await acts.Retry(connection, loaded.config, outboxes, acts.Wanted(categories=categories)).count()


async def _retry_stuck(loaded: Loaded, outboxes: Sequence[OutboxConfig], categories: Categories) -> int:
    config = loaded.config
    async with access.opened(loaded, "operator", name="retry") as connection:
        retry = acts.Retry(connection, config, outboxes, acts.Wanted(categories=categories))
        still_off = await _StillOff.read(connection, config, categories)
        try:
            await retry.run(still_off.add)
        finally:  # also when interrupted: each page is committed
            if retry.seen:
                display.say(shared.made_due(retry))
            still_off.show()
        shared.echo_problems(retry.problems[1:])
        if retry.problems:
            raise retry.problems[0]
    if not retry.seen:
        display.say("no shard is in backoff")
    return 0


class _StillOff:
    """Names what is still off among the shards that were made due; of many, the first."""

    def __init__(self, connection: asyncpg.Connection, config: Config, off: Sequence[Row], categories: Categories):
        self._connection = connection
        self._config = config
        self._off = off
        self._wanted = categories
        self._lines: list[str] = []
        self._count = 0

    @classmethod
    async def read(cls, connection: asyncpg.Connection, config: Config, categories: Categories) -> _StillOff:
        """Read what is off now, for messages of these categories."""
        off = await switching.switched_off(connection, config)
        return cls(connection, config, [row for row in off if row["in_force"]], categories)

    async def add(self, page: Sequence[Stuck]) -> None:
        """Look at shards of one outbox that were made due."""
        present: list[set[int]] = [set()] * len(page)
        if any(row["kind"] == "category" for row in self._off):
            rows_max = self._config.drain.backoff_rows_max
            present = await acts.find_categories(self._connection, self._config, page, rows_max)
        for one, categories in zip(page, present, strict=True):
            if self._wanted is not None:
                categories &= set(self._wanted)
            found = [
                f"still off: {switching.subject(row)}, {switching.origin(row)} (shard {one.name(self._config)})"
                for row in self._off
                if _holds(row, one, categories)
            ]
            self._lines += found[: NAMED_MAX - len(self._lines)]
            self._count += len(found)

    def show(self) -> None:
        """Print it."""
        display.show_lines(self._lines)
        if self._count > len(self._lines):
            more = self._count - len(self._lines)
            display.show_lines([f"still off: {more:,} more; `outboxd pause --list` shows them"])


def _holds(row: Row, one: Stuck, categories: set[int]) -> bool:
    """Whether what is switched off holds back a shard that has messages of these categories."""
    if row["kind"] == "category":
        return row["category"] in categories
    if row["kind"] == "outbox":
        return bool(row["outbox"] == one.outbox.name)
    columns = one.columns
    target = Target(
        kind="shard",
        shard_scope=columns["shard_scope"],
        shard_identifier=str(columns["shard_identifier"]),
        region_name=columns["region_name"],
    )
    return target.overlaps(row) and row["region_name"] in (None, target.region_name)


def _outboxes(config: Config, name: str | None) -> list[OutboxConfig]:
    """Return those of the silo mode, or the one of this name."""
    outboxes = config.require_outboxes()
    found = [outbox for outbox in outboxes if name in (None, outbox.name)]
    if not found:
        raise errors.UsageError(f"there is no outbox {name}{suggest.nearest(name or '', [o.name for o in outboxes])}")
    return found
