"""
What gauges say of the outbox tables: measured every few seconds by a session of its own, never when a scraper asks.

A table of any size costs about the same: pages are sampled, counts are bounded. Each sample has its age, and one that
cannot be renewed only grows older.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from outboxd import errors, sql
from outboxd.budget import LoadGauge
from outboxd.outbox import renderer_of
from outboxd.session import Session

if TYPE_CHECKING:
    from outboxd.branch import Branch
    from outboxd.pipeline import Pipeline

log = structlog.get_logger()

_STATEMENTS = sql.load("sample.sql")
_HORIZON = sql.Renderer({"holders": sql.without_header(_STATEMENTS["holders"])}, {}).render(_STATEMENTS["horizon"])

SAMPLE_INTERVAL_S = 10.0
FIRST_INTERVAL_S = 1.0
INTERVAL_S_MAX = 60.0
COST_SHARE = 200
"""
A round is followed by a rest of so many times what it took, up to `INTERVAL_S_MAX`. Beside a held snapshot it walks
the dead entries of an index, which nothing else of an idle daemon does.
"""
PAGES_MAX = 1_000
SHARD_ROWS_MAX = 10_000
ROWS_COUNTED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Sample:
    """
    One outbox, as it was at `taken_at` (monotonic seconds).

    Attributes:
        lag_s: Age of the oldest due message that is neither paused nor of a failing shard, among 10 000 of them.
        messages, depth: In the table, and in its deepest shard; estimated above some 8 MB, the depth bounded.
        failing_shards, dead_letters: Counted up to 10 000.
        dead_tuples, bytes: As the server's statistics have them.
    """

    taken_at: float
    lag_s: float
    messages: int
    depth: int
    failing_shards: int
    dead_letters: int
    dead_tuples: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Horizon:
    """What holds vacuum back: the age of the oldest in transactions, and of the oldest transaction in seconds."""

    transactions: int
    seconds: float


class Sampler:
    """
    Measures the outboxes of a pipeline.

    Args:
        pipeline: Its outboxes, switches and meters, whose clocks are compared with the database's.

    Attributes:
        samples: The last sample of each outbox.
        horizon: None while unknown, or where this role may not see it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.session = Session(pipeline.dsn, name="sample", lock_timeout_s=1, statement_timeout_s=5)
        self._gauge = LoadGauge(pipeline.config, self.session, pipeline.dsn, rows_max=ROWS_COUNTED_MAX)
        self.samples: dict[str, Sample] = {}
        self.horizon: Horizon | None = None
        self._failures: set[str] = set()

    async def run(self) -> NoReturn:
        """Measure, rest, and again; whatever goes wrong with that, the drain beside it goes on."""
        try:
            while True:
                began_at, rest_s = time.monotonic(), INTERVAL_S_MAX
                try:
                    await self.measure()
                    rest_s = self._rest_s(time.monotonic() - began_at)
                except Exception:
                    log.exception("metrics.crashed")
                await asyncio.sleep(rest_s)
        finally:
            await self.session.close()

    def _rest_s(self, cost_s: float) -> float:
        incomplete = len(self.samples) < len(self._pipeline.branches)  # tables are still being looked at
        return max(FIRST_INTERVAL_S if incomplete else SAMPLE_INTERVAL_S, min(INTERVAL_S_MAX, COST_SHARE * cost_s))

    async def measure(self) -> None:
        """Take a sample of every outbox; one that cannot be had is said once, and the old one stays."""
        try:
            await self._look_at_server()
            await self._gauge.look(self._pipeline.switchboard.now)
        except errors.OutboxdError as exc:
            await self._complain("", exc)
            return
        self._failures.discard("")
        for branch in self._pipeline.branches:
            name = branch.config.name
            try:
                await self._look_at(branch)
                self._failures.discard(name)
            except errors.OutboxdError as exc:
                await self._complain(name, exc)

    async def _look_at_server(self) -> None:
        visible, transactions, seconds = (await self._fetch("horizon", _HORIZON))[0]
        self.horizon = Horizon(transactions, seconds) if visible else None
        life, before = self.session.life, time.time()
        clock = (await self._fetch("clock", _STATEMENTS["clock"]))[0][0]
        if self.session.life == life:  # else much of the time may have gone into opening it
            for branch in self._pipeline.branches:
                branch.meter.clock_ahead_s = clock - (before + time.time()) / 2

    async def _look_at(self, branch: Branch) -> None:
        name = branch.config.name
        if branch.outbox is None:
            return
        if name in self._gauge.unknown:
            raise self._gauge.unknown[name]
        table = branch.outbox.table
        renderer = renderer_of(table, self._pipeline.config.schema)
        sizes, condition = (renderer.render(_STATEMENTS[key]) for key in ("sizes", "condition"))
        messages, depth, _ = (await self._fetch(f"sampling {name}", sizes, PAGES_MAX, SHARD_ROWS_MAX))[0]
        dead, size, failing, letters = (await self._fetch(f"sampling {name}", condition, name, ROWS_COUNTED_MAX))[0]
        self.samples[name] = Sample(
            taken_at=time.monotonic(),
            lag_s=self._gauge.lag_s[name],
            messages=messages,
            depth=depth,
            failing_shards=failing,
            dead_letters=letters,
            dead_tuples=dead,
            bytes=size,
        )

    async def _fetch(self, doing: str, statement: str, *args: object) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.session.fetch(doing, statement, *args)]

    async def _complain(self, name: str, exc: errors.OutboxdError) -> None:
        if name not in self._failures:
            self._failures.add(name)
            await self._pipeline.name_grants(exc)
            log.warning("metrics.not_sampled", outbox=name or None, error=str(exc), hint=exc.hint or None)
