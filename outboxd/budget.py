"""
What backfills may write now: the rate, less what live traffic needs.

Any 60 seconds hold at most `rate - scheduled rows` messages. What was written in them is kept in the database, so that
replicas, restarts and runs of `--once` keep the rate together; within the minute a daemon spreads it evenly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from outboxd import errors, session, sql
from outboxd.inspection import inspect_table
from outboxd.outbox import renderer_of

if TYPE_CHECKING:
    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.options import Switches
    from outboxd.session import Fetch, Session

log = structlog.get_logger()

_STATEMENTS = sql.load("backfill.sql")

SPENDING_CLASS = 1_870_099_305
CATCH_UP_S = 5.0
ROWS_LOOKED_AT_MAX = 200_000
FIRST_ROWS = 1_000
LOOK_S_MAX = 0.05
LOOK_SHARE = 20
LOOK_AGE_S_MAX = 30.0


LOAD_PARAMETERS = (
    "outbox",
    "rows_max",
    "categories_off",
    "scopes_off",
    "identifiers_off",
    "regions_off",
    "looked_at_max",
)
"""What the load is measured with, as placeholders; `lag_of_first` does without the last."""


class Pace:
    """Spreads a rate evenly, whatever the length of the ticks; what a tick does not use is saved for a while."""

    def __init__(self) -> None:
        self._saved = 0.0
        self._filled_at: float | None = None

    def allowance(self, rate: int, need: int) -> int:
        """
        Tell what may be written now.

        Args:
            rate: Messages a minute.
            need: So many must be saved up in any case, because they cannot be written in part.
        """
        now = time.monotonic()
        elapsed_s = 1.0 if self._filled_at is None else now - self._filled_at
        self._filled_at = now
        self._saved = min(max(rate * CATCH_UP_S / 60, need), self._saved + rate * elapsed_s / 60)
        return int(self._saved)

    def spend(self, messages: int) -> None:
        """Take what was written."""
        self._saved -= messages


class Ledger:
    """What was spent in the last 60 seconds, by everybody who walks these tables."""

    def __init__(self, schema: str, tables: list[str]) -> None:
        self._schema = schema
        self._tables = tables
        renderer = sql.Renderer({"schema": sql.quote(schema)}, {})
        self._sql = {name: renderer.render(_STATEMENTS[name]) for name in ("lock_spending", "spent", "spend")}

    async def spent(self, fetch: Fetch) -> int:
        """Tell it; until the end of the transaction nobody else may ask."""
        await fetch(self._sql["lock_spending"], SPENDING_CLASS, self._schema)
        return int((await fetch(self._sql["spent"], self._tables))[0][0])

    async def spend(self, fetch: Fetch, table: str, messages: int) -> None:
        """Note what a batch has written."""
        await fetch(self._sql["spend"], table, messages)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the drain is: due rows that it could deliver, and the age of the oldest in seconds."""

    scheduled: int
    lag_s: float


class LoadGauge:
    """
    Measures the load of the silo's outboxes.

    Args:
        config: Its `outboxes`.
        session: Where to ask.
        dsn: Tells where to connect to look at the tables.
        rows_max: Rows of an outbox that are counted at most; None: as many as the rate, which more would not change.
    """

    def __init__(
        self, config: Config, session: Session, dsn: Callable[[], str], *, rows_max: int | None = None
    ) -> None:
        self._config = config
        self._rows_max = max(1, config.backfill.backfills_per_minute) if rows_max is None else rows_max
        self._session = session
        self._dsn = dsn
        self._statements: dict[str, dict[str, str]] = {}
        self._last = Load(0, 0.0)
        self.lag_s: dict[str, float] = {}
        """The age of the oldest due row of each outbox that could be looked at last time."""
        self.unknown: dict[str, errors.OutboxdError] = {}
        """Why the others could not."""
        self._good_until = 0.0

    async def measure(self, switches: Switches) -> Load:
        """
        Count due rows that are neither paused nor of failing shards, up to the bound.

        Counting a million takes 0.4 s, and a high rate would pay it every second: a look that took long is believed for
        20 times what it took.

        Raises:
            StoreUnavailable: The database is away.
        """
        began_at = time.monotonic()
        if began_at >= self._good_until:
            self._last = await self.look(switches)
            ended_at = time.monotonic()
            if ended_at - began_at > LOOK_S_MAX:
                self._good_until = ended_at + min(LOOK_AGE_S_MAX, LOOK_SHARE * (ended_at - began_at))
        return self._last

    async def look(self, switches: Switches) -> Load:
        """
        Count them now.

        An outbox that cannot be looked at counts as idle: nothing can be written to it, and the others go on.

        Raises:
            StoreUnavailable: The database is away.
        """
        rows_max = self._rows_max
        looked_at_max = max(ROWS_LOOKED_AT_MAX, rows_max)
        shards = list(switches.shards)
        off = [[shard[0] for shard in shards], [shard[1] for shard in shards], [shard[2] for shard in shards]]
        scheduled, self.lag_s, self.unknown = 0, {}, {}
        for outbox in self._config.outboxes:
            if outbox.name in switches.outboxes:
                self.lag_s[outbox.name] = 0.0
                continue
            try:
                statements = await self._statements_of(outbox)
                doing = f"measuring outbox {outbox.name}"
                held = [list(switches.categories), *off]
                arguments = [outbox.name, rows_max, *held, looked_at_max]
                counted, lag_s = (await self._session.fetch(doing, statements["load"], *arguments))[0]
                if counted >= rows_max:
                    arguments = [outbox.name, FIRST_ROWS, *held]
                    first = await self._session.fetch(doing, statements["lag_of_first"], *arguments)
                    lag_s = max(lag_s, first[0][0])
            except (errors.SchemaError, errors.StatementFailed) as exc:
                self._statements.pop(outbox.name, None)
                self.unknown[outbox.name] = exc
                log.debug("backfill.load_unknown", outbox=outbox.name, error=str(exc))
                continue
            scheduled += counted
            self.lag_s[outbox.name] = lag_s
        return Load(scheduled, max(self.lag_s.values(), default=0.0))

    async def _statements_of(self, outbox: OutboxConfig) -> dict[str, str]:
        if outbox.name not in self._statements:
            async with session.visit(self._dsn(), name=f"inspect {outbox.name}") as connection:
                table = await inspect_table(connection, outbox)
            self._statements[outbox.name] = load_statements(table, self._config.schema)
        return self._statements[outbox.name]


def load_statements(table: Table, schema: str) -> dict[str, str]:
    """Return the statements that measure the load of an outbox: `load` and `lag_of_first`."""
    names = {name: f"${number}" for number, name in enumerate(LOAD_PARAMETERS, 1)}
    names["deliverable"] = renderer_of(table, schema, **names).render(_STATEMENTS["deliverable"])
    renderer = renderer_of(table, schema, **names)
    return {name: renderer.render(_STATEMENTS[name]) for name in ("load", "lag_of_first")}
