"""What the demo counts: the shop's own count, the daemon's own count, and what the database holds."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import session

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config
    from outboxd.demo.daemon import Daemon
    from outboxd.demo.shop import Shop

RATE_WINDOW_S = 2.0
FAILING_MAX = 50

# Lag is the age of the oldest row that should be under way: due, and not of a shard in backoff.
DEPTH = """
SELECT
    count(*) AS waiting,
    count(*) FILTER (WHERE o.scheduled_for > now() OR f.shard_scope IS NOT NULL) AS in_backoff,
    extract(epoch FROM now() - min(greatest(o.date_added, o.scheduled_for))
        FILTER (WHERE o.scheduled_for <= now() AND f.shard_scope IS NULL))::float8 AS lag_s
FROM outbox AS o
LEFT JOIN (SELECT DISTINCT shard_scope, shard_identifier FROM outboxd.failure WHERE outbox = $1) AS f
    ON f.shard_scope = o.shard_scope AND f.shard_identifier = o.shard_identifier::text
"""

# Where a failing shard stands: the schedule of the message that failed, found by its primary key.
FAILING = """
SELECT
    f.shard_scope,
    f.shard_identifier,
    f.attempts,
    f.last_error,
    extract(epoch FROM o.scheduled_for - now())::float8 AS next_in_s
FROM outboxd.failure AS f
LEFT JOIN outbox AS o ON o.id = f.message_id
WHERE f.outbox = $1
ORDER BY o.scheduled_for, f.shard_identifier
LIMIT $2
"""

# How far the backfill is: the watermark moves in the transaction that writes the messages, one for each member.
BACKFILL = """
SELECT
    count(*) AS total,
    count(*) FILTER (WHERE w.version > $2 OR w.version = $2 AND m.id < w.low_bound::bigint) AS done
FROM shop_member AS m
LEFT JOIN outboxd.backfill_watermark AS w ON w.table_name = $1
"""


@dataclass(frozen=True, slots=True)
class Walk:
    """How far the backfill is: members done, of all, and what it does, in the daemon's word."""

    done: int
    total: int
    condition: str

    @property
    def percent(self) -> int:
        """Cut off, so that 100 means all."""
        return 100 * self.done // self.total if self.total else 100


@dataclass(frozen=True, slots=True)
class Failing:
    """One failing shard; `next_in_s` is 0 when its next attempt is due."""

    shard: str
    attempts: int
    next_in_s: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    Everything that is shown, at one moment.

    `found` are rows that an earlier demo left in a database that was kept; `written` those of the shop, `backfilled`
    those of the daemon's backfill. `waiting` is what must be left by the other counts; at the end `counted` is what
    the outbox really holds.
    """

    elapsed_s: float
    found: int
    written: int
    backfilled: int
    delivered: int
    retired: int
    failures: int
    buried: int
    in_backoff: int
    lag_s: float
    rows_per_s: float
    walk: Walk
    failing: tuple[Failing, ...] = ()
    counted: int | None = None

    @property
    def coalesced(self) -> int:
        """Rows that left the outbox with a delivery of something newer."""
        return self.retired - self.delivered

    @property
    def waiting(self) -> int:
        """Rows that are still in the outbox."""
        return self.found + self.written + self.backfilled - self.retired - self.buried

    @property
    def due(self) -> int:
        """Rows that wait for nothing but their turn. The counts are moments apart, so it is cut off at 0."""
        return max(0, self.waiting - self.in_backoff)

    @property
    def adds_up(self) -> bool:
        """Whether the outbox holds what it must hold by the counts of shop and daemon."""
        return self.counted == self.waiting


class Watch:
    """
    Takes the figures.

    Args:
        dsn: The database.
        config: Knows the outbox, and the scopes by number.
        shop: Who writes.
    """

    def __init__(self, dsn: str, config: Config, shop: Shop) -> None:
        self._dsn = dsn
        self._outbox = config.outboxes[0].name
        self._scopes = {scope.value: name for name, scope in config.scopes.items()}
        self._shop = shop
        self._connection: asyncpg.Connection | None = None
        self._began_at = time.monotonic()
        self._rate = Rate()
        self._found = 0
        self._done_before = 0
        self._model = config.model[0]

    async def open(self) -> None:
        """Connect, and count what an earlier demo left; call it before the daemon starts."""
        self._connection = await session.connect(self._dsn, name="watch")
        self._found = (await self._fetch(DEPTH, self._outbox))[0]["waiting"]
        self._done_before = (await self._look_at_walk("")).done

    async def close(self) -> None:
        """Say goodbye."""
        if self._connection is not None:
            await self._connection.close(timeout=2)

    def begin(self) -> None:
        """Start the clock."""
        self._began_at = time.monotonic()

    async def take(self, daemon: Daemon, *, final: bool = False) -> Figures:
        """
        Take the figures of this moment.

        Args:
            daemon: Who drains.
            final: Shop and daemon have stopped: the rows in the outbox can be counted.
        """
        depth = (await self._fetch(DEPTH, self._outbox))[0]
        failing = await self._fetch(FAILING, self._outbox, FAILING_MAX)
        walk = await self._look_at_walk(daemon.backfill)
        elapsed_s = time.monotonic() - self._began_at
        return Figures(
            elapsed_s=elapsed_s,
            found=self._found,
            written=self._shop.written,
            backfilled=walk.done - self._done_before,
            delivered=daemon.delivered,
            retired=daemon.retired,
            failures=daemon.failures,
            buried=daemon.buried,
            in_backoff=depth["in_backoff"],
            lag_s=max(0.0, depth["lag_s"] or 0.0),
            rows_per_s=daemon.retired / elapsed_s if final else self._rate.of(elapsed_s, daemon.retired),
            walk=walk,
            failing=tuple(self._failing(row) for row in failing),
            counted=depth["waiting"] if final else None,
        )

    async def _look_at_walk(self, condition: str) -> Walk:
        row = (await self._fetch(BACKFILL, self._model.table, self._model.replication_version))[0]
        return Walk(row["done"], row["total"], condition)

    def _failing(self, row: asyncpg.Record) -> Failing:
        scope = self._scopes.get(row["shard_scope"], str(row["shard_scope"]))
        next_in_s = max(0.0, row["next_in_s"] or 0.0)
        return Failing(f"{scope} {row['shard_identifier']}", row["attempts"], next_in_s, row["last_error"])

    async def _fetch(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        assert self._connection is not None
        try:
            rows: list[asyncpg.Record] = await self._connection.fetch(statement, *args)
        except Exception as exc:
            raise session.translate(exc, "counting") from exc
        return rows


class Rate:
    """How fast a count grew over the last two seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(0.0, 0)])

    def of(self, at_s: float, count: int) -> float:
        """Note the count at a time in seconds and return the growth per second."""
        self._seen.append((at_s, count))
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - RATE_WINDOW_S:
            self._seen.popleft()
        began_at_s, before = self._seen[0]
        return (count - before) / (at_s - began_at_s) if at_s > began_at_s else 0.0
