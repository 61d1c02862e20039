"""
The claim session: shard locks, this daemon's registration, and the wake-up calls.

One connection holds every lock. PostgreSQL frees them the moment it dies, so there is no lease to renew and
nothing to clean up; but a claim is worth only as much as its session. States:

    closed -> open      [open]      connected directly (no pooler), registered, listening
    open   -> lost      [_end]      a statement ended in anything but rows, or the connection went
    lost   -> open      [run]       after a pause that grows; claims of the old session are not used again

Keeps I3 and I9: a claim carries the session it was won on, and no delivery starts on a session that has not
answered for ten seconds.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import msgspec
import structlog

from outboxd import access, errors, session, sql
from outboxd.version import __version__

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config
    from outboxd.live import Live
    from outboxd.model import Candidate, ShardKey
    from outboxd.privileges import RoleKind

log = structlog.get_logger()

_STATEMENTS = sql.load("claim.sql")

# Two-int advisory locks live in a space of their own beside the one-bigint locks that applications like to use.
SHARD_CLASS = 1_870_099_301
WORKER_CLASS = 1_870_099_302
ONCE_CLASS = 1_870_099_303

ANSWER_AGE_S_MAX = 10.0
PING_INTERVAL_S = 2.5
LISTEN_CHECK_INTERVAL_S = 30.0
DEATH_COUNTS_FOR = dt.timedelta(minutes=5)
DEAD_KEPT_FOR = dt.timedelta(days=1)
STATEMENT_TIMEOUT_S = 5.0
CLOSE_S_MAX = 3.0
RECONNECT_PAUSE_S_MAX = 10.0


class ClaimSession:
    """One life of the claim connection. `answered_at` is monotonic seconds."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.turnstile = asyncio.Lock()
        self.answered_at = time.monotonic()
        self.alive = True


class Holder(Protocol):
    """The session that holds a claim's lock."""

    @property
    def alive(self) -> bool:
        """Whether it is the connection still that the claim was won on."""

    @property
    def answered_at(self) -> float:
        """When it last answered, monotonic seconds."""


class Claim(msgspec.Struct, eq=False):
    """A shard that this process has locked. `again` is a candidate that was found while the claim was held."""

    shard: ShardKey
    lock_key: int
    session: Holder
    again: Candidate | None = None

    def is_usable(self, now: float) -> bool:
        """Whether a delivery may start on this claim at *now* (monotonic seconds)."""
        return self.session.alive and now - self.session.answered_at < ANSWER_AGE_S_MAX


