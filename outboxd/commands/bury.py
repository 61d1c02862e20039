"""`outboxd bury`: move messages to the dead letters."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from outboxd import access, burial, choose, display, errors, switching
from outboxd.commands import shared

if TYPE_CHECKING:
    from outboxd.burial import Burial
    from outboxd.commands import Context
    from outboxd.config import OutboxConfig
    from outboxd.load import Loaded


@click.command(name="bury")
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1), metavar="ID...")
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept with the dead letter.")
@shared.with_outbox
@shared.with_yes
@click.pass_obj
def command(
    context: Context, /, *, ids: tuple[int, ...], reason: str, outbox: str | None, region: str | None, yes: bool
) -> None:
    """
    Move messages to the dead letters.

    By their ids in the outbox; all of them or, when one is not there, none. What waits behind a message that fails is
    due at once. Never beside a delivery: a shard that is being drained is waited for, for some seconds.

    Exit code 1 when a message is not there (any more), or its shard stays busy.
    """
    loaded = context.load()
    chosen = choose.choose_outbox(loaded.config, outbox, region)
    reason = choose.parse_text(reason, "--reason").strip()
    if not reason:
        raise errors.UsageError("--reason must not be empty")
    if len(set(ids)) > 1 and not yes:
        shared.ask(f"Bury {len(set(ids))} messages of outbox {chosen.name}?")
    names = {category.value: name for name, category in loaded.config.categories.items()}
    for buried in asyncio.run(_bury(loaded, chosen, ids, reason, region)):
        subject = f"{names.get(buried.category, buried.category)} {buried.object_identifier}"
        due = "; the rest of its shard is due" if buried.unblocks else ""
        display.say(f"message {buried.message} ({subject}) is dead letter {buried.letter}{due}")


async def _bury(
    loaded: Loaded, outbox: OutboxConfig, ids: tuple[int, ...], reason: str, region: str | None
) -> list[Burial]:
    async with access.opened(loaded, "operator", name="bury") as connection:
        return await burial.bury(
            connection, loaded.config, outbox, ids, reason=reason, by=switching.account(), region=region
        )
