"""`outboxd bury`: move messages to the dead letters by hand, under the lock of their shard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import acts, contract, errors, inspection, sql
from outboxd.claims import SHARD_CLASS
from outboxd.outbox import renderer_of

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey

_STATEMENTS = sql.load("burial.sql")
_OF_THE_DRAIN = sql.load("drain.sql")

IDS_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Burial:
    """
    One message that was buried.

    Attributes:
        letter: The id of its dead letter.
        unblocks: Whether its object had failed, so that its shard was made due.
    """

    message: int
    letter: int
    shard: ShardKey
    category: int
    object_identifier: str
    unblocks: bool


class _TakenError(Exception):
    """Somebody is at work on a shard, or has just taken a message away: worth another try."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self.key = key


async def bury(
    connection: asyncpg.Connection,
    config: Config,
    outbox: OutboxConfig,
    ids: Sequence[int],
    *,
    reason: str,
    by: str,
    region: str | None = None,
    patience_s: float = acts.PATIENCE_S,
) -> list[Burial]:
    """
    Bury messages, all or none, in one transaction: never beside their delivery (I3).

    An object whose failure began with one of them has not failed any more; the shard of an object that had failed is
    made due, because what blocked it is gone.

    Args:
        connection: Of an operator.
        config: Schema and bounds.
        outbox: Where the messages are.
        ids: At most `IDS_MAX`.
        reason: Why; kept with them.
        by: Who; kept with them.
        region: Refuse messages of another one.
        patience_s: How long to wait for a shard that is being drained.

    Raises:
        ActRefused: A message is not there, or its shard is being drained for longer than that.
        SchemaError, StoreUnavailable, StatementFailed: As the database has it.
    """
    if len(ids) > IDS_MAX:
        raise errors.UsageError(f"{len(ids)} ids: at most {IDS_MAX} can be buried at once")
    doing = f"burying in outbox {outbox.name}"
    with inspection.translated(doing):
        table = await inspection.inspect_table(connection, outbox)
    work = _Work(connection, config, outbox, table)
    gives_up_at = time.monotonic() + patience_s
    while True:
        try:
            async with acts.transaction(connection, doing):
                return await work.bury(sorted(set(ids)), reason, by, region)
        except _TakenError as taken:
            if time.monotonic() >= gives_up_at:
                holder = await acts.find_holder(connection, config, taken.key)
                raise errors.ActRefused(
                    f"the shard is being drained by {holder or 'somebody else'}; nothing was buried",
                    hint="Try again when the delivery under way is over, or pause the shard and then try again.",
                ) from None
        await asyncio.sleep(acts.TRY_EVERY_S)


class _Work:
    """The steps of one transaction."""

    def __init__(self, connection: asyncpg.Connection, config: Config, outbox: OutboxConfig, table: Table) -> None:
        self._connection = connection
        self._config = config
        self._outbox = outbox
        self._table = table
        renderer = renderer_of(table, config.schema)
        self._sql = {name: renderer.render(text) for name, text in {**_OF_THE_DRAIN, **_STATEMENTS}.items()}

    async def bury(self, ids: list[int], reason: str, by: str, region: str | None) -> list[Burial]:
        seen = await self._look(ids, region)
        await self._lock(sorted({row["lock_key"] for row in seen}))
        rows = await self._look(ids, region)  # a delivery may have ended before the lock was won
        await self._move(rows, reason, by)
        await self._forget([row for row in rows if row["message_id"] == row["id"]])
        failed = {self._shard(row): None for row in rows if row["attempts"] is not None}
        for shard in failed:
            await acts.retry_shard(self._connection, self._config, acts.Stuck(self._outbox, self._table, shard))
        letters = {row[0]: row[1] for row in await self._fetch("letters_of", self._outbox.name, ids)}
        return [
            Burial(
                message=row["id"],
                letter=letters[row["id"]],
                shard=self._shard(row),
                category=row["category"],
                object_identifier=row["object_identifier"],
                unblocks=row["attempts"] is not None,
            )
            for row in rows
        ]

    async def _look(self, ids: list[int], region: str | None) -> list[asyncpg.Record]:
        rows = await self._fetch("messages_to_bury", self._outbox.name, ids)
        missing = set(ids) - {row["id"] for row in rows}
        if missing:
            which = ", ".join(map(str, sorted(missing)))
            raise errors.ActRefused(
                f"outbox {self._outbox.name} has no message {which}; nothing was buried",
                hint="It may have been delivered, or be buried already: `outboxd dead-letters list`.",
            )
        for row in rows:
            if contract.has_region(self._outbox) and row["region_name"] != region:
                raise errors.UsageError(f"message {row['id']} is of region {row['region_name']}, not of {region}")
        return rows

    async def _lock(self, keys: list[int]) -> None:
        held = await self._fetch("try_lock", SHARD_CLASS, keys)
        if held:
            raise _TakenError(held[0][0])

    async def _move(self, rows: list[asyncpg.Record], reason: str, by: str) -> None:
        """Bury; each message bears the attempts of its object, so those that differ take a statement each."""
        by_attempts: dict[int, list[asyncpg.Record]] = {}
        for row in rows:
            by_attempts.setdefault(row["attempts"] or 0, []).append(row)
        for attempts, alike in by_attempts.items():
            ids = [row["id"] for row in alike]
            buried = await self._fetch("bury", self._outbox.name, ids, attempts, reason, by)
            if buried[0][0] != len(ids):  # somebody deletes without the lock
                raise _TakenError(alike[0]["lock_key"])

    async def _forget(self, rows: list[asyncpg.Record]) -> None:
        has_region = contract.has_region(self._outbox)
        keys = [
            (
                row["region_name"] if has_region else "",
                row["shard_scope"],
                str(row["shard_identifier"]),
                row["category"],
                row["object_identifier"],
            )
            for row in rows
        ]
        if keys:
            arrays = [list(column) for column in zip(*keys, strict=True)]
            await self._fetch("clear_failures", self._outbox.name, *arrays)

    def _shard(self, row: asyncpg.Record) -> ShardKey:
        return tuple(row[column] for column in self._table.shard_columns)

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(self._sql[statement], *arguments)
        return rows
