"""
`outboxd backfill run`: walks tables in the foreground.

    walking -> finished
    walking -> held      paused or waiting for an option; broken, or walked by somebody else, for longer than a while
    walking -> stopped   Ctrl-C: after the batch under way; a second one ends that too, and its transaction

It ends when no table walks any more. The watermark is where it was left, so the next run goes on there.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING

from outboxd import errors
from outboxd.load import Loaded, session_dsn
from outboxd.options import REFRESH_INTERVAL_S
from outboxd.pipeline import Pipeline
from outboxd.stall import StallWatch
from outboxd.stopping import Stopper, listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.backfill import Backfill
    from outboxd.registry import Registry
    from outboxd.walker import Walker

REST_S = 1.0
PATIENCE_S = 10.0
UNDRAINED_PATIENCE_S = 90.0
DRAIN_INTERVAL_S = 10.0
DRAINS_AT_END_MAX = 10


class Interrupt:
    """Turns SIGINT, SIGTERM and SIGHUP into the end of a walk. Make it in the task that walks."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()
        self._task = asyncio.current_task()

    @property
    def happened(self) -> bool:
        """Whether there was one."""
        return self._stopped.is_set()

    def listen(self) -> None:
        """Take over the signals."""
        listen(self.stop, insist=self._give_up)

    def stop(self) -> None:
        """End after the batch under way."""
        self._stopped.set()

    async def rest(self, seconds: float) -> None:
        """Sleep, but not beyond a stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    def _give_up(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Drainer:
    """
    Drains between the batches: nothing else may be there to do it, and due messages leave no room for more.

    Args:
        loaded: The configuration.
        registry: Categories and receivers.
        interrupt: While it drains, a first signal is a soft stop of the drain, a second one a hard one.
    """

    def __init__(self, loaded: Loaded, registry: Registry, interrupt: Interrupt) -> None:
        self.delivered = 0
        self.failures = 0
        self._loaded = loaded
        self._registry = registry
        self._interrupt = interrupt

    async def drain(self) -> int:
        """
        Drain until nothing is due that has not failed or been skipped, and tell how much was delivered.

        Raises:
            OutboxdError: An outbox could not be drained.
        """
        pipeline = Pipeline(self._loaded.config, self._registry, lambda: session_dsn(self._loaded), bounded=True)
        await pipeline.open()
        stopper = Stopper(pipeline, expected=True)
        stopper.listen()
        try:
            # What receivers print must not get between the results on stdout.
            with StallWatch(lambda: pipeline.live.registry), contextlib.redirect_stdout(sys.stderr):
                await pipeline.run(stopper.run)
        finally:
            await pipeline.close()
            self._interrupt.listen()
        if stopper.stopping.is_set():
            self._interrupt.stop()
        totals = pipeline.totals()
        self.delivered += totals["delivered"]
        self.failures += totals["failures"]
        for branch in pipeline.branches:
            if branch.error is not None:
                raise branch.error
        return totals["delivered"]

    async def drain_until_empty(self) -> None:
        """Drain until nothing more is delivered; receivers may write messages, but not for ever."""
        for _ in range(DRAINS_AT_END_MAX):
            if self._interrupt.happened or not await self.drain():
                return


class Foreground:
    """
    Walks the tables of a backfill until none can go on.

    Args:
        backfill: Its `walkers` are walked.
        interrupt: Ends it before its time.
        force_synchronous: Ignore the options that gate versions.
        on_tick: Called whenever something may have changed.
        drainer: Drains beside it, where nobody else does.
    """

    def __init__(
        self,
        backfill: Backfill,
        interrupt: Interrupt,
        *,
        force_synchronous: bool,
        on_tick: Callable[[], None],
        drainer: Drainer | None = None,
    ) -> None:
        self._backfill = backfill
        self._interrupt = interrupt
        self._force_synchronous = force_synchronous
        self._on_tick = on_tick
        self._drainer = drainer
        self._drained_at = float("-inf")
        self._refreshed_at = float("-inf")
        self._held_since: dict[str, float] = {}

    async def run(self) -> None:
        """
        Walk to the end, as far as it can be reached.

        Raises:
            StoreUnavailable: Database or Redis is away; the next run goes on.
        """
        while not self._interrupt.happened:
            await self._refresh_options()
            written = await self._backfill.tick(paced=False, force_synchronous=self._force_synchronous)
            if self._backfill.unavailable:
                await self._backfill.look()  # raises what is the matter, unless it is over
            self._on_tick()
            if not await self._anybody_can_go_on():
                break
            await self._drain_now_and_then(written=written)
            if not written:
                await self._interrupt.rest(REST_S)
        if self._drainer is not None:
            await self._drainer.drain_until_empty()

    async def _refresh_options(self) -> None:
        if time.monotonic() - self._refreshed_at >= REFRESH_INTERVAL_S:
            await self._backfill.switchboard.refresh()
            self._refreshed_at = time.monotonic()

    async def _drain_now_and_then(self, *, written: bool) -> None:
        if self._drainer is not None and (written or time.monotonic() - self._drained_at >= DRAIN_INTERVAL_S):
            await self._drainer.drain()
            self._drained_at = time.monotonic()

    async def _anybody_can_go_on(self) -> bool:
        return any([await self._can_go_on(walker) for walker in self._backfill.walkers])

    async def _can_go_on(self, walker: Walker) -> bool:
        condition = walker.progress.condition
        if condition in ("finished", "never", "waiting", "paused"):
            return False
        if condition == "walking":
            self._held_since.pop(walker.table, None)
            return True
        held_s = time.monotonic() - self._held_since.setdefault(walker.table, time.monotonic())
        if condition in ("budget", "lag"):  # for longer than the minute of the rate only where nobody drains
            return self._drainer is not None or held_s < UNDRAINED_PATIENCE_S
        if held_s >= PATIENCE_S:
            return False
        return condition == "elsewhere" or not await self._is_hopeless(walker)

    async def _is_hopeless(self, walker: Walker) -> bool:
        """Whether the tables or the watermark are wrong. Else it may be somebody's lock, which goes."""
        try:
            await self._backfill.watermarks.get_processing_state(walker.table)
            await self._backfill.inspect(walker.model)
        except errors.StoreUnavailable:
            raise
        except errors.OutboxdError:
            return True
        return False
