"""
`outboxd drain`: one shard, in this process, now. The daemon's own pipeline, which looks at this shard only.

The shard's lock is taken before anything is touched and kept to the end: so no daemon gets in between two turns, and a
shard that somebody else is at work on is left as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd import access, acts, errors, inspection, query, sentry, switching
from outboxd.bounded import DRAINS_MAX
from outboxd.load import Loaded, session_dsn
from outboxd.model import Candidate
from outboxd.pipeline import Pipeline
from outboxd.stall import StallWatch
from outboxd.stopping import Stopper
from outboxd.switching import Target as Switchable

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey
    from outboxd.options import Switches
    from outboxd.registry import Registry


CATEGORY_ROWS_MAX = 100_000
"""Messages of the shard, at most, that are looked at for categories that are off."""


class Asked(msgspec.Struct, frozen=True):
    """What a command line asks for; `shard` as it was typed."""

    outbox: OutboxConfig
    scope: int
    shard: str
    region: str | None = None


class StillFailing(msgspec.Struct, frozen=True):
    """An object that has failed; `message` is the lowest id of those that its delivery stands for."""

    category: str
    object: str
    message: int
    attempts: int
    next_in_s: float
    error: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was done; its fields are the keys of the JSON document.

    Attributes:
        messages: Messages that were in the shard at the start.
        delivered: Deliveries that succeeded.
        coalesced: Messages that left the outbox without a call of their own.
        failed: Deliveries that failed.
        buried: Groups that were buried.
        remaining: Messages that are in the shard at the end.
        categories_off: Categories that are switched off, of which messages are left in the shard.
        failures: What is known to fail in it, also what failed before and was not tried.
        stopped: Why it ended before its time: `signal`, `hard stop`, `endless` (receivers write messages on and on),
            `switched off` meanwhile, `lost` (somebody else has the shard), or None.
        unreadable: Whether something could not even be given to a receiver; the log says what.
    """

    outbox: str
    region: str | None
    scope: str
    shard: str
    messages: int
    delivered: int
    coalesced: int
    failed: int
    buried: int
    remaining: int
    categories_off: list[str]
    failures: list[StillFailing]
    stopped: str | None
    unreadable: bool
    seconds: float

    @property
    def exit_code(self) -> int:
        """Tell 1 when something failed, was cancelled, or the shard was taken from us, else 0."""
        return int(bool(self.failed) or self.unreadable or self.stopped in ("hard stop", "lost"))


async def drain_one(loaded: Loaded, registry: Registry, asked: Asked) -> Result:
    """
    Drain one shard: what is due in it, and what is in backoff.

    It ends when nothing is left that has not failed; after a soft stop; or when receivers write messages on and on.

    Raises:
        ActRefused: The shard is switched off, somebody else is at work on it, or a signal came before it was won;
            nothing was changed.
        OutboxdError: As for `--once`.
    """
    started_at = time.monotonic()
    async with access.opened(loaded, "operator", name="drain") as connection:
        target = await _find(connection, loaded.config, asked)
        only = (asked.outbox.name, target.shard)
        pipeline = Pipeline(loaded.config, registry, lambda: session_dsn(loaded), bounded=True, only=only)
        pipeline.live.on_failed = sentry.reporter(loaded.config.sentry)
        stop = _Stop(pipeline)
        stop.stopper.listen()  # once registered, a process that is killed by a signal would pass for a death
        try:
            await pipeline.open()
            depth = await stop.stopper.unless_stopping(_begin(connection, pipeline, target))
            if depth is None:
                raise errors.ActRefused("stopped by a signal before the shard was won; nothing was done")
        except BaseException:
            await pipeline.close()
            raise
    await _run(pipeline, stop, depth)
    branch = pipeline.branches[0]
    if branch.error is not None:
        raise branch.error
    failures = await _failures(pipeline, target.shard)
    async with access.opened(loaded, "operator", name="drain") as connection:
        async with acts.transaction(connection, "counting the messages of a shard"):
            remaining = await acts.count_shard(connection, loaded.config, target.table, target.shard)
        left = (await acts.find_categories(connection, loaded.config, [target.stuck], CATEGORY_ROWS_MAX))[0]
    totals = pipeline.totals()
    return Result(
        outbox=asked.outbox.name,
        region=asked.region,
        scope=target.scope,
        shard=str(target.identifier),
        messages=depth,
        delivered=totals["delivered"],
        coalesced=totals["retired"] - totals["delivered"],
        failed=totals["failures"],
        buried=totals["buried"],
        remaining=remaining,
        categories_off=_named(pipeline.config, pipeline.live.switches.categories & left),
        failures=failures,
        stopped=stop.reason(target, left) if remaining else None,
        unreadable=bool(branch.bounded and branch.bounded.failed and not totals["failures"]),
        seconds=round(time.monotonic() - started_at, 3),
    )


