"""
Backfill: walk existing tables and write a message for each row, at a bounded rate.

A model's watermark says where its walk is, and with which version; the options say how far it may go. Every tick each
model is looked at; those with work take turns until the budget is spent. One that is broken stops nothing but itself
(I14).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import structlog

from outboxd import access, errors, session
from outboxd.budget import Ledger, LoadGauge, Pace
from outboxd.source import FRESH, Walk, inspect_walk
from outboxd.walker import Walker
from outboxd.watermark import PostgresWatermarks, RedisWatermarks, State, Watermarks, next_step

if TYPE_CHECKING:
    from outboxd.budget import Load
    from outboxd.config import Config, ModelConfig, SiloMode
    from outboxd.options import SwitchBoard
    from outboxd.privileges import RoleKind
    from outboxd.session import Fetch

log = structlog.get_logger()

TICK_S = 1.0
MINUTE_S = 60.0
# Row level security that somebody switches on in mid-walk must be an error, not rows that are passed over.
BACKFILL_SETTINGS = {"row_security": "off"}


class BackfillBatch(msgspec.Struct, frozen=True):
    """What one batch did: the low bound before and after, source rows, messages, whether the walk goes on."""

    low: str
    up: str
    count: int
    messages: int
    has_more: bool


class Metrics(msgspec.Struct, frozen=True):
    """
    What is reported every tick, under the names that metrics have with `backfill_outboxes_` before them.

    Attributes:
        low_bound: By table and version; of a uuid key the last one done.
        target_version: By table.
        backfilled_total: Messages written by this process, by table.
        watermark_missing_total: Walks that began at the lowest key because Redis has no watermark of theirs.
        watermark_errors_total: Watermarks that were none, or that Redis did not tell.
    """

    low_bound: dict[tuple[str, int], str]
    target_version: dict[str, int]
    backfilled_total: dict[str, int]
    watermark_missing_total: int
    watermark_errors_total: int


class Backfill:
    """
    The context of all backfills of one process.

    Args:
        config: Models, outboxes, rate and watermark store.
        switchboard: Options and pauses, kept fresh by somebody else.
        dsn: Tells where the database is.
        redis_url: Tells where Redis is.
        is_stopping: Whether no batch may be begun any more.
        kind: What the role is to do: one that only looks, a `reader`, needs no rights to write.
    """

    def __init__(
        self,
        config: Config,
        switchboard: SwitchBoard,
        dsn: Callable[[], str],
        redis_url: Callable[[], str],
        is_stopping: Callable[[], bool],
        kind: RoleKind = "daemon",
    ) -> None:
        self.config = config
        self._kind = kind
        self.is_stopping = is_stopping
        self.switchboard = switchboard
        self.session = session.Session(
            dsn, name="backfill", lock_timeout_s=5, statement_timeout_s=10, settings=BACKFILL_SETTINGS
        )
        self.watermarks: Watermarks = (
            RedisWatermarks(self.session, redis_url)
            if config.backfill.state == "redis"
            else PostgresWatermarks(self.session, config.schema)
        )
        names = {outbox.name for outbox in config.outboxes}
        self.walkers = deque(
            Walker(
                model,
                category=config.categories[model.category].value,
                session=self.session,
                watermarks=self.watermarks,
                switchboard=switchboard,
                inspect=self.inspect,
                name_grants=self.name_grants,
                lock_name=f"{config.schema}.{model.table}",
                rate=config.backfill.backfills_per_minute,
                is_reader=kind == "reader",
            )
            for model in config.model
            if model.outbox in names
        )
        self.ledger = Ledger(config.schema, [walker.table for walker in self.walkers])
        self.window_max = 0
        """Messages that any 60 seconds may hold now."""
        self.left = 0
        """Messages that this tick may still write."""
        self.saving: Walker | None = None
        """Whose turn it was when the budget did not suffice."""
        self.on_tick: Callable[[Metrics], None] | None = None
        """Called at the end of every tick, also where there was nothing to walk or nothing to spend."""
        self.unavailable = ""
        """What kept the last tick from looking; empty when nothing did."""
        self._dsn = dsn
        self._pace = Pace()
        self._gauge = LoadGauge(config, self.session, dsn)
        self._lags = False

    async def run(self) -> None:
        """Tick every second; returns at once when there is no model."""
        while self.walkers:
            began_at = time.monotonic()
            await self.tick(paced=True)
            await asyncio.sleep(max(0.0, began_at + TICK_S - time.monotonic()))

    async def spend_a_minute(self) -> None:
        """Write what one minute allows (`--once`), for a minute at most, or until we are stopped."""
        ends_at, rate = time.monotonic() + MINUTE_S, self.config.backfill.backfills_per_minute
        while not self.is_stopping() and time.monotonic() < ends_at and self.written < rate:
            if not await self.tick(paced=False):
                return

    async def tick(self, *, paced: bool, force_synchronous: bool = False) -> bool:
        """
        Look at every model, and walk those that can be walked while the budget lasts.

        Args:
            paced: Spread the rate over the minute, instead of spending what is left of it at once.
            force_synchronous: Ignore the options that gate versions.

        Returns:
            Whether anything was written. A model, database or Redis that fails is logged and tried again later.
        """
        try:
            await self.look(force_synchronous=force_synchronous)
            written = await self._spend(paced=paced, force_synchronous=force_synchronous)
        except errors.OutboxdError as exc:
            if not self.unavailable:
                log.warning("backfill.unavailable", error=str(exc), hint=exc.hint or None)
            self.unavailable = str(exc)
            return False
        finally:
            if self.on_tick is not None:
                self.on_tick(self.metrics())
        for walker in self.walkers:
            walker.report()
        if self.unavailable:
            log.info("backfill.resumed")
            self.unavailable = ""
        return written

    async def look(self, *, force_synchronous: bool = False) -> None:
        """
        Renew what is known of every model, and walk none.

        Raises:
            StoreUnavailable: Nothing is known.
        """
        for walker in self.walkers:
            await walker.guarded(walker.observe(find_replication_version(self, walker.model, force_synchronous)))

    async def load(self) -> Load:
        """Tell how busy the drain is."""
        return await self._gauge.measure(self.switchboard.now)

    @property
    def written(self) -> int:
        """Messages written since the start."""
        return sum(walker.progress.messages for walker in self.walkers)

    def waiting_for_turn(self) -> deque[Walker]:
        """Return the models that can be walked: first the one that was saving up, else another one each tick."""
        first = 1 if self.saving is None else self.walkers.index(self.saving)
        self.walkers.rotate(-first)
        self.saving = None
        return deque(walker for walker in self.walkers if walker.progress.condition == "walking")

    async def inspect(self, model: ModelConfig) -> Walk:
        """Look at a model's tables."""
        async with session.visit(self._dsn(), name=f"inspect {model.table}") as connection:
            return await inspect_walk(connection, self.config, model)

    async def name_grants(self, exc: errors.OutboxdError) -> None:
        """Name the GRANTs in an error about a privilege."""
        await access.name_grants(exc, self._dsn, self.config, self._kind, walks=True)

    def metrics(self) -> Metrics:
        """Tell what the last tick has seen."""
        known = {walker.table: walker.progress for walker in self.walkers}
        return Metrics(
            low_bound={(table, progress.version): progress.low_bound for table, progress in known.items()},
            target_version={table: progress.target for table, progress in known.items()},
            backfilled_total={table: progress.messages for table, progress in known.items()},
            watermark_missing_total=self.watermarks.missing,
            watermark_errors_total=self.watermarks.failures + sum(p.watermark_errors for p in known.values()),
        )

    def rows(self) -> dict[str, int]:
        """Tell how many source rows were done since the start, by table."""
        return {walker.table: walker.progress.rows for walker in self.walkers if walker.progress.rows}

    async def close(self) -> None:
        """Close the sessions, and with them every lock."""
        await self.watermarks.close()
        await self.session.close()

    async def _spend(self, *, paced: bool, force_synchronous: bool) -> bool:
        ready = [walker for walker in self.walkers if walker.progress.condition == "walking"]
        if not ready:  # and counting the load costs nothing
            return False
        rate = self.config.backfill.backfills_per_minute
        load = await self._gauge.measure(self.switchboard.now)
        lag_s_max = self.config.backfill.pause_above_lag_s
        self._lags = load.lag_s > (lag_s_max / 2 if self._lags else lag_s_max)  # else it would go on and off
        if self._lags:
            for walker in ready:
                walker.progress.condition = "lag"
            return False
        need = max(walker.progress.need for walker in ready)
        self.left = self._pace.allowance(rate, need) if paced else rate
        before = self.written
        try:
            return await backfill_outboxes_for(self, self.config.silo_mode, load.scheduled, rate, force_synchronous)
        finally:
            self._pace.spend(self.written - before)