class Claims:
    """
    Wins and releases shards, and stands for this process among its replicas.

    Args:
        dsn: Tells where to connect, asked again at every reconnect (passwords rotate).
        config: The schema of outboxd's own tables, the silo mode, and the outboxes that replicas must agree on.
        live: Told whether a daemon died within the last five minutes (I9), and of every finished attempt (I13).
        one_shard: This is no daemon: it drains one shard and ends. Its death counts as one.
    """

    def __init__(self, dsn: Callable[[], str], config: Config, live: Live, *, one_shard: bool = False) -> None:
        self._dsn = dsn
        self._config = config
        self.kind: RoleKind = "operator" if one_shard else "daemon"
        """What its role needs privileges for."""
        self._silo_mode = config.silo_mode
        mark = {"one_shard": True} if one_shard else {}
        self._outboxes: list[dict[str, Any]] = [
            {"name": o.name, "table": o.table, "sharding_columns": o.sharding_columns, **mark} for o in config.outbox
        ]
        self._live = live
        renderer = sql.Renderer({"schema": sql.quote(config.schema)}, {})
        self._sql = {key: renderer.render(statement) for key, statement in _STATEMENTS.items()}
        self._session: ClaimSession | None = None
        self._closed = False
        self._lost = asyncio.Event()
        self._wakes: dict[str, Callable[[], None]] = {}
        self._heard = asyncio.Event()
        self.lost_by = ""
        """Why the session was lost, while it is."""
        self.worker_id = 0
        self._others: list[int] = []
        self.round_trips = 0

    def answered_s_ago(self) -> float:
        """Tell how long ago the session last answered, in seconds; infinity while there is none."""
        return time.monotonic() - self._session.answered_at if self._session is not None and self.is_open else math.inf

    def place(self) -> tuple[int, int]:
        """Tell which of how many daemons of its silo this one is, from 0, as it was some seconds ago."""
        return sum(other < self.worker_id for other in self._others), 1 + len(self._others)

    @property
    def is_open(self) -> bool:
        """Whether shards can be claimed now."""
        return self._session is not None and self._session.alive

    async def open(self) -> None:
        """
        Connect, register, and look whether a daemon has died.

        Raises:
            ConfigError, PoolerError: The DSN is wrong, or leads to a pooler.
            FleetError: A living daemon has other outboxes or sharding columns.
            StoreUnavailable, SchemaError: Worth trying again later.
        """
        connection = await session.connect(self._dsn(), name="claim", settings=_settings())
        opened = ClaimSession(connection)
        try:
            await session.refuse_pooler(connection)
            await self._refuse_standby(connection)
            await self._register(opened)
            for channel in self._wakes:
                await connection.add_listener(channel, self._on_notification)
            await connection.add_listener(self._own_channel, self._on_notification)
        except BaseException as exc:
            connection.terminate()
            if isinstance(exc, Exception):
                raise session.translate(exc, "opening the claim session") from exc
            raise
        self._closed = False
        self._lost.clear()
        connection.add_termination_listener(lambda _: self._end(opened))
        self._session = opened

    async def run(self) -> None:
        """Keep the session: ping it, look for deaths, check the listener, reopen what was lost, until `close`."""
        failures = 0
        while not self._closed:
            try:
                if not self.is_open:
                    await self.open()
                    failures = 0
                    log.info("claims.reopened", worker=self.worker_id)
                    self._tell("")
                    for wake in self._wakes.values():  # nobody heard what was written meanwhile
                        wake()
                await self._watch()
            except errors.OutboxdError as exc:
                self._tell(str(exc))
                if failures & (failures - 1) == 0:  # at the first one, then ever more rarely
                    await access.name_grants(exc, self._dsn, self._config, self.kind)
                    log.warning("claims.lost", error=str(exc), hint=exc.hint or None)
            self._live.beat()
            if not self.is_open:
                failures += 1
                # Jitter, so that replicas do not knock in step at a database that is coming up.
                await asyncio.sleep(min(RECONNECT_PAUSE_S_MAX, 0.1 * 2**failures) * random.uniform(0.5, 1.0))  # noqa: S311

    def _tell(self, lost_by: str) -> None:
        if lost_by != self.lost_by:
            self.lost_by = lost_by
            self._live.fitness_changed()

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call *wake* at every notification on *channel*, on this session and its successors."""
        self._wakes[channel] = wake
        current = self._session
        if current is None or not current.alive:
            return
        try:
            async with current.turnstile:
                await current.connection.add_listener(channel, self._on_notification)
        except Exception:  # the session that is opened next listens to every channel
            self._end(current)

    async def claim(self, candidates: Sequence[Candidate]) -> list[Claim]:
        """
        Lock shards; those that another drainer holds are left out, which is not an error.

        Args:
            candidates: With distinct lock keys, none of them held by this process.

        Raises:
            StoreUnavailable, StatementFailed: The session is lost, and every claim won on it.
        """
        current = self._current()
        rows = await self._fetch(current, "claim", SHARD_CLASS, sql.array_text(c.lock_key for c in candidates))
        won = set(rows[0][0])
        return [Claim(c.shard, c.lock_key, current) for c in candidates if c.lock_key in won]

    async def release(self, claims: Sequence[Claim]) -> None:
        """Unlock shards on the session they were won on; those of a lost session are free already."""
        keys = [c.lock_key for c in claims if c.session is self._session and c.session.alive]
        if not keys:
            return
        current = self._current()
        rows = await self._fetch(current, "release", SHARD_CLASS, sql.array_text(keys))
        if rows[0][0]:
            self._end(current)
            raise errors.StoreUnavailable(f"{rows[0][0]} shard locks were not held: the claim session is closed")

    async def lock_once(self, subject: str) -> bool:
        """Take the lock of a single run about *subject*; False when another one is under way."""
        return bool((await self._fetch(self._current(), "lock_once", ONCE_CLASS, subject))[0][0])

    async def close(self) -> None:
        """Deregister and close; every lock goes with the session."""
        self._closed = True
        current, self._session = self._session, None
        worker_id, self.worker_id = self.worker_id, 0
        if not worker_id:
            return
        connection = current.connection if current is not None and current.alive else None
        if current is not None:
            current.alive = False
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                if connection is None:  # a row that stays behind would look like a death
                    connection = await session.connect(self._dsn(), name="claim")
                await connection.fetch(self._sql["deregister"], worker_id)
                await connection.close()
        except Exception as exc:
            log.debug("claims.not_deregistered", worker=worker_id, error=str(exc))
            if connection is not None:
                connection.terminate()

    @property
    def _own_channel(self) -> str:
        return f"outboxd_worker_{self.worker_id}"

    def _current(self) -> ClaimSession:
        if self._session is None or not self._session.alive:
            raise errors.StoreUnavailable("the claim session is lost")
        return self._session

    async def _fetch(self, on: ClaimSession, statement: str, *args: Any) -> list[asyncpg.Record]:
        """If it ends in anything but rows, the session ends too: never guess what a statement has locked."""
        self.round_trips += 1
        try:
            async with on.turnstile:
                rows: list[asyncpg.Record] = await on.connection.fetch(
                    self._sql[statement], *args, timeout=STATEMENT_TIMEOUT_S + 2
                )
        except BaseException as exc:
            self._end(on)
            if isinstance(exc, Exception):
                raise session.translate(exc, f"{statement} on the claim session") from exc
            raise
        on.answered_at = time.monotonic()
        return rows

    def _end(self, ended: ClaimSession) -> None:
        if ended.alive:
            ended.alive = False
            ended.connection.terminate()
            self._lost.set()

    async def _watch(self) -> None:
        """Look after an open session until it is lost."""
        current = self._current()
        checked_at = time.monotonic()
        while current.alive:
            with anyio.CancelScope(shield=True):  # a statement that is cut off would cost the session
                await self._look_for_deaths(current)
                await self._look_at_others(current)
                if time.monotonic() - checked_at > LISTEN_CHECK_INTERVAL_S:
                    await self._check_listener(current)
                    checked_at = time.monotonic()
            try:
                async with asyncio.timeout(PING_INTERVAL_S):
                    await self._lost.wait()
            except TimeoutError:
                continue
        raise errors.StoreUnavailable("the claim session is lost")

    async def _check_listener(self, current: ClaimSession) -> None:
        self._heard.clear()
        await self._fetch(current, "listen_check", self._own_channel)
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT_S):
                await self._heard.wait()
        except TimeoutError:
            self._end(current)
            raise errors.StoreUnavailable("the claim session does not hear its own notifications") from None

    def _on_notification(self, _connection: Any, _pid: int, channel: str, _payload: object) -> None:
        if channel == self._own_channel:
            self._heard.set()
        elif channel in self._wakes:
            self._wakes[channel]()

    async def _refuse_standby(self, connection: asyncpg.Connection) -> None:
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise errors.StoreUnavailable("the database is a standby (in recovery): nothing can be delivered from it")

    async def _register(self, opened: ClaimSession) -> None:
        """Replace the own row of an earlier session, if any, and refuse to work beside unlike daemons."""
        if self.worker_id:
            await self._fetch(opened, "deregister", self.worker_id)
        await self._look_for_deaths(opened)
        await self._fetch(opened, "purge_dead", DEAD_KEPT_FOR)
        rows = await self._fetch(
            opened,
            "register",
            WORKER_CLASS,
            os.getpid(),
            socket.gethostname(),
            __version__,
            self._silo_mode,
            msgspec.json.encode(self._outboxes).decode(),
        )
        self.worker_id = rows[0][0]
        for row in await self._look_at_others(opened):
            theirs = msgspec.json.decode(row[3])
            if not _agree(self._outboxes, theirs):
                await self._fetch(opened, "deregister", self.worker_id)
                who = "`outboxd drain`" if any("one_shard" in outbox for outbox in theirs) else "daemon"
                raise errors.FleetError(
                    f"the {who} with pid {row[1]} on {row[2]} has other outboxes or sharding columns",
                    hint=f"Replicas must share one configuration; stop that {who} first, or use another schema.",
                )

    async def _look_at_others(self, current: ClaimSession) -> list[asyncpg.Record]:
        rows = await self._fetch(current, "living", self.worker_id)
        own = self._silo_mode  # those of the other silo drain other outboxes
        alike = [row for row in rows if row[4] == own or "monolith" in (row[4], own)]
        self._others = [row[0] for row in alike if "one_shard" not in row[3]]
        return rows

    async def _look_for_deaths(self, current: ClaimSession) -> None:
        for row in await self._fetch(current, "mark_dead", WORKER_CLASS):
            log.warning("worker.died", worker=row[0], pid=row[1], host=row[2])
        died = bool((await self._fetch(current, "recently_died", DEATH_COUNTS_FOR))[0][0])
        if died != self._live.prepared:
            self._live.prepared = died
            log.info("drain.prepared_mode", on=died)


def _settings() -> dict[str, str]:
    timeout = str(int(STATEMENT_TIMEOUT_S * 1000))
    return {**session.HOT_SETTINGS, **session.PLANNED_ONCE, "statement_timeout": timeout, "lock_timeout": timeout}


def _agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    def shape(outboxes: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        return {(o["name"], o["table"], *o["sharding_columns"]) for o in outboxes}

    return shape(ours) == shape(theirs)
