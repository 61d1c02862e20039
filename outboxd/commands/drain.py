"""`outboxd drain`: one shard, in this process, now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from outboxd import choose, display
from outboxd.commands import shared

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.drain_one import Asked, Result, StillFailing
    from outboxd.load import Loaded
    from outboxd.registry import Registry

FAILURES_SHOWN_MAX = 20
ERROR_CHARACTERS_MAX = 500
STOPPED = {
    "signal": "stopped by a signal",
    "hard stop": "a second signal, or the end of the grace period, has cancelled the delivery under way",
    "endless": "stopped, because receivers write messages to it on and on",
    "switched off": "it was switched off meanwhile",
    "lost": "somebody else has taken it over",
}


@click.command(name="drain")
@click.argument("scope")
@click.argument("shard")
@shared.with_outbox
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_obj
def command(
    context: Context, /, *, scope: str, shard: str, outbox: str | None, region: str | None, as_json: bool
) -> int:
    """
    Drain one shard, in this process, now.

    With the receivers of the configuration and under the daemon's own lock; also what is in backoff. A shard that is
    switched off, or being drained elsewhere, is left alone. Ctrl-C lets the delivery under way finish; before the shard
    is won, it leaves the shard alone.

    Exit code 0 when nothing failed, 1 when something did, or the shard was left alone.
    """
    from outboxd import drain_one, main  # they bring the whole drain with them: only this command needs that

    loaded = context.load()
    chosen = choose.choose_outbox(loaded.config, outbox, region)
    asked = drain_one.Asked(chosen, choose.choose_scope(loaded.config, scope), shard, region)
    shared.note_unknown(loaded.config, scope=asked.scope)
    built = main.equip(loaded)
    return main.run_to_the_end(_drain(loaded, built, asked, as_json=as_json, is_named=outbox is not None))


async def _drain(loaded: Loaded, built: Registry, asked: Asked, *, as_json: bool, is_named: bool) -> int:
    from outboxd import drain_one

    result = await drain_one.drain_one(loaded, built, asked)
    if as_json:
        shared.echo_json(result)
    else:
        display.show_lines(_lines(result))
    if not result.messages:
        shared.note_elsewhere(loaded.config, asked.outbox, asked.outbox.name if is_named else None, asked.region)
    return result.exit_code


def _lines(result: Result) -> list[str]:
    where = f" in {result.region}" if result.region is not None else ""
    lines = [
        f"shard {result.scope} {result.shard}{where} of outbox {result.outbox}: delivered {result.delivered:,},"
        f" coalesced {result.coalesced:,}, buried {result.buried:,}, failed {result.failed:,} in {result.seconds:.1f} s"
    ]
    if result.unreadable:
        lines.append("something could not be given to its receiver: see the log")
    if result.stopped is not None:
        lines.append(STOPPED[result.stopped])
    if not result.messages:
        lines.append("there was no message in it")
    if result.remaining:
        lines.append(f"left in the shard: {result.remaining:,}")
        if result.categories_off:
            lines.append(f"categories that are switched off stay: {', '.join(result.categories_off)}")
    lines += [_line_of(failure) for failure in result.failures[:FAILURES_SHOWN_MAX]]
    hidden = len(result.failures) - FAILURES_SHOWN_MAX
    return lines if hidden <= 0 else [*lines, f"… and {hidden:,} more objects that fail"]


def _line_of(failure: StillFailing) -> str:
    subject = f"{failure.category} {failure.object} (message {failure.message})"
    tries = f"{display.counted(failure.attempts, 'attempt')}, next in {display.duration(failure.next_in_s)}"
    return f"{subject}: {tries}: {display.one_line(failure.error, ERROR_CHARACTERS_MAX)}"
