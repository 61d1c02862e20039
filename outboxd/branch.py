"""The drain of one outbox: its table looked at, its parts wired together, and both again when the table has changed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import anyio
import structlog

from outboxd import access, errors, session
from outboxd.bounded import BoundedRun
from outboxd.inspection import inspect_table
from outboxd.lane import Lane
from outboxd.meter import ClaimCounters, Meter
from outboxd.outbox import Outbox
from outboxd.readahead import Reader
from outboxd.replicas import Sources, source_session
from outboxd.schedule import Scheduler
from outboxd.settle import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from outboxd.config import OutboxConfig
    from outboxd.inspection import Table
    from outboxd.pipeline import Pipeline
    from outboxd.session import Session
    from outboxd.turn import Turn

log = structlog.get_logger()

LOOK_AGAIN_S = 2.0
SAID_EVERY_S = 60.0
SETTLE_S_MAX = 2.0
BOUNDED_TRIES_MAX = 5


class Branch:
    """
    The pipeline of one outbox, from its inspection on. Independent of the other outboxes (I14).

    Args:
        config: The outbox.
        pipeline: What all outboxes share.

    Attributes:
        lacking: Why the outbox is not drained now; empty when it is, or was not looked at yet.
    """

    def __init__(self, config: OutboxConfig, pipeline: Pipeline) -> None:
        self.config = config
        self._pipeline = pipeline
        self.bounded = BoundedRun(rounds_max=pipeline.rounds_max) if pipeline.bounded else None
        self.outbox: Outbox | None = None
        self.settler: Settler | None = None
        self.scheduler: Scheduler | None = None
        self.lane: Lane | None = None
        self.source_session: Session | None = None
        self.ready = asyncio.Event()
        self.meter = Meter()
        self.claimed = ClaimCounters()
        self.error: errors.OutboxdError | None = None
        self.lacking = ""
        self._said, self._said_at = "", 0.0

    @property
    def is_fit(self) -> bool:
        """Whether the outbox is drained now, as far as anybody knows."""
        return self.ready.is_set() and not self.lacking

    @property
    def hindrance(self) -> str:
        """Why nothing moves in it, or not for good: also while its table cannot be looked at, or nothing deleted."""
        if self.lacking or self.scheduler is None or self.settler is None:
            return self.lacking
        return self.settler.refused or (self.scheduler.complaint if self.scheduler.failures else "")

    async def run(self, background: TaskGroup) -> None:
        """Drain until stopped. A missing or changed table is waited for; a bounded run keeps the error and ends."""
        tries = 0
        while not self._pipeline.live.stopping:
            try:
                table = await self._inspect()
                if twin := self._pipeline.twin_of(self, table):
                    names = f'outboxes "{twin.config.name}" and "{self.config.name}"'
                    self._pipeline.fail(errors.ConfigError([f"{names} are one table: {table.name}"]))
                    return
                tries = 0
                self._found(lacking="")
                self.ready.set()
                await self._drain_table(table, background)
            except errors.OutboxdError as exc:  # also a refused login: passwords rotate
                tries += 1
                self._found(lacking=str(exc))
                if not any(branch.is_fit for branch in self._pipeline.branches):  # else those feed the watchdog
                    self._pipeline.live.beat()
                await self._pipeline.name_grants(exc)
                if self.bounded is not None and (tries >= BOUNDED_TRIES_MAX or exc.exit_code != 69):
                    self.error = exc
                    return
                self._complain(exc)
                await self._pipeline.pause(LOOK_AGAIN_S)
            else:
                return

    def _complain(self, exc: errors.OutboxdError) -> None:
        """Log why the outbox is not drained: at once when that is new, then once a minute."""
        now = time.monotonic()
        if self._said != str(exc) or now - self._said_at >= SAID_EVERY_S:
            self._said, self._said_at = str(exc), now
            log.warning("outbox.not_ready", outbox=self.config.name, error=str(exc), hint=exc.hint or None)

    def _found(self, *, lacking: str) -> None:
        if self.lacking != lacking:
            self.lacking = lacking
            self._pipeline.live.fitness_changed()

    async def _inspect(self) -> Table:
        async with session.visit(self._pipeline.dsn(), name=f"inspect {self.config.name}") as connection:
            table = await inspect_table(connection, self.config)
            await access.require_outbox(connection, self.config)
            return table

    async def _drain_table(self, table: Table, background: TaskGroup) -> None:
        pipeline = self._pipeline
        live = pipeline.live
        self.outbox = Outbox(self.config.name, table, schema=pipeline.config.schema, dsn=pipeline.dsn)
        scheduler = Scheduler(
            self.outbox,
            pipeline.claims,
            finder=pipeline.finder_of(self.outbox),
            live=live,
            on_claimed=lambda claim, candidate: reader.put(claim, candidate),
            on_awaited=lambda: settler.hurry(),
            bounded=self.bounded,
            counters=self.claimed,
        )
        self.scheduler = scheduler
        settler = Settler(
            self.outbox,
            live,
            on_settled=scheduler.settled,
            on_room=pipeline.drain.queue.look_again,
            meter=self.meter,
        )
        settler.gives_up = self.bounded is not None
        self.settler = settler

        def started(turn: Turn) -> None:
            reader.started(turn)
            scheduler.started(turn)

        self.source_session = source_session(pipeline.dsn, name=f"source {self.config.name}")
        lane = Lane(
            self.outbox,
            settler,
            Sources(self.config.name, table, pipeline.config.schema, self.source_session),
            discard_unhandled=self.config.on_unhandled == "discard",
            on_started=started,
        )
        self.lane = lane
        reader = Reader(lane, pipeline.drain, scheduler, live)
        await pipeline.claims.listen(f"outboxd_{table.oid}", scheduler.wake)
        writing, reading = anyio.CancelScope(), anyio.CancelScope()
        background.start_soon(_run_in, writing, settler.run)
        background.start_soon(_run_in, reading, reader.run)
        try:
            await scheduler.schedule_batch()
        except errors.SchemaError:
            # Whoever looks at the table anew must find no claim of ours, and no delivery under way.
            reading.cancel()
            await lane.close()
            with anyio.move_on_after(SETTLE_S_MAX):  # what was delivered would be delivered again
                await self.settle()
            writing.cancel()
            await scheduler.let_go()
            await self.close()
            raise

    async def close(self) -> None:
        """Close the sessions."""
        if self.outbox is not None:
            await self.outbox.close()
        if self.source_session is not None:
            await self.source_session.close()

    def stop(self) -> None:
        """Wake the loops so that they see the stop."""
        if self.scheduler is not None:
            self.scheduler.stop()

    async def settle(self) -> None:
        """Wait until everything handed to the settler is written, or given up."""
        if self.settler is not None:
            self.settler.hurry()
            await self.settler.idle.wait()
            self.error = self.error or self.settler.error


async def _run_in(scope: anyio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await work()