async def backfill_outboxes_for(
    context: Backfill,
    silo_mode: SiloMode,
    scheduled_count: int,
    max_batch_rate: int,
    force_synchronous: bool = False,
) -> bool:
    """
    Spend what this tick may, on the models of a silo mode, which take turns.

    Args:
        context: Holds what the tick may spend (`left`), and what was spent before.
        silo_mode: Whose outboxes.
        scheduled_count: Due rows of live traffic, which go before.
        max_batch_rate: Messages a minute.
        force_synchronous: Ignore the options that gate versions.

    Returns:
        Whether anything was written.
    """
    context.window_max = max(0, max_batch_rate - scheduled_count)
    context.left = min(context.left, context.window_max)
    silos = {outbox.name: outbox.silo for outbox in context.config.outbox}
    queue = deque(
        walker for walker in context.waiting_for_turn() if silo_mode in ("monolith", silos[walker.model.outbox])
    )
    ends_at = time.monotonic() + TICK_S
    written = False
    while queue and time.monotonic() < ends_at and not context.is_stopping():
        walker = queue.popleft()
        share = max(context.left // (len(queue) + 1), min(context.left, walker.progress.need))
        batch_size = min(walker.rows_max, share // walker.fan_out())
        batch = await walker.guarded(_take_turn(context, walker, batch_size, max_batch_rate, force_synchronous))
        if batch is not None:
            written = True
            if batch.has_more:
                queue.append(walker)
        elif walker.progress.condition == "budget" and walker.progress.need <= context.window_max:
            # Keep what is left for it, or the others would always spend it first. (Where live traffic takes too much,
            # they need not wait for that to end.)
            context.saving = walker
            for other in queue:
                other.progress.condition = "budget"
            break
    return written


async def _take_turn(
    context: Backfill, walker: Walker, batch_size: int, rate: int, force_synchronous: bool
) -> BackfillBatch | None:
    batch = await process_outbox_backfill_batch(context, walker, batch_size, force_synchronous)
    need = walker.progress.need
    if batch is None and walker.progress.condition == "budget" and need > rate:
        raise errors.StatementFailed(
            f"one row of {walker.table} makes {need} messages, more than the {rate} a minute that are allowed",
            hint="Raise backfill.backfills_per_minute.",
        )
    return batch


async def process_outbox_backfill_batch(
    context: Backfill, walker: Walker, batch_size: int, force_synchronous: bool = False
) -> BackfillBatch | None:
    """
    Write the messages of a model's next rows, and move its watermark.

    Args:
        context: What is shared.
        walker: The model.
        batch_size: Source rows at most. With 0 or less nothing is done: a batch of no rows would look like the end.
        force_synchronous: Ignore the option that gates the version.

    Returns:
        None when there is nothing to do, nothing may be spent, or another process walks the table.
    """
    if batch_size <= 0:
        walker.progress.condition = "budget"
        return None
    target = find_replication_version(context, walker.model, force_synchronous)
    if target <= 0:
        return None
    if not await walker.hold():
        walker.progress.condition = "elsewhere"
        return None
    walk = await walker.walk()
    batch = await context.watermarks.advance(
        walker.table, functools.partial(_write_batch, context, walker, walk, batch_size, target)
    )
    if batch is not None:
        progress = walker.progress
        progress.low_bound = batch.up
        progress.rows += batch.count
        progress.messages += batch.messages
        context.left -= batch.messages
        progress.condition = "walking" if batch.has_more else "finished"
    return batch


def find_replication_version(context: Backfill, model: ModelConfig, force_synchronous: bool = False) -> int:
    """Tell the version that a model may be walked with: its own, or that of the option if that is lower."""
    option = context.switchboard.gates.versions.get(model.table)
    if option is None or force_synchronous:
        return model.replication_version
    return min(option, model.replication_version)


async def _write_batch(
    context: Backfill, walker: Walker, walk: Walk, batch_size: int, target: int, fetch: Fetch, state: State
) -> tuple[BackfillBatch | None, State]:
    """Write one batch in the transaction of *fetch*; returns also where the walk is then."""
    step = next_step(state, target)
    if step is None or not walker.is_held:  # somebody has walked on since we looked, or the lock went with its session
        return None, state
    first_key = walk.source.first_key(step.low_bound)
    finished = State(FRESH, step.version + 1)
    if walk.source.is_past_the_end(first_key):
        return BackfillBatch(step.low_bound, FRESH, 0, 0, has_more=False), finished
    allowed = min(context.left, context.window_max - await context.ledger.spent(fetch))
    rows_max, regions = min(batch_size, allowed // walker.fan_out()), walker.regions()
    if rows_max <= 0 or regions == []:  # an option may have changed since we looked: no row may pass without messages
        walker.progress.condition = "waiting" if regions == [] else "budget"
        return None, state
    arguments = [first_key, rows_max, walk.scope, walk.category, regions]
    row = (await fetch(walk.batch, *arguments, *([allowed] if walk.by_row else [])))[0]
    looked, done, last_key, messages = row
    if looked and not done:  # one row alone makes more messages than may be written now
        walker.progress.need, walker.progress.condition = messages, "budget"
        return None, state
    walker.progress.need = walker.fan_out()
    if messages:
        await context.ledger.spend(fetch, walker.table, messages)
    if done == looked < rows_max:
        return BackfillBatch(step.low_bound, FRESH, done, messages, has_more=False), finished
    after = State(walk.source.low_bound_after(last_key), step.version)
    return BackfillBatch(step.low_bound, after.low_bound, done, messages, has_more=True), after
