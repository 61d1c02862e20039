"""
Model receivers: the rows that messages are about, read for many deliveries at once.

A message says that an object has changed; a class marked with `@replicates` is given what the object is now, or told
that it is gone. The rows are read after the messages, so they are at least as new; whatever changes them later writes
a message of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outboxd import errors, inspection, sql
from outboxd.registry import rows_now
from outboxd.session import Session
from outboxd.source import expression
from outboxd.turn import CATEGORY, OBJECT

if TYPE_CHECKING:
    from outboxd.config import ModelConfig
    from outboxd.inspection import Table
    from outboxd.registry import Category
    from outboxd.turn import Group, Turn

AHEAD = 100
"""Objects whose rows are read by one statement."""
_STATEMENTS = sql.load("replicas.sql")
_LARGE = object()
Row = Mapping[str, Any]


class Sources:
    """
    Reads source tables for the model receivers of one outbox.

    Args:
        table: The outbox's, for the type of its object identifiers.
        schema: Of outboxd's own tables.
        dsn: Tells where to connect.
    """

    def __init__(self, table: Table, schema: str, dsn: Callable[[], str]) -> None:
        self._type = table.object_type
        self._schema = schema
        self._session = Session(dsn, name="source", lock_timeout_s=2, statement_timeout_s=30, has_instants=False)
        self._statements: dict[str, dict[str, str]] = {}

    async def prepare(self, turn: Turn, group: Group, category: Category) -> None:
        """
        Have the rows that a delivery is about at hand, for the receivers that this task calls next.

        Raises:
            SchemaError: The source table is not there, or its object identifier is not unique.
            StoreUnavailable, StatementFailed: It cannot be read; that is no failure of a receiver.
        """
        found = {}
        for model in category.sources:
            found[model.table] = await self._row(model, turn, group)
        rows_now.set(found)

    async def _row(self, model: ModelConfig, turn: Turn, group: Group) -> Row | None:
        identifier = group.newest[OBJECT]
        known = turn.rows.setdefault(model.table, {})
        if identifier not in known:
            known.clear()
            known.update(await self._read(model, _ahead(turn, group)))
        row = known.pop(identifier)
        return (await self._fetch(model, "one", [identifier])).get(identifier) if row is _LARGE else row

    async def _read(self, model: ModelConfig, identifiers: Sequence[Any]) -> dict[Any, Any]:
        """Read rows; None where there is none, a mark where one is too large to be kept beside others (I10)."""
        rows = await self._fetch(model, "many", list(identifiers))
        gone = [str(identifier) for identifier in identifiers if identifier not in rows]
        if gone and model.tombstones:
            text = self._statements[model.table]["record_gone"]
            await self._session.fetch(f"recording deletions of {model.table}", text, model.table, gone)
        return {identifier: rows.get(identifier) for identifier in identifiers}

    async def _fetch(self, model: ModelConfig, statement: str, identifiers: list[Any]) -> dict[Any, Any]:
        if model.table not in self._statements:
            self._statements[model.table] = await self._prepared(model)
        text = self._statements[model.table][statement]
        records = await self._session.fetch(f"reading rows of {model.table}", text, identifiers)
        return {
            record["outboxd_object"]: _LARGE if record["outboxd_is_large"] else _row_of(record) for record in records
        }

    async def _prepared(self, model: ModelConfig) -> dict[str, str]:
        async with self._session.transaction(f"looking at {model.table}") as fetch:
            relation = await inspection.read_relation(_Asking(fetch), model.table)
        subject = f"model {model.table}"
        if relation is None:
            raise errors.SchemaError(f"{subject}: there is no such table")
        if not any(index.identifies(model.object_identifier) for index in relation.indexes):
            raise errors.SchemaError(
                f"{subject}: {model.object_identifier} is not unique: nobody could tell which row an object is",
                hint="A model receiver needs a unique index on the object identifier alone.",
            )
        alias = sql.quote(model.table.partition(".")[2] or model.table)
        names = {
            "schema": sql.quote(self._schema),
            "source": relation.name,
            "alias": alias,
            "object": f"{alias}.{sql.quote(model.object_identifier)}",
            "type": self._type,
            "condition": expression(model.where_sql, "true"),
            "columns": ", ".join(f"{alias}.{sql.quote(name)}" for name in relation.columns),
            "absent": ", ".join(f"NULL AS {sql.quote(name)}" for name in relation.columns),
        }
        return {name: sql.Renderer(names, {}).render(text) for name, text in _STATEMENTS.items()}

    @property
    def round_trips(self) -> int:
        """Statements sent since the start."""
        return self._session.round_trips

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()


class _Asking:
    """Lets `inspection` ask through a session."""

    def __init__(self, fetch: Callable[..., Any]) -> None:
        self._fetch = fetch

    async def fetch(self, statement: str, /, *args: Any) -> Any:
        return await self._fetch(statement, *args)

    async def fetchrow(self, statement: str, /, *args: Any) -> Any:
        return next(iter(await self._fetch(statement, *args)), None)


def _ahead(turn: Turn, group: Group) -> list[Any]:
    """Name the objects of this group and of the next ones of its category."""
    category = group.newest[CATEGORY]
    start = next(number for number, each in enumerate(turn.groups) if each is group)
    same = (each.newest[OBJECT] for each in turn.groups[start:] if each.newest[CATEGORY] == category)
    return list(dict.fromkeys(identifier for identifier, _ in zip(same, range(AHEAD), strict=False)))


def _row_of(record: Any) -> Row:
    row = dict(record)
    del row["outboxd_object"], row["outboxd_is_large"]
    return row
