"""One session that a flush works on: its claims, and what it knows of switches and outboxes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd import errors, sql
from outboxd.claims import DEATH_COUNTS_FOR, SHARD_CLASS, Claim
from outboxd.live import Live
from outboxd.options import SwitchBoard
from outboxd.outbox import Outbox, renderer_of
from outboxd.replicas import Sources, source_session
from outboxd.session import PLANNED_ONCE, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey
    from outboxd.registry import Registry

_PRODUCER, _CLAIM = sql.load("producer.sql"), sql.load("claim.sql")

SWITCHES_AGE_S_MAX = 2.0


class Flushed(msgspec.Struct, frozen=True, kw_only=True):
    """
    A shard in which messages were written.

    Attributes:
        config: The outbox.
        table: Its table, as found.
        shard: The shard.
        ids: What was written in it.
        database: Where they were written; None: in the database that flushes work in, as is known.
    """

    config: OutboxConfig
    table: Table
    shard: ShardKey
    ids: list[int]
    database: str | None = None


class Seat:
    """One session, and what is known through it: switches, and statements of the outboxes."""

    def __init__(self, config: Config, registry: Registry, dsn: Callable[[], str]) -> None:
        self.session = Session(
            dsn, name="flush", lock_timeout_s=1, statement_timeout_s=60, settings=PLANNED_ONCE, is_direct=True
        )
        self.lent_until = 0.0
        self._config = config
        self._registry = registry
        self.dsn = dsn
        self._source_session = source_session(dsn, name="source")
        self._board = SwitchBoard(config, dsn, self.session)
        self._prepared = False
        self._looked_at = 0.0
        self._outboxes: dict[tuple[str, int], Outbox] = {}
        self._sources: dict[tuple[str, int], Sources] = {}
        renderer = sql.Renderer({"schema": sql.quote(config.schema)}, {})
        self._sql = {name: renderer.render(_CLAIM[name]) for name in ("claim", "release", "recently_died")}

    async def live(self) -> Live:
        """Return settings and switches for one drain, as they were two seconds ago at most."""
        live = Live(self._config.drain, self._registry)
        if time.monotonic() - self._looked_at > SWITCHES_AGE_S_MAX or not self.session.life:
            await self.look(live)
        live.switches, live.prepared = self._board.now, self._prepared
        return live

    async def look(self, live: Live) -> None:
        """Read what is switched off, and whether a daemon has died lately (I9)."""
        await self._board.refresh()
        rows = await self.session.fetch("looking for deaths", self._sql["recently_died"], DEATH_COUNTS_FOR)
        self._prepared, self._looked_at = bool(rows[0][0]), time.monotonic()
        live.switches, live.prepared = self._board.now, self._prepared

    async def refuse_elsewhere(self, flushed: Flushed) -> None:
        """
        Compare the database that was written in with this one, where what was written would look delivered.

        Raises:
            OutboxContextError: They are two.
        """
        if flushed.database is None:
            return
        rows = await self.session.fetch("asking for the database", _PRODUCER["database"])
        if rows[0]["database"] != flushed.database:
            here, there = (name.rpartition(" ")[0] for name in (rows[0]["database"], flushed.database))
            raise errors.OutboxContextError(
                f"the dsn of the configuration leads to another database ({here}) than was written in ({there})",
                hint="Each database has a configuration of its own, and a daemon.",
            )

    def outbox_of(self, flushed: Flushed) -> Outbox:
        """Return the statements of an outbox, on this session."""
        key = (flushed.config.name, flushed.table.oid)
        if key not in self._outboxes:
            self._outboxes[key] = Outbox(
                flushed.config.name, flushed.table, schema=self._config.schema, dsn=self.dsn, session=self.session
            )
        return self._outboxes[key]

    def sources_of(self, flushed: Flushed) -> Sources:
        """Return what reads the rows that the messages of an outbox are about, on a session of its own."""
        key = (flushed.config.name, flushed.table.oid)
        if key not in self._sources:
            self._sources[key] = Sources(flushed.config.name, flushed.table, self._config.schema, self._source_session)
        return self._sources[key]

    async def close(self) -> None:
        """Close the sessions."""
        await self._source_session.close()
        await self.session.close()

    async def ask(self, flushed: Flushed, name: str, *args: Any) -> list[asyncpg.Record]:
        """Run a statement about the table of an outbox."""
        statement = renderer_of(flushed.table, self._config.schema).render(_PRODUCER[name])
        return await self.session.fetch(f"flushing outbox {flushed.config.name}", statement, *args)

    async def claim(self, shard: ShardKey, key: int) -> Claim | None:
        """Win a shard; None when somebody else drains it."""
        try:
            won = await self._on_lock("claiming a shard to flush", "claim", key)
        except BaseException:
            self.session.terminate()  # never guess what a statement has locked
            raise
        return Claim(shard, key, _Life(self.session)) if won else None

    async def release(self, claim: Claim) -> None:
        """Let a shard go; with the session, if that cannot be said."""
        if not claim.session.alive:
            return
        try:
            await self._on_lock("releasing a shard", "release", claim.lock_key)
        except BaseException:
            self.session.terminate()
            raise

    async def _on_lock(self, doing: str, statement: str, key: int) -> Any:
        rows = await self.session.fetch(doing, self._sql[statement], SHARD_CLASS, sql.array_text([key]))
        return rows[0][0]


class _Life:
    """One life of a session: what its connection had locked is free when it is gone."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._life = session.life

    @property
    def alive(self) -> bool:
        return self._session.life == self._life

    @property
    def answered_at(self) -> float:
        return self._session.answered_at