class _Target(msgspec.Struct, frozen=True):
    """The shard, as the table has it."""

    asked: Asked
    table: Table
    shard: ShardKey
    scope: str
    identifier: Any

    @property
    def stuck(self) -> acts.Stuck:
        return acts.Stuck(self.asked.outbox, self.table, self.shard)

    def is_off(self, switches: Switches) -> bool:
        """Whether the shard or its outbox is switched off."""
        asked = self.asked
        is_off = switches.shard_off(asked.scope, str(self.identifier), asked.region)
        return is_off or asked.outbox.name in switches.outboxes


async def _find(connection: asyncpg.Connection, config: Config, asked: Asked) -> _Target:
    table = await inspection.inspect_table(connection, asked.outbox)
    shard = acts.shard_of(table, asked.scope, asked.shard, asked.region)
    scope = next((name for name, each in config.scopes.items() if each.value == asked.scope), str(asked.scope))
    return _Target(asked, table, shard, scope, shard[list(table.shard_columns).index("shard_identifier")])


async def _begin(connection: asyncpg.Connection, pipeline: Pipeline, target: _Target) -> int:
    """Win the shard, make it due, and tell how many messages it has."""
    await _refuse_switched_off(connection, pipeline, target)
    await _hold(connection, pipeline, target)
    await acts.make_due(connection, pipeline.config, [target.stuck])
    async with acts.transaction(connection, "counting the messages of a shard"):
        depth = await acts.count_shard(connection, pipeline.config, target.table, target.shard)
    await pipeline.refresh()  # all of that may have waited, and somebody has paused the shard meanwhile
    await _refuse_switched_off(connection, pipeline, target)
    return depth


