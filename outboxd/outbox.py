"""
One outbox table: its statements, rendered once for its columns, on sessions of its own.

Four sessions, each used by one task: *find*, *read*, *settle* (deletes) and *fail* (other endings, if there are any).
None is shared with another outbox, so a locked or missing table stops nothing but itself (I14).
"""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import contract, sql
from outboxd.model import ALWAYS, DIED_ERROR, Candidate, Instant, KnownFailure, NewMessages, ShardKey
from outboxd.session import PLANNED_ONCE, Session

if TYPE_CHECKING:
    import asyncpg

    from outboxd.inspection import Table
    from outboxd.options import Switches
    from outboxd.session import Fetch

_STATEMENTS = sql.load("drain.sql")

FIND_PAIRS = 500
"""Pairs of (time, shard) that one find returns: 3 ms of work for the database."""
NEW_MESSAGES = 5_000
"""Messages that one look at what is new reads: 2 ms for the database, 7 where each has a shard of its own."""

ERROR_CHARACTERS_MAX = 4_000

ShardObject = tuple[ShardKey, int, Any]
"""An object within its shard: shard, category, object identifier."""


@dataclass(frozen=True, slots=True)
class Failure:
    """
    A delivery that has failed, and what is to become of it.

    Attributes:
        shard: Its shard.
        category: Its category.
        object_identifier: Its object.
        message_id: Its lowest message.
        scheduled_for: How that was scheduled when it was read (or moved, in prepared mode).
        delay: Until the next try.
        error: Its words.
        only_ids: Move only these messages; None: the shard's first ones.
        is_counted: It was counted before the delivery (prepared mode): only its words and its rows are new.
    """

    shard: ShardKey
    category: int
    object_identifier: Any
    message_id: int
    scheduled_for: Instant
    delay: dt.timedelta
    error: str
    only_ids: list[int] | None
    is_counted: bool


