"""
Everything that drains, wired together: one task group, two ways to stop.

    stop       nothing new is claimed; the delivery under way in each drainer finishes; what was delivered is settled
    stop_hard  deliveries are cancelled (their messages stay); what was delivered is still settled

The same pipeline serves the daemon, `--once` and the tests: a bounded run ends by itself when a whole pass finds
nothing more to do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import structlog

from outboxd import access, errors
from outboxd.backfill import Backfill
from outboxd.branch import Branch
from outboxd.claims import Claims
from outboxd.deliver import Delivery
from outboxd.drain import Drain
from outboxd.find import Finder, OneShard
from outboxd.inspection import require_database
from outboxd.live import Live
from outboxd.options import REFRESH_INTERVAL_S, SwitchBoard

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from anyio.abc import TaskGroup

    from outboxd.config import Config
    from outboxd.inspection import Table
    from outboxd.model import ShardKey
    from outboxd.outbox import Outbox
    from outboxd.registry import Registry

log = structlog.get_logger()

SETTLE_AT_END_S_MAX = 10.0
REMAINING_PAIRS_MAX = 100_000


class Pipeline:
    """
    One process's drain of all its outboxes.

    Args:
        config: The configuration; `config.outboxes` are drained.
        registry: Categories and receivers.
        dsn: Tells where to connect, asked at every reconnect.
        bounded: End when a whole pass finds nothing more to do.
        rounds_max: ... or after so many passes that found something.
        redis_url: Tells where Redis is, for watermarks that are kept there.
        backfills: Whether tables are walked: all the time, or (bounded) for a minute's allowance at the end.
        only: The name of an outbox and one shard of it: nothing else is drained, or looked at.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        dsn: Callable[[], str],
        *,
        bounded: bool = False,
        rounds_max: int | None = None,
        redis_url: Callable[[], str] = lambda: "",
        backfills: bool = False,
        only: tuple[str, ShardKey] | None = None,
    ) -> None:
        self.config = config
        self.dsn = dsn
        self.bounded = bounded
        self.rounds_max = rounds_max
        self.live = Live(config.drain, registry)
        self.claims = Claims(dsn, config, self.live, one_shard=only is not None)
        self.switchboard = SwitchBoard(config, dsn)
        self.drain = Drain(self.live, Delivery(self.live))
        self._only = only
        self.branches = [Branch(outbox, self) for outbox in config.outboxes if only is None or only[0] == outbox.name]
        self.remaining_due = 0
        self.lacking = ""
        """What the database lacks, so that it could not be opened: a table, a column, a privilege."""
        self._fatal: errors.OutboxdError | None = None
        self._drainers: TaskGroup | None = None
        self.drained = asyncio.Event()
        self._stopped = asyncio.Event()
        stopping = self._stopped.is_set
        self.backfill = Backfill(config, self.switchboard, dsn, redis_url, stopping) if backfills else None
        self._delivering, self._backfilling = anyio.CancelScope(), anyio.CancelScope()

    async def open(self) -> None:
        """
        Open the claim session and read the kill switches: nothing is delivered before both are done.

        Raises:
            ConfigError, PoolerError, FleetError: Waiting does not help.
            StoreUnavailable, SchemaError: It may help.
        """
        async with access.naming_grants(self.dsn, self.config, self.claims.kind):
            try:
                await self._open()
            except errors.OutboxdError as exc:
                self.lacking = str(exc) if isinstance(exc, errors.SchemaError) else ""
                raise
        self.lacking = ""

    async def name_grants(self, exc: errors.OutboxdError) -> None:
        """Name the GRANTs in an error about a privilege."""
        await access.name_grants(exc, self.dsn, self.config, self.claims.kind)

    async def _open(self) -> None:
        await require_database(self.dsn(), self.config)
        await access.require_own_tables(self.dsn, self.config)
        await self.claims.open()
        try:
            await self.refresh()
        except BaseException:
            await self.claims.close()  # its row without its lock would look like a death
            raise

    async def run(self, *companions: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """
        Drain until stopped, or (bounded) until nothing is left; settle; close. Call `open` first.

        Args:
            companions: What runs beside it, and is cancelled when it is done.

        Raises:
            ConfigError: Two outboxes are one table.
        """
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(self.claims.run)
                background.start_soon(self._keep_refreshing)
                for companion in companions:
                    background.start_soon(companion)
                if self.backfill is not None and not self.bounded:
                    background.start_soon(self.backfill.run)
                with self._delivering:
                    await self._work(background)
                self.live.stopping = True
                self.drained.set()
                await self.settle()
                if self.bounded and self._only is None:
                    with anyio.move_on_after(SETTLE_AT_END_S_MAX):
                        await self._count_remaining()
                    if self.backfill is not None:
                        with self._backfilling:
                            await self.backfill.spend_a_minute()
                background.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):  # the locks must go, however we end
                await self.close()
        if self._fatal is not None:
            raise self._fatal

    async def refresh(self) -> None:
        """
        Read the kill switches now; the pipeline does so itself every two seconds, once it runs.

        Raises:
            StoreUnavailable, SchemaError, StatementFailed: They stay as they were.
        """
        await self.switchboard.refresh()
        if self.live.switches != self.switchboard.now:
            self.live.switches = self.switchboard.now
            self._look_again()

    async def settle(self) -> None:
        """Wait until everything that was delivered is settled, for a bounded time."""
        with anyio.move_on_after(SETTLE_AT_END_S_MAX):
            for branch in self.branches:
                await branch.settle()

    async def close(self) -> None:
        """Deregister and close every session."""
        await self.claims.close()
        await self.switchboard.close()
        if self.backfill is not None:
            await self.backfill.close()
        for branch in self.branches:
            await branch.close()

    def stop(self) -> None:
        """Claim no more; let the deliveries under way finish."""
        self.live.stopping = True
        self._stopped.set()
        for branch in self.branches:
            branch.stop()

    def stop_hard(self) -> None:
        """Cancel the deliveries under way."""
        self.stop()
        self.live.stopping_hard = True
        self._delivering.cancel()
        self._backfilling.cancel()

    def apply(self, config: Config, registry: Registry) -> None:
        """Take over what may change while running: `[drain]`, scopes, categories."""
        self.live.drain = config.drain
        self.live.registry = registry
        # Which outboxes there are needs a restart; their switches must not be lost with a name that is gone.
        self.switchboard.config = msgspec.structs.replace(config, outbox=self.config.outbox)
        self._start_drainers()
        self._look_again()

    def finder_of(self, outbox: Outbox) -> Finder:
        """Return what looks for the shards of an outbox that are to be drained."""
        return Finder(outbox, self.live) if self._only is None else OneShard(outbox, self.live, self._only[1])

    def twin_of(self, branch: Branch, table: Table) -> Branch | None:
        """Find another branch with the same table under another name: it would drain each shard a second time."""
        for other in self.branches:
            if other is not branch and other.outbox is not None and other.outbox.table.oid == table.oid:
                return other
        return None

    def fail(self, exc: errors.OutboxdError) -> None:
        """Stop because of an error that waiting does not mend; `run` raises it at its end."""
        self._fatal = exc
        self.stop()

    async def ready(self) -> None:
        """Wait until every outbox has been found fit to be drained."""
        for branch in self.branches:
            await branch.ready.wait()

    def totals(self) -> dict[str, int]:
        """Count since the start: deliveries, rows retired by them, failures, burials, claims."""
        meters = [branch.meter for branch in self.branches]
        return {
            "delivered": sum(meter.total("delivered") for meter in meters),
            "retired": sum(meter.total("retired") for meter in meters),
            "failures": sum(meter.total("failures") for meter in meters),
            "buried": sum(meter.total("buried") for meter in meters),
            "claimed": sum(branch.claimed.claimed for branch in self.branches),
        }

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond a stop."""
        with anyio.move_on_after(seconds):
            await self._stopped.wait()

    async def _work(self, background: TaskGroup) -> None:
        async with anyio.create_task_group() as drainers:
            self._drainers = drainers
            self._start_drainers()
            async with anyio.create_task_group() as branches:
                for branch in self.branches:
                    branches.start_soon(branch.run, background)
            self.drain.queue.close()

    def _look_again(self) -> None:
        for branch in self.branches:
            if branch.scheduler is not None:
                branch.scheduler.look_again()

    def _start_drainers(self) -> None:
        """Bring the drainers up to `concurrency`; those above it end after their turn."""
        if self._drainers is not None and not self.live.stopping and not self.drained.is_set():
            for _ in range(self.live.drain.concurrency - self.drain.drainers):
                self.drain.drainers += 1
                self._drainers.start_soon(self.drain.drainer)

    async def _count_remaining(self) -> None:
        for branch in self.branches:
            if branch.outbox is not None:
                try:
                    self.remaining_due += await branch.outbox.count_due_shards(REMAINING_PAIRS_MAX)
                except errors.OutboxdError as exc:
                    branch.error = branch.error or exc

    async def _keep_refreshing(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            for receiver in self.live.overdue():
                log.warning("receiver.overdue", receiver=receiver)
            try:
                await self.refresh()
                failures = 0
            except errors.OutboxdError as exc:
                failures += 1
                if failures & (failures - 1) == 0:  # at the first one, then ever more rarely
                    await self.name_grants(exc)
                    log.warning("options.unread", error=str(exc), hint=exc.hint or None, failures=failures)
