"""`outboxd retry`: what waits for its next try is due now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from outboxd import access, acts, choose, display, errors, inspection, suggest, switching
from outboxd.acts import Stuck
from outboxd.commands import shared
from outboxd.switching import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        return asyncio.run(_retry_stuck(loaded, _outboxes(config, outbox), categories, yes=yes))
    if scope is None or shard is None:
        raise errors.UsageError("which shard?", hint="Name SCOPE and SHARD, or --all-stuck.")
    chosen = choose.choose_outbox(config, outbox, region)
    number = choose.choose_scope(config, scope)
    shared.note_unknown(config, scope=number)
    return asyncio.run(_retry_one(loaded, chosen, number, shard, region, categories))


async def _retry_one(
    loaded: Loaded,
    outbox: OutboxConfig,
    scope: int,
    identifier: str,
    region: str | None,
    categories: Sequence[int] | None,
) -> int:
    config = loaded.config
    async with access.opened(loaded, "operator", name="retry") as connection:
        table = await inspection.inspect_table(connection, outbox)
        one = Stuck(outbox, table, acts.shard_of(table, scope, identifier, region))
        if not await acts.has_messages(connection, config, one):
            click.echo(f"shard {one.name(config)} has no messages", err=True)
            return NOTHING_THERE
        async with acts.transaction(connection):
            moved = await acts.retry_shard(connection, config, one, categories)
        still_off = _StillOff(config, await switching.switched_off(connection, config))
    done = f"made due: {display.counted(moved, 'message')} of shard {one.name(config)}"
    click.echo(done if moved else "nothing was moved: none of the shard's first messages waits for a later time")
    still_off.add(one)
    still_off.show()
    return 0


async def _retry_stuck(
    loaded: Loaded, outboxes: Sequence[OutboxConfig], categories: Sequence[int] | None, *, yes: bool
) -> int:
    config = loaded.config
    async with access.opened(loaded, "operator", name="retry") as connection:
        retry = acts.Retry(connection, config, outboxes, acts.Wanted(categories=categories))
        if not yes and (found := await retry.count()):
            shared.ask(f"Make {display.counted(found, 'shard')} in backoff due now?")
        still_off = _StillOff(config, await switching.switched_off(connection, config))
        try:
            await retry.run(still_off.add)
        finally:  # also when interrupted: each page is committed
            done = shared.made_due(retry.messages, retry.shards)
            click.echo(done if retry.shards or retry.problems else "no shard is in backoff")
            still_off.show()
        shared.echo_problems(retry.problems[1:])
        if retry.problems:
            raise retry.problems[0]
    return 0


class _StillOff:
    """Names what is still off among the shards that were made due; of many, the first."""

    def __init__(self, config: Config, off: Sequence[Row]) -> None:
        self._config = config
        self._off = [row for row in off if row["in_force"]]
        self._lines: list[str] = []
        self._count = 0

    def add(self, one: Stuck) -> None:
        """Look at a shard that was made due."""
        found = _off(self._config, one, self._off) if self._off else []
        self._lines += found[: NAMED_MAX - len(self._lines)]
        self._count += len(found)

    def show(self) -> None:
        """Print it."""
        for line in self._lines:
            click.echo(line)
        if self._count > len(self._lines):
            click.echo(f"still off: {self._count - len(self._lines):,} more; `outboxd pause --list` shows them")


def _off(config: Config, one: Stuck, off: Sequence[Row]) -> list[str]:
    columns = one.columns
    target = Target(
        kind="shard",
        shard_scope=columns["shard_scope"],
        shard_identifier=str(columns["shard_identifier"]),
        region_name=columns["region_name"],
    )
    scopes = {scope.value: name for name, scope in config.scopes.items()}
    mine = {c.value for c in config.categories.values() if c.scope == scopes.get(columns["shard_scope"])}
    return [
        f"still off: {switching.subject(row)}, {switching.origin(row)} (shard {one.name(config)})"
        for row in off
        if (
            (target.overlaps(row) and row["region_name"] in (None, target.region_name))
            or (row["kind"] == "outbox" and row["outbox"] == one.outbox.name)
            or (row["kind"] == "category" and row["category"] in mine)
        )
    ]


def _outboxes(config: Config, name: str | None) -> list[OutboxConfig]:
    """Return those of the silo mode, or the one of this name."""
    outboxes = config.require_outboxes()
    found = [outbox for outbox in outboxes if name in (None, outbox.name)]
    if not found:
        raise errors.UsageError(f"there is no outbox {name}{suggest.nearest(name or '', [o.name for o in outboxes])}")
    return found