class Outbox:
    """
    Statements of one outbox table.

    Args:
        name: The outbox's name in the configuration.
        table: Its name, columns and types as found in the database.
        schema: The schema of outboxd's own tables.
        dsn: Tells where the sessions connect to, asked at every reconnect.
        session: The one to use for everything, for who does one thing after another.

    Every method may raise StoreUnavailable, SchemaError or StatementFailed.
    """

    def __init__(
        self, name: str, table: Table, *, schema: str, dsn: Callable[[], str], session: Session | None = None
    ) -> None:
        self.name = name
        self.table = table
        columns = list(table.shard_columns)
        self._scope, self._identifier = columns.index("shard_scope"), columns.index("shard_identifier")
        self._region = columns.index("region_name") if "region_name" in columns else None
        self._as_text = [type_ in sql.TYPES_AS_TEXT for type_ in table.shard_columns.values()]
        renderer = renderer_of(table, schema)
        self._sql = {key: renderer.render(statement) for key, statement in _STATEMENTS.items()}
        own = functools.partial(Session, dsn, statement_timeout_s=60, settings=PLANNED_ONCE)
        self.finding = session or own(name=f"find {name}", lock_timeout_s=2)
        self.reading = session or own(name=f"read {name}", lock_timeout_s=2)
        self.settling = session or own(name=f"settle {name}", lock_timeout_s=1)
        self.failing = session or own(name=f"fail {name}", lock_timeout_s=1)

    def scope_of(self, shard: ShardKey) -> int:
        """Tell the shard's scope number."""
        return int(shard[self._scope])

    def identifier_of(self, shard: ShardKey) -> Any:
        """Tell the shard's identifier, in the column's own type."""
        return shard[self._identifier]

    def region_of(self, shard: ShardKey) -> str | None:
        """Tell the shard's region; None where the outbox has none."""
        return None if self._region is None else shard[self._region]

    def is_off(self, shard: ShardKey, switches: Switches) -> bool:
        """Whether a kill switch covers the shard or the whole outbox (I11)."""
        if self.name in switches.outboxes:
            return True
        return switches.shard_off(self.scope_of(shard), self.identifier_of(shard), self.region_of(shard))

    def identity_of(self, shard: ShardKey) -> tuple[int, Any, str | None]:
        """Tell the shard's scope number, identifier and region."""
        region = self._region
        return shard[self._scope], shard[self._identifier], None if region is None else shard[region]

    async def find_scheduled_shards(
        self, after: tuple[Instant, ShardKey] | None, limit: int = FIND_PAIRS
    ) -> tuple[list[Candidate], tuple[Instant, ShardKey] | None]:
        """
        Find due shards behind *after*, in the order of the index.

        Returns:
            The shards, each once, and where to go on; None instead when the end was reached.
        """
        due_at, shard = after or (ALWAYS, self._lowest_shard())
        rows = await self._fetch(self.finding, "find_scheduled_shards", due_at, limit, *shard)
        found: dict[ShardKey, Candidate] = {}
        for row in rows:
            key = tuple(row)[2:]
            found.setdefault(key, Candidate(key, row[1], row[0]))
        if len(rows) < limit:
            return list(found.values()), None
        return list(found.values()), (rows[-1][0], tuple(rows[-1])[2:])

    async def find_shard(self, shard: ShardKey, limit: int) -> list[Candidate]:
        """Find this one shard, if any of its first *limit* messages is due."""
        rows = await self._fetch(self.finding, "find_shard", limit, *shard)
        return [Candidate(shard, row[1], row[0]) for row in rows]

    async def find_new(self, id_seen: int, missing: Iterable[int] = (), limit: int = NEW_MESSAGES) -> NewMessages:
        """Look at messages with an id above *id_seen*, at most *limit* of them, and at those that were *missing*."""
        rows = await self._fetch(self.finding, "find_new", id_seen, limit, sql.array_text(missing))
        snapshot = rows[0]
        found = [row for row in rows if row[0] is not None]
        new = [row for row in found if row[1] > id_seen]
        due = {tuple(row)[5:]: row for row in found if row[3] is not None}
        return NewMessages(
            candidates=[Candidate(shard, row[0], row[3], is_new=True) for shard, row in due.items()],
            id_max=max((row[1] for row in new), default=id_seen),
            more=sum(row[2] for row in new) >= limit,
            due_in_s=min((row[4] for row in found if row[4] is not None), default=None),
            late_ids=[row[1] for row in found if row[1] <= id_seen],
            gaps=[(row[1], row[2]) for row in rows[1 + len(found) :]],
            xmin=snapshot[2],
            xid_next=snapshot[1],
        )

    async def highest_id(self) -> int:
        """Tell the highest id in the table; 0 when it is empty."""
        return int((await self._fetch(self.finding, "highest_id"))[0][0])

    async def next_due_in_s(self) -> float | None:
        """Tell in how many seconds the next message becomes due; None when none is scheduled ahead."""
        rows = await self._fetch(self.finding, "next_due")
        return rows[0][0] if rows else None

    async def count_due_shards(self, limit: int) -> int:
        """Count shards with a due message, looking at no more than *limit* (time, shard) pairs."""
        shards: set[ShardKey] = set()
        after = None
        for _ in range(-(-limit // FIND_PAIRS)):
            found, after = await self.find_scheduled_shards(after, min(limit, FIND_PAIRS))
            shards.update(candidate.shard for candidate in found)
            if after is None:
                break
        return len(shards)

    async def read_failures(self, shards: Sequence[ShardKey]) -> list[list[KnownFailure]]:
        """Read the known failures of each shard, in the order given."""
        rows = await self._fetch(self.reading, "read_failures", self.name, *self._arrays(shards))
        known: list[list[KnownFailure]] = [[] for _ in shards]
        for row in rows:
            known[row[0] - 1].append(KnownFailure(*tuple(row)[1:]))
        return known

    async def read_messages(
        self,
        candidates: Sequence[Candidate],
        *,
        rows_per_shard: int,
        rows_max: int,
        categories_off: Sequence[int],
        failing_apart: bool,
        due_checked: bool = True,
    ) -> list[asyncpg.Record]:
        """
        Read the messages of claimed shards.

        Args:
            candidates: The shards.
            rows_per_shard: Messages of one shard at most.
            rows_max: Messages at most.
            categories_off: Their messages are left out.
            failing_apart: Of a shard that has a known failure, return one record without id instead.
            due_checked: Leave out a shard that is no longer due as the find saw it. Else the caller looks himself.

        Returns:
            Records as the statement's header says, by shard number (from 1) and id. With *rows_max* of them the
            last shard may be cut short and those behind it were not reached.
        """
        return await self._fetch(
            self.reading,
            "read_messages",
            rows_per_shard,
            rows_max,
            categories_off,
            failing_apart,
            self.name,
            [c.due_at for c in candidates] if due_checked else [],
            # Shorter arrays are filled up with nulls; hardly ever does a candidate have one.
            [c.after_id for c in candidates] if any(c.after_id is not None for c in candidates) else [],
            not due_checked,
            *self._arrays([c.shard for c in candidates]),
        )

    async def read_scheduled_from(self, message_ids: Sequence[int]) -> dict[int, Instant]:
        """Tell when the attempts of these messages were scheduled; those that are gone are left out."""
        if not message_ids:
            return {}
        return dict(map(tuple, await self._fetch(self.failing, "read_scheduled_from", sql.array_text(message_ids))))

    async def read_payload(self, message_id: int) -> list[asyncpg.Record]:
        """Read one large payload; no row when the message is gone."""
        return await self._fetch(self.reading, "read_payload", message_id)

    async def delete_messages(self, ids: list[int], delivered: Sequence[ShardObject] = ()) -> None:
        """
        Delete exactly these messages (I2); in the same transaction forget what failed before.

        Args:
            ids: Messages that were read before their receiver ran.
            delivered: Objects among them that had a known failure.
        """
        doing, statement, text = (
            f"delete_messages on outbox {self.name}",
            self._sql["delete_messages"],
            sql.array_text(ids),
        )
        gone = 0
        if delivered:
            async with self.settling.transaction(doing) as fetch:
                await fetch(statement, text)
                await self._clear_failures(fetch, delivered)
        else:
            gone = await self.settling.execute(doing, statement, text)
        if gone < len(ids):  # a row that was updated meanwhile has moved away from its address, and would come again
            await self.settling.execute(doing, statement, text)

    async def undo_prepared(
        self, ids: list[int], subject: ShardObject, known: KnownFailure | None, *, moved_to: Instant
    ) -> None:
        """Take back, in prepared mode, the failure that was counted ahead of a delivery which was not made."""
        attempts, error = (0, "") if known is None else (known.attempts, known.last_error)
        key = self._failure_key(*subject)
        await self._fetch(self.failing, "undo_prepared", self.name, ids[0], ids, moved_to, attempts, error, *key)

    async def prepare_next_from_shards(
        self, failures: Sequence[Failure], *, rows_max: int, categories_off: Sequence[int]
    ) -> list[tuple[int | None, Instant]]:
        """
        Move what remains of each failure's shard (or only one object's messages) to its next try, and count it.

        All in one transaction: where many shards fail at once, each commit of its own would keep the deletes waiting.

        Returns:
            Attempts so far and when the next one is due, for each; attempts is None when somebody else moved it.
        """
        each = [
            (
                self.name,
                failure.message_id,
                failure.scheduled_for,
                failure.delay,
                failure.category,
                str(failure.object_identifier),
                _storable(failure.error),
                rows_max,
                failure.only_ids,
                categories_off,
                failure.is_counted,
                *failure.shard,
            )
            for failure in failures
        ]
        if not each:
            return []
        doing, statement = f"prepare_next_from_shard on outbox {self.name}", self._sql["prepare_next_from_shard"]
        return [(row[0], row[2]) for row in await self.failing.fetch_many(doing, statement, each)]

    async def bury(self, ids: list[int], subject: ShardObject, *, attempts: int, reason: str, by: str) -> int:
        """
        Move messages to the dead letters; in the same transaction forget their failure.

        Returns:
            How many were buried; 0 (and nothing else is done) when somebody else has taken them.
        """
        async with self.failing.transaction(f"bury on outbox {self.name}") as fetch:
            rows = await fetch(self._sql["bury"], self.name, ids, attempts, _storable(reason), by)
            if rows[0][0]:
                await self._clear_failures(fetch, [subject])
        return int(rows[0][0])

    async def close(self) -> None:
        """Close the sessions."""
        for session in (self.finding, self.reading, self.settling, self.failing):
            await session.close()

    async def _fetch(self, session: Session, statement: str, *args: Any) -> list[asyncpg.Record]:
        return await session.fetch(f"{statement} on outbox {self.name}", self._sql[statement], *args)

    async def _clear_failures(self, fetch: Fetch, objects: Sequence[ShardObject]) -> None:
        """Forget failures; once more where fewer are gone, because one that was updated meanwhile has moved away."""
        objects = list(dict.fromkeys(objects))
        arguments = (self._sql["clear_failures"], self.name, *self._failure_keys(objects))
        if len(await fetch(*arguments)) < len(objects):
            await fetch(*arguments)

    def _arrays(self, shards: Sequence[ShardKey]) -> list[str | list[Any]]:
        columns = zip(self._as_text, zip(*shards, strict=True), strict=True)
        return [sql.array_text(values) if as_text else list(values) for as_text, values in columns]

    def _failure_key(self, shard: ShardKey, category: int, object_identifier: Any) -> tuple[str, int, str, int, str]:
        region = self.region_of(shard) or ""
        return region, self.scope_of(shard), str(self.identifier_of(shard)), category, str(object_identifier)

    def _failure_keys(self, objects: Sequence[ShardObject]) -> list[list[Any]]:
        return [list(column) for column in zip(*(self._failure_key(*one) for one in objects), strict=True)]

    def _lowest_shard(self) -> ShardKey:
        return tuple(_LOWEST.get(type_, "") for type_ in self.table.shard_columns.values())


_LOWEST: dict[str, Any] = {"smallint": -(2**15), "integer": -(2**31), "bigint": -(2**63), "uuid": uuid.UUID(int=0)}


def _storable(text: str) -> str:
    """Cut an error's text to size; PostgreSQL takes no NUL and no lone surrogate."""
    return text[:ERROR_CHARACTERS_MAX].replace("\0", "").encode(errors="replace").decode()


def renderer_of(table: Table, schema: str, **names: str) -> sql.Renderer:
    """Return what fills the placeholders of statements about this outbox table; *names* are further ones."""
    columns = list(table.shard_columns)
    region = "region_name" in columns
    positions = {column: number for number, column in enumerate(columns)}

    def value(column: str, first: str) -> str:
        return f"${int(first) + positions[column]}::{table.shard_columns[column]}"

    def is_shard(argument: str) -> str:
        # `<alias>_<alias>` or `<alias>_<number of the first parameter>`. See the head of drain.sql for the ANY.
        alias, other = argument.split("_")
        first, *rest = columns
        wanted = {c: value(c, other) if other.isdigit() else f"{other}.{sql.quote(c)}" for c in columns}
        conditions = [f"{alias}.{sql.quote(first)} = ANY (ARRAY[{wanted[first]}])"]
        return " AND ".join(conditions + [f"{alias}.{sql.quote(c)} = {wanted[c]}" for c in rest])

    return sql.Renderer(
        {
            "table": table.name,
            "regclass": f"{sql.literal(table.name)}::regclass",
            "schema": sql.quote(schema),
            "died": sql.literal(DIED_ERROR),
            "lock_key": lambda alias: contract.lock_key(table.name, columns, alias),
            "is_shard": is_shard,
            "no_shard": ", ".join(f"NULL::{type_}" for type_ in table.shard_columns.values()),
            "shard_descending": lambda alias: ", ".join(f"{alias}.{sql.quote(column)} DESC" for column in columns),
            "region_text": lambda alias: f"{alias}.region_name::text" if region else "''",
            "region_or_null": lambda alias: f"{alias}.region_name" if region else "NULL",
            "region_value_text": lambda first: f"{value('region_name', first)}::text" if region else "''",
            "scope_value": lambda first: value("shard_scope", first),
            "identifier_value": lambda first: value("shard_identifier", first),
            "headers": lambda alias: f"{alias}.headers" if table.has_headers else "NULL::jsonb",
            **names,
        },
        table.shard_columns,
    )
