"""
Dead letters: what was buried. Listing, putting back into their outbox, deleting.

    in the outbox -> dead letter       [burial, by the drain or by hand]
    dead letter   -> in the outbox     [retry]
    dead letter   -> gone              [purge, or after `keep_days`]

Each arrow is one statement over at most `BATCH_ROWS` rows, so that whoever is interrupted has moved a row or has not.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import acts, errors, inspection, query, sql
from outboxd.option_keys import canonical, canonical_sql
from outboxd.query import Query

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table
    from outboxd.query import Value

_STATEMENTS = sql.load("dead_letters.sql")

BATCH_ROWS = 1_000
BATCH_BYTES = 32 * 1024 * 1024
"""Stored size of the payloads that one statement puts back; it takes one more where that alone is larger."""
COUNT_MAX = 100_000
ID_MAX = 2**63 - 1

_ABOUT_LIST = """\
Dead letters: messages that were taken out of their outbox for good, the newest first.
message_id is the id that a message had there. outboxd dead-letters show ID has payload and headers."""
_ABOUT_SHOW = "One dead letter, whole: read it with \\x on."


@dataclass(frozen=True, kw_only=True)
class Selection:
    """
    Which dead letters are meant: those for which all of this is so; every one when nothing is given.

    `ids` are those of the dead letters, not of their messages. Ages are since the burial.
    """

    ids: tuple[int, ...] = ()
    outbox: str | None = None
    region: str | None = None
    scope: int | None = None
    shard: str | None = None
    category: int | None = None
    older_than: dt.timedelta | None = None
    newer_than: dt.timedelta | None = None

    def is_everything(self) -> bool:
        """Whether it leaves out nothing."""
        return self == Selection()

    def render(self, statement: str) -> tuple[str, dict[str, Value]]:
        """Fill `{conditions}`, and return the values that they need."""
        values: dict[str, Value] = {}
        fragments = []
        for name, value in _conditions(self):
            fragments.append(_body(name))
            values[name.removeprefix("with_")] = value
        return statement.replace("{conditions}", " AND ".join(fragments) or "true"), values


def _conditions(selection: Selection) -> list[tuple[str, Value]]:
    def seconds(age: dt.timedelta | None) -> int | None:
        return None if age is None else int(age.total_seconds())

    given: list[tuple[str, Value]] = [
        ("with_ids", list(selection.ids) or None),
        ("with_outbox", selection.outbox),
        ("with_region", selection.region),
        ("with_scope", selection.scope),
        ("with_shard", None if selection.shard is None else canonical(selection.shard)),
        ("with_category", selection.category),
        ("older_than", seconds(selection.older_than)),
        ("newer_than", seconds(selection.newer_than)),
    ]
    return [(name, value) for name, value in given if value is not None]


@dataclass(frozen=True)
class Counted:
    """
    How many dead letters there are.

    Attributes:
        by_outbox: By the name of their outbox, which may not be configured any more; each up to the limit.
        newest_id: The highest id of any: what comes later is left out of what was decided on these counts.
    """

    by_outbox: dict[str, int]
    newest_id: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_outbox.values())


def list_query(config: Config, selection: Selection, limit: int) -> Query:
    """Return the question for a list without payloads, newest first."""
    return _query(config, "list", selection, {"limit": limit}, about=_ABOUT_LIST)


def show_query(config: Config, letter: int) -> Query:
    """Return the question for one dead letter."""
    asked = _query(config, "show", Selection(ids=(letter,)), {}, about=_ABOUT_SHOW)
    return dataclasses.replace(asked, unparsed=("payload", "headers"))


async def count(
    connection: asyncpg.Connection, config: Config, selection: Selection = Selection(), limit: int = COUNT_MAX
) -> Counted:
    """
    Count dead letters by outbox, each up to *limit*; without a selection it reads index entries only.

    Raises:
        StatementFailed: With conditions that few meet, it may take too long.
        SchemaError, StoreUnavailable: As the database has it.
    """
    rows = await query.fetch(connection, _query(config, "count", selection, {"limit": limit}), "counting dead letters")
    return Counted({row["outbox"]: row["letters"] for row in rows}, max((row["newest_id"] for row in rows), default=0))


async def require_ids(connection: asyncpg.Connection, config: Config, ids: tuple[int, ...]) -> None:
    """
    Refuse ids of which there is no dead letter.

    Raises:
        ActRefused: Names them.
    """
    asked = _query(config, "list", Selection(ids=ids), {"limit": len(ids)})
    found = {row["id"] for row in await query.fetch(connection, asked, "looking for dead letters")}
    missing = sorted(set(ids) - found)
    if missing:
        raise errors.ActRefused(
            f"there is no dead letter {', '.join(map(str, missing))}; nothing was changed",
            hint="`outboxd dead-letters list` shows their ids. It may be back in its outbox, or be purged.",
        )


class Tally:
    """What has been moved so far; right also when the work is interrupted, because each batch is committed."""

    def __init__(self) -> None:
        self.looked_at = 0
        self.moved = 0

    @property
    def stayed(self) -> int:
        """Those that could not be moved."""
        return self.looked_at - self.moved


async def retry(
    connection: asyncpg.Connection,
    config: Config,
    outbox: OutboxConfig,
    selection: Selection,
    tally: Tally,
    *,
    until: int = ID_MAX,
) -> None:
    """
    Put dead letters of one outbox back, oldest first: with the id and `date_added` that they had, due now.

    One whose id is taken in the outbox stays, and one that has headers where the table has no column for them.

    Args:
        connection: Of an operator.
        config: Names and schema.
        outbox: Theirs.
        selection: Which of its dead letters.
        tally: Where to count.
        until: Leave later ones alone: what is put back now may be buried again before this has ended.

    Raises:
        StatementFailed: The table does not take a batch, which stays: a key that is not of its type, a column without
            default, a lock.
        SchemaError, StoreUnavailable: As the database has it.
    """
    doing = f"putting dead letters back into outbox {outbox.name}"
    with inspection.translated(doing):
        table = await inspection.inspect_table(connection, outbox)
    extra: dict[str, Value] = {"of": outbox.name, "until": until, "rows_max": BATCH_ROWS, "bytes_max": BATCH_BYTES}
    asked = _query(config, "revive", selection, extra, names=_table_names(table), shard_columns=table.shard_columns)
    await _in_batches(connection, asked, tally, doing)


async def purge(
    connection: asyncpg.Connection, config: Config, selection: Selection, tally: Tally, *, until: int = ID_MAX
) -> None:
    """
    Delete dead letters for good, oldest first.

    Args:
        connection: Of an operator.
        config: Names and schema.
        selection: Which.
        tally: Where to count.
        until: Leave later ones alone.

    Raises:
        OutboxdError: As the database has it.
    """
    asked = _query(config, "purge", selection, {"until": until, "rows_max": BATCH_ROWS})
    await _in_batches(connection, asked, tally, "purging dead letters")


async def purge_expired(connection: asyncpg.Connection, config: Config, kept_for: dt.timedelta) -> int:
    """
    Delete one batch of dead letters that are older than that, and tell how many it was: 0 at the end.

    Raises:
        OutboxdError: As the database has it.
    """
    statement = sql.Renderer({"schema": sql.quote(config.schema)}, {}).render(_body("purge_expired"))
    async with acts.transaction(connection, "purging dead letters"):
        purged: int = await connection.fetchval(statement, kept_for, BATCH_ROWS)
    return purged


async def _in_batches(connection: asyncpg.Connection, asked: Query, tally: Tally, doing: str) -> None:
    after = 0
    while True:
        text, arguments = dataclasses.replace(asked, values={**asked.values, "after": after}).bound()
        async with acts.transaction(connection, doing):
            [(looked_at, after, moved)] = await connection.fetch(text, *arguments)
        if not looked_at:
            return
        tally.looked_at += looked_at
        tally.moved += moved


def _query(
    config: Config,
    statement: str,
    selection: Selection,
    values: dict[str, Value],
    *,
    about: str = "",
    names: dict[str, Any] | None = None,
    shard_columns: dict[str, str] | None = None,
) -> Query:
    text, given = selection.render(_body(statement))
    return Query(
        about=about,
        statement=text,
        values={**given, **values},
        names={**query.names_without_outbox(config), "canonical": canonical_sql, **(names or {})},
        shard_columns=shard_columns or {},
        numbers=query.numbers_of(config),
    )


def _body(name: str) -> str:
    """Return a statement or fragment without its header, its columns and the jump over outboxes filled in."""
    text = sql.without_header(_STATEMENTS[name])
    for part in ("columns", "outboxes"):
        if f"{{{part}}}" in text:
            text = text.replace(f"{{{part}}}", _body(part))
    return text


def _table_names(table: Table) -> dict[str, str | Callable[[str], str]]:
    """Return what fills the placeholders of `revive`: a dead letter has texts where the table has its own types."""

    def typed_shard(alias: str) -> str:
        return ", ".join(f"{alias}.{sql.quote(column)}::{type_}" for column, type_ in table.shard_columns.items())

    return {
        "table": table.name,
        "object_type": table.object_type,
        "typed_shard": typed_shard,
        "headers_column": ", headers" if table.has_headers else "",
        "headers_of": lambda alias: f", {alias}.headers" if table.has_headers else "",
        "fits": lambda alias: "true" if table.has_headers else f"{alias}.headers IS NULL",
    }