class _Stop:
    """Ends a drain to which receivers add as much as it delivers, and remembers why it ended."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._rows_max = 0
        self._off: frozenset[int] = frozenset()
        self.stopper = Stopper(pipeline, expected=True)

    def watch(self, depth: int) -> None:
        """Look from now on, at a shard that has so many messages."""
        self._rows_max = DRAINS_MAX * max(depth, self._pipeline.live.drain.turn_rows_max)
        self._off = self._pipeline.live.switches.categories
        self._pipeline.live.on_progress = self._look

    def _look(self) -> None:
        if self._is_endless():
            self._pipeline.stop()

    def _is_endless(self) -> bool:
        totals = self._pipeline.totals()
        return totals["retired"] + totals["buried"] >= self._rows_max

    def reason(self, target: _Target, left: set[int]) -> str | None:
        """Tell why it ended before its time, if it did; *left*: categories of what is left in the shard."""
        branch, switches = self._pipeline.branches[0], self._pipeline.live.switches
        is_off_since = target.is_off(switches) or bool((switches.categories - self._off) & left)
        reasons = {
            "hard stop": self._pipeline.live.stopping_hard,
            "signal": self.stopper.stopping.is_set(),
            "endless": bool(branch.bounded and branch.bounded.exhausted) or self._is_endless(),
            "switched off": bool(branch.bounded and branch.bounded.skipped) and is_off_since,
            "lost": branch.claimed.lost > 0,
        }
        return next((reason for reason, is_so in reasons.items() if is_so), None)


async def _run(pipeline: Pipeline, stop: _Stop, depth: int) -> None:
    stop.watch(depth)
    # What receivers print must not get between the results on stdout.
    with StallWatch(lambda: pipeline.live.registry), contextlib.redirect_stdout(sys.stderr):
        try:
            await pipeline.run(stop.stopper.run)
        finally:
            await asyncio.to_thread(sentry.flush)


async def _hold(connection: asyncpg.Connection, pipeline: Pipeline, target: _Target) -> None:
    """
    Win the shard on the claim session, before the scheduler does.

    The lock is re-entrant there: the turns claim and release it once more, and it goes with the session.
    """
    key = await acts.lock_key(connection, pipeline.config, target.table, target.shard)
    gives_up_at = time.monotonic() + acts.PATIENCE_S
    while not await pipeline.claims.claim([Candidate(target.shard, key, None)]):
        if time.monotonic() >= gives_up_at:
            holder = await acts.find_holder(connection, pipeline.config, key)
            raise errors.ActRefused(
                f"the shard is being drained by {holder or 'somebody else'}; nothing was done",
                hint="Its messages are delivered there. Try again when the delivery under way is over.",
            )
        await asyncio.sleep(acts.TRY_EVERY_S)


async def _refuse_switched_off(connection: asyncpg.Connection, pipeline: Pipeline, target: _Target) -> None:
    """Refuse what is off: the shard, its outbox, or each category in it."""
    asked, config, switches = target.asked, pipeline.config, pipeline.live.switches
    off: set[int] = set()
    if not target.is_off(switches):
        if not switches.categories or not await acts.is_all_of(connection, config, target.stuck, switches.categories):
            return
        off = (await acts.find_categories(connection, config, [target.stuck], CATEGORY_ROWS_MAX))[0]
    shard: dict[str, Any] = {
        "shard_scope": asked.scope,
        "shard_identifier": str(target.identifier),
        "region_name": asked.region,
    }
    covering = [Switchable(kind="outbox", outbox=asked.outbox.name), Switchable(kind="shard", **shard)]
    covering += [Switchable(kind="category", category=category) for category in off]
    question = switching.switched_off_query(config, rows_max=switching.ROWS_READ_MAX)
    rows = await query.fetch(connection, question, "looking what switches the shard off")
    found = [row for row in rows if row["in_force"] and any(each.overlaps(row) for each in covering)]
    lines = [f"{switching.subject(row)}: {switching.origin(row)}" for row in found]
    ends = dict.fromkeys(_remedy(row) for row in found)
    what = "all that is in the shard" if off else "the shard"
    raise errors.ActRefused(
        "\n  - ".join([f"{what} is switched off; nothing was delivered", *lines]),
        hint=f"To end that: {', '.join(ends)}." if ends else "",
    )


def _remedy(row: switching.Row) -> str:
    return f"`outboxd resume {row['id']}`" if row["id"] is not None else f"`outboxd options set {row['option']} …`"


def _named(config: Config, categories: Iterable[int]) -> list[str]:
    names = {category.value: name for name, category in config.categories.items()}
    return [names.get(number, str(number)) for number in sorted(categories)]


async def _failures(pipeline: Pipeline, shard: ShardKey) -> list[StillFailing]:
    outbox = pipeline.branches[0].outbox
    if outbox is None:  # stopped before it began
        return []
    names = {category.value: name for name, category in pipeline.config.categories.items()}
    try:
        known = (await outbox.read_failures([shard]))[0]
    finally:
        await outbox.close()
    return [
        StillFailing(
            category=names.get(failure.category, str(failure.category)),
            object=failure.object_identifier,
            message=failure.message_id,
            attempts=failure.attempts,
            next_in_s=round(max(0.0, failure.due_in_s), 1),
            error=failure.last_error,
        )
        for failure in known
    ]
