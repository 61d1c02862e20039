"""`outboxd resume`: end pauses, and say what still holds."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from outboxd import access, acts, command_line, display, errors, log, query, setting, switching
from outboxd.commands import shared
from outboxd.switching import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from outboxd.commands import Context
    from outboxd.config import Config
    from outboxd.load import Loaded
    from outboxd.switching import By, Row

_log = log.get()

_LISTED = "`outboxd pause --list` shows what is off."


@click.command(name="resume")
@click.argument("ids", nargs=-1, type=click.IntRange(1, 2**63 - 1), metavar="[ID]...")
@shared.with_target
@click.option("--all", "everything", is_flag=True, help="Every pause; asks first.")
@click.option("--now", is_flag=True, help="Also make due what waits for its next try.")
@shared.with_reason
@shared.with_yes
@click.pass_obj
def command(
    context: Context,
    /,
    *,
    ids: tuple[int, ...],
    everything: bool,
    now: bool,
    reason: str | None,
    expires: str | None,
    yes: bool,
    **names: Any,
) -> None:
    """
    End pauses, by their IDs or by what they cover.

    Daemons obey within five seconds. What is due goes out then; what is in backoff keeps its time, unless --now.
    A shard without --region ends its pauses in every region, --backfill-all those of every table.

    With --expires it is resumed for that long: the pauses come back by themselves, unless they have expired. The
    --reason goes to the log, because there is no row that it could stand in.

    Exit code 1 when there was no such pause, or when what was named is still off by something else; that is said.
    """
    loaded = context.load()
    target = switching.choose_target(loaded.config, **names)
    if (target is not None) + bool(ids) + everything != 1:
        raise errors.UsageError(
            "what is to be resumed?", hint=f"Name IDs, or one thing as for `outboxd pause`, or --all. {_LISTED}"
        )
    if now and target is not None and target.kind == "backfill":
        raise errors.UsageError("--now makes messages due: a backfill has none that wait")
    by = shared.by(reason, expires)
    if everything and not yes:
        shared.ask("End every pause?")
    asyncio.run(_resume(loaded, target, ids, now=now, by=by))


async def _resume(loaded: Loaded, target: Target | None, ids: Sequence[int], *, now: bool, by: By) -> None:
    config = loaded.config
    async with access.opened(loaded, "operator", name="resume") as connection:
        targets = [] if target is None else await switching.checked(connection, config, target)
        before = await switching.switched_off(connection, config)
        meant = [row for row in before if target is None or any(each.contains(row) for each in targets)]
        chosen = ids or [row["id"] for row in meant if row["id"]]
        ended = await switching.end_pauses(connection, config, chosen, by)
        _say_ended(before, ended, by)
        targets = targets or [_target_of(row) for row in before if row["id"] in ended]
        problems = await _make_due(connection, config, targets) if now else []
        after = await switching.switched_off(connection, config)
        held = [row for row in after if row["in_force"] and any(each.overlaps(row) for each in targets)]
        for row in held:
            display.say(f"still off: {switching.subject(row)}, {switching.origin(row)}")
        held_with_values = await _with_values(connection, config, held)
        try:
            _complain(target, set(ids) - ended, ended, held_with_values)
        except errors.OutboxdError:
            shared.echo_problems(problems)
            raise
        shared.echo_problems(problems[1:])
        if problems:
            raise problems[0]


def _say_ended(before: Sequence[Row], ended: set[int], by: By) -> None:
    known = {row["id"]: row for row in before}
    for number in sorted(ended):
        row = known.get(number)
        what = f"{switching.subject(row)}, {switching.origin(row)}" if row else f"pause {number}, which had expired"
        display.say(f"{'resumed for a while' if by.expires else 'resumed'}: {what}")
    if ended and by.reason:
        lasts = str(by.expires) if by.expires else None
        _log.info("pause.ended", pauses=sorted(ended), reason=by.reason, author=by.author, expires=lasts)


def _target_of(row: Row) -> Target:
    return Target(**{field: row[field] for field in Target.__dataclass_fields__})


async def _make_due(
    connection: asyncpg.Connection, config: Config, targets: Iterable[Target]
) -> list[errors.OutboxdError]:
    """Make what is in backoff due, and say how much; returns what is wrong with outboxes that were passed over."""
    problems: dict[str, errors.OutboxdError] = {}  # several targets may pass over the same outbox
    for target in targets:
        if target.kind == "backfill":
            continue
        outboxes = [outbox for outbox in config.outboxes if target.outbox in (None, outbox.name)]
        categories = None if target.category is None else [target.category]
        shard = (target.shard_scope, target.shard_identifier)
        wanted = acts.Wanted(categories=categories, shard=shard, accepts=target.covers)
        retry = acts.Retry(connection, config, outboxes, wanted)
        await retry.run()
        if retry.seen or not retry.problems:
            display.say(f"{shared.made_due(retry)} that had failed" if retry.seen else "nothing had failed")
        problems |= {str(problem): problem for problem in retry.problems}
    return list(problems.values())


async def _with_values(connection: asyncpg.Connection, config: Config, held: Sequence[Row]) -> list[tuple[Row, str]]:
    """Put the option's whole value, JSON, beside each row that is an option's."""
    values: dict[str | None, str] = {}
    for name in {row["option"] for row in held if row["option"]}:
        value = (await setting.find_option(connection, config, name))["value"]
        values[name] = "[]" if value is None else query.as_written(value)
    return [(row, values.get(row["option"], "[]")) for row in held]


def _complain(target: Target | None, missing: set[int], ended: set[int], held: Sequence[tuple[Row, str]]) -> None:
    """Say what still holds and how to lift it; an error where what was asked for has not come about."""
    hints = [_remedy(row, value) for row, value in held]
    hint = "\n".join(dict.fromkeys(hints))
    if missing:
        numbers = ", ".join(map(str, sorted(missing)))
        raise errors.OutboxdError(f"there is no pause {numbers}", hint=_LISTED)
    if target is not None and held:
        raise errors.OutboxdError(f"{switching.subject(held[0][0])} is still off", hint=hint)
    if target is not None and not ended:
        raise errors.OutboxdError("no pause covers this: nothing was changed", hint=_LISTED)
    if not ended:
        display.say("nothing is paused")
    if hint:
        display.say(f"hint: {hint}", err=True)


def _remedy(row: Row, value: str) -> str:
    if row["id"] is not None:
        return f"End it: {command_line.line('resume', row['id'])}"
    entry = row["shard_identifier"] or row["what"]
    now = dt.datetime.now(dt.UTC).isoformat()
    without = command_line.lifting(
        row["option"], value, entry, now=now, reason=row["reason"], expires_at=row["expires_at"]
    )
    return f"Take it out of the option: {without}"
