"""One model's walk: what is known of it, whether it can go on, and what becomes of its errors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import structlog

from outboxd import errors, sql
from outboxd.source import FRESH
from outboxd.watermark import next_step

if TYPE_CHECKING:
    from outboxd.config import ModelConfig
    from outboxd.options import SwitchBoard
    from outboxd.session import Session
    from outboxd.source import Walk
    from outboxd.watermark import Watermarks

log = structlog.get_logger()

TABLE_CLASS = 1_870_099_304
RETRY_S_MAX = 60.0
ROWS_MAX = 20_000
QUERY_CANCELED = "57014"

_TRY_LOCK, _UNLOCK = (sql.load("backfill.sql")[name] for name in ("try_lock_table", "unlock_table"))

Condition = Literal[
    "never", "finished", "waiting", "walking", "paused", "lag", "budget", "elsewhere", "broken", "unreadable"
]
"""
What a model's backfill does: it is never backfilled, has finished, waits for an option, walks; or could walk and is
held back: by a pause, by live traffic, by the budget, by another process that walks the table, by an error; or it is
somebody's who only looks, and may not look at its table.
"""

Result = TypeVar("Result")


class Progress(msgspec.Struct):
    """
    What is known of one model's backfill, renewed every tick.

    Attributes:
        target: The version that it may be walked with now.
        rows: Source rows done by this process; `messages` what was written for them.
        need: Messages that its next row makes, at least.
        error: Why it is broken.
        watermark_errors: How often its watermark was none.
    """

    condition: Condition = "waiting"
    low_bound: str = FRESH
    version: int = 1
    target: int = 0
    rows: int = 0
    messages: int = 0
    need: int = 1
    error: str = ""
    watermark_errors: int = 0


class Walker:
    """
    One model and its walk. Errors stay here: they are noted, logged once, and the walk is tried again later.

    Args:
        model: The model.
        category: The number of its category.
        session: The session that writes batches, and holds the lock of the walk.
        watermarks: Where the walk is.
        switchboard: Options and pauses.
        inspect: Looks at a model's tables.
        name_grants: Names the GRANTs in an error about a privilege.
        lock_name: What stands for the walk among the locks of the database.
        rate: Messages a minute; 0 pauses every walk.
        is_reader: Whether the role only looks: then a privilege that it lacks says nothing about the walk.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        category: int,
        session: Session,
        watermarks: Watermarks,
        switchboard: SwitchBoard,
        inspect: Callable[[ModelConfig], Awaitable[Walk]],
        name_grants: Callable[[errors.OutboxdError], Awaitable[None]],
        lock_name: str,
        rate: int,
        is_reader: bool = False,
    ) -> None:
        self.model = model
        self.table = model.table
        self.progress = Progress()
        self.rows_max = ROWS_MAX
        """Source rows of one batch: fewer where a row takes long."""
        self._category = category
        self._session = session
        self._watermarks = watermarks
        self._switchboard = switchboard
        self._inspect = inspect
        self._name_grants = name_grants
        self._lock_name = lock_name
        self._rate = rate
        self._is_reader = is_reader
        self._walk: Walk | None = None
        self._locked_on = 0
        self._failures = 0
        self._retry_at = 0.0
        self._reported: tuple[Condition, str] | None = None

    async def guarded(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """
        Await *work*; an error of the model becomes its condition, and None.

        Raises:
            StoreUnavailable: That is everybody's matter.
        """
        if self._retry_at > time.monotonic():
            work.close()
            return None
        try:
            result = await work
        except errors.StoreUnavailable:
            await self._release_quietly()
            raise
        except errors.OutboxdError as exc:
            await self._release_quietly()
            await self._name_grants(exc)
            self.fail(exc)
            return None
        except Exception as exc:  # ours: one model must not end the daemon (I14)
            log.exception("backfill.crashed", table=self.table)
            await self._release_quietly()
            self.fail(errors.StatementFailed(f"{type(exc).__name__}: {exc}"))
            return None
        self._retry_at, self.progress.error = 0.0, ""
        if result is not None or self.progress.condition != "walking":  # a look alone mends no batch
            self._failures = 0
        return result

    def fail(self, exc: errors.OutboxdError) -> None:
        """Note an error of the model; it is tried again ever more rarely."""
        self.progress.watermark_errors += isinstance(exc, errors.WatermarkError)
        self._walk = None
        if isinstance(exc, errors.StatementFailed) and exc.sqlstate == QUERY_CANCELED:
            self.rows_max = max(1, self.rows_max // 4)  # it took too long: others wait, and so would who takes over
        self._failures += 1
        self._retry_at = time.monotonic() + min(RETRY_S_MAX, 2.0**self._failures)
        is_hidden = self._is_reader and isinstance(exc, errors.PrivilegeError)
        self.progress.condition = "unreadable" if is_hidden else "broken"
        self.progress.error = f"{exc}. {exc.hint}" if exc.hint else str(exc)

    async def observe(self, target: int) -> None:
        """Renew what is known: where the walk is, and whether it could go on with the version *target*."""
        progress = self.progress
        progress.target = target
        state = await self._watermarks.get_processing_state(self.table)
        progress.low_bound, progress.version = state.low_bound, state.version
        if not self.model.replication_version:
            progress.condition = "never"
        elif next_step(state, self.model.replication_version) is None:
            progress.condition = "finished"
        elif next_step(state, target) is None or self.regions() == []:
            progress.condition = "waiting"
        elif self._is_paused():
            progress.condition = "paused"
        else:
            await self.walk()
            progress.condition = "walking"
        progress.need = max(self.fan_out(), progress.need if self._walk is not None and self._walk.by_row else 1)
        if progress.condition != "walking":
            await self.release()

    def _is_paused(self) -> bool:
        """Whether the walk is paused, or what it would write to is switched off: nobody could deliver it."""
        switches = self._switchboard.now
        return (
            not self._rate
            or bool(self._switchboard.gates.pauses_of(self.table))
            or self.model.outbox in switches.outboxes
            or self._category in switches.categories
        )

    async def walk(self) -> Walk:
        """Look at the tables, once; anew after an error."""
        if self._walk is None:
            self._walk = await self._inspect(self.model)
        return self._walk

    def regions(self) -> list[str | None] | None:
        """
        Tell to which regions a row's messages go.

        Returns:
            One None where the outbox has no regions; None where each row names its own, and none is left out.
        """
        targets = self._switchboard.gates.regions.get(self.table)
        if self.model.region_names_sql.strip():
            return None if targets is None else list(targets)
        if not self.model.region_names:
            return [None]
        return [name for name in self.model.region_names if targets is None or name in targets]

    def fan_out(self) -> int:
        """Tell how many messages a row makes; 1 where each row names its own regions."""
        return 1 if self.model.region_names_sql.strip() else len(self.regions() or [None])

    @property
    def is_held(self) -> bool:
        """Whether the walk is ours."""
        return 0 < self._locked_on == self._session.life

    async def hold(self) -> bool:
        """Win the walk of the table; it is ours until it is released, or the session ends."""
        if not self.is_held:
            rows = await self._session.fetch(f"locking {self.table}", _TRY_LOCK, TABLE_CLASS, self._lock_name)
            self._locked_on = self._session.life if rows[0][0] else 0
        return self.is_held

    async def release(self) -> None:
        """Leave the walk to others."""
        held, self._locked_on = self.is_held, 0
        if held:
            await self._session.fetch(f"unlocking {self.table}", _UNLOCK, TABLE_CLASS, self._lock_name)

    async def _release_quietly(self) -> None:
        """Leave the walk to somebody who may have more luck."""
        with contextlib.suppress(errors.OutboxdError):
            await self.release()

    def report(self) -> None:
        """Log what has changed since the last report."""
        progress = self.progress
        # A small budget is spent and there again within seconds: that is how a walk goes.
        condition = "walking" if progress.condition == "budget" else progress.condition
        now = (condition, progress.error)
        if now == self._reported:
            return
        self._reported = now
        if progress.condition == "broken":
            log.warning("backfill.broken", table=self.table, error=progress.error)
        else:
            log.info("backfill.changed", table=self.table, condition=condition, version=progress.version)
