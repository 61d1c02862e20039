"""
Model receivers: the rows that messages are about, read for many deliveries at once.

A message says that an object has changed; a class marked with `@replicates` is given what the object is now, or told
that it is gone. The rows are read after the messages, so they are at least as new; whatever changes them later writes
a message of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from outboxd import errors, inspection, sql
from outboxd.registry import rows_now
from outboxd.session import Session
from outboxd.source import alias_of, expression, refuse_row_security
from outboxd.turn import CATEGORY, OBJECT

if TYPE_CHECKING:
    from outboxd.config import ModelConfig
    from outboxd.inspection import Asks, Table
    from outboxd.registry import Category
    from outboxd.turn import Group, Turn

AHEAD = 100
"""Objects whose rows are read by one statement."""
_STATEMENTS = sql.load("replicas.sql")
_LARGE = object()
_OWN_COLUMNS = 4
_PASSING = {"55P03", "57014", "40001", "40P01"}
"""A lock, a timeout, another transaction: not of the row, and over the next time."""
Row = Mapping[str, Any]


def source_session(dsn: Callable[[], str], *, name: str) -> Session:
    """Return a session for reading source tables: rows that a policy hides are an error there, and not gone."""
    return Session(
        dsn,
        name=name,
        lock_timeout_s=2,
        statement_timeout_s=30,
        settings={"row_security": "off"},
        has_instants=False,
    )


class RowUnreadableError(errors.OutboxdError):
    """The row of one object cannot be read, whenever it is tried: a failure of its delivery."""


class Sources:
    """
    Reads source tables for the model receivers of one outbox.

    Args:
        outbox: Its name: of the models of one table, that of this outbox counts.
        table: Its table, for the type of its object identifiers.
        schema: Of outboxd's own tables.
        session: As `source_session` makes it; whoever made it closes it.
    """

    def __init__(self, outbox: str, table: Table, schema: str, session: Session) -> None:
        self._outbox = outbox
        self._type = table.object_type
        self._schema = schema
        self._session = session
        self._statements: dict[tuple[str, str], tuple[ModelConfig, dict[str, str]]] = {}

    async def prepare(self, turn: Turn, group: Group, category: Category) -> None:
        """
        Have the rows that a delivery is about at hand, for the receivers that this task calls next.

        Raises:
            RowUnreadableError: The server or the driver cannot make something of this row.
            SchemaError: The source table is not there, or cannot tell which row an object is.
            StoreUnavailable, StatementFailed: It cannot be read now.
        """
        models = {model.table: model for model in category.sources}
        models |= {model.table: model for model in category.sources if model.outbox == self._outbox}
        rows_now.set({table: await self._row(model, turn, group) for table, model in models.items()})

    async def _row(self, model: ModelConfig, turn: Turn, group: Group) -> Row | None:
        identifier = group.newest[OBJECT]
        known = turn.rows.setdefault((model.table, model.category), {})
        if identifier not in known:
            known.clear()
            known.update(await self._read_ahead(model, identifier, _ahead(turn, group)))
        row: Row | None = known[identifier]
        return (await self._fetch(model, "one", [identifier])).get(identifier) if row is _LARGE else row

    async def _read_ahead(self, model: ModelConfig, identifier: Any, identifiers: list[Any]) -> dict[Any, Any]:
        try:
            return await self._read(model, identifiers)
        except errors.StatementFailed as exc:
            if exc.sqlstate in _PASSING:
                raise
        try:  # of many, one row that cannot be read spoils all
            return await self._read(model, [identifier])
        except errors.StatementFailed as exc:
            if exc.sqlstate in _PASSING:
                raise
            raise RowUnreadableError(str(exc)) from exc

    async def _read(self, model: ModelConfig, identifiers: list[Any]) -> dict[Any, Any]:
        """Read rows; None where there is none, a mark where one is too large to be kept beside others (I10)."""
        rows = await self._fetch(model, "many", identifiers)
        gone = [str(identifier) for identifier in identifiers if identifier not in rows]
        if gone and model.tombstones:
            text = (await self._statements_of(model))["record_gone"]
            await self._session.fetch(f"recording deletions of {model.table}", text, model.table, gone)
        return {identifier: rows.get(identifier) for identifier in identifiers}

    async def _fetch(self, model: ModelConfig, statement: str, identifiers: list[Any]) -> dict[Any, Any]:
        text = (await self._statements_of(model))[statement]
        try:
            records = await self._session.fetch(f"reading rows of {model.table}", text, identifiers)
        except errors.SchemaError as exc:  # it is not what it was: look again the next time
            self._statements.pop((model.table, model.category), None)
            exc.hint = "Run `outboxd check`: it says what the [[model]] needs."
            raise
        return {record[0]: _LARGE if record[1] else _row_of(record) for record in records}

    async def _statements_of(self, model: ModelConfig) -> dict[str, str]:
        known = self._statements.get((model.table, model.category))
        if known is None or known[0] != model:
            async with self._session.transaction(f"looking at {model.table}") as fetch:
                statements = await statements_of(_Asking(fetch), model, self._type, self._schema)
            known = self._statements[model.table, model.category] = (model, statements)
        return known[1]


async def statements_of(connection: Asks, model: ModelConfig, type_: str, schema: str) -> dict[str, str]:
    """
    Return the statements that read a model's rows.

    Args:
        connection: Looks at the source table.
        model: Whose table.
        type_: Of the object identifiers in the outbox.
        schema: Of outboxd's own tables.

    Raises:
        SchemaError: The table is not there, hides rows, or cannot tell which row an object is.
    """
    relation = await inspection.read_relation(connection, model.table)
    subject = f"model {model.table}"
    if relation is None:
        raise errors.SchemaError(f"{subject}: there is no such table")
    refuse_row_security(relation, subject)
    if relation.is_inherited and relation.kind == "r":
        raise errors.SchemaError(
            f"{subject}: {relation.name} is a partition or has child tables: its index does not make their rows unique",
            hint="A model receiver needs an ordinary table, or a partitioned one.",
        )
    if not any(index.identifies(model.object_identifier) for index in relation.indexes):
        raise errors.SchemaError(
            f"{subject}: {model.object_identifier} is not unique: nobody could tell which row an object is",
            hint="A model receiver needs a unique index on the object identifier alone.",
        )
    found = relation.columns[model.object_identifier].type
    if _family(found) != _family(type_):
        raise errors.SchemaError(
            f"{subject}: {model.object_identifier} is {found}, but the outbox has object identifiers of type {type_}",
            hint="A model receiver needs both of one kind: integers, uuids or texts.",
        )
    alias = alias_of(model)
    names = {
        "schema": sql.quote(schema),
        "source": relation.name,
        "alias": alias,
        "object": f"{alias}.{sql.quote(model.object_identifier)}",
        "type": type_,
        "condition": expression(model.where_sql, "true"),
    }
    return {name: sql.Renderer(names, {}).render(text) for name, text in _STATEMENTS.items()}


def _family(type_: str) -> str:
    """Tell what a type compares with, by an index."""
    return {"smallint": "integer", "bigint": "integer", "character varying": "text"}.get(type_, type_)


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
    return list(dict.fromkeys(same))[:AHEAD]


def _row_of(record: Any) -> Row:
    return dict(list(record.items())[_OWN_COLUMNS:])
