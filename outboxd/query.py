"""
Questions to the database that a person could ask as well: one text, with values bound for us or written out for psql.

The command and what it prints with `--sql` are rendered from the same statement, so they cannot differ.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import msgspec

from outboxd import contract, errors, inspection, sql
from outboxd.model import DIED_ERROR

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig

Value = str | int | uuid.UUID | Sequence[str | int | uuid.UUID] | None

Filling = Union[str, Callable[[str], str], "Query"]

_TIMED_OUT, _LOCKED = "57014", "55P03"
_FOR_INDEX = ("enable_seqscan = off", "enable_bitmapscan = off")
_AS_JSON = "SELECT row_to_json(answer)::text FROM (\n{}\n) AS answer"
# Takes nine times as long: for lists of a few thousand rows.
_BY_COLUMN = """\
SELECT (SELECT ROW(array_agg(key), array_agg(value::text)) FROM json_each(row_to_json(answer))) FROM (
{}
) AS answer"""
TIMEOUT_S = 15.0
"""How long one question may take."""
LOCK_TIMEOUT_S = 3.0
"""How long it waits for somebody who has locked a whole table."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """
    One question.

    In the statement `{value:limit}` stands for a value, other placeholders for names (see `names_of`). It has no
    semicolon, and its columns have distinct names: they are the keys of the JSON document.

    Attributes:
        about: What it asks and how to read the answer; becomes the comment at its head, wrapped by its author.
        numbers: What numbers mean, a line each.
        statement: SQL with placeholders.
        values: By name. A text or uuid is written without a type: it takes that of the column it is compared with. A
            sequence becomes an array.
        names: What fills the other placeholders. Another query becomes a part of this one; its values are those of
            this one.
        unparsed: Columns in which somebody else has written JSON: it is never parsed with the rest of its row.
        by_index: Whether it looks up few rows of a table of any size: a plan that reads all of it is never wanted.
    """

    about: str
    statement: str
    values: Mapping[str, Value] = field(default_factory=dict)
    names: Mapping[str, Filling]
    shard_columns: Mapping[str, str]
    numbers: Sequence[str] = ()
    unparsed: Sequence[str] = ()
    by_index: bool = False

    def bound(self) -> tuple[str, list[Value]]:
        """Return the statement with `$1` … and its arguments."""
        order: dict[str, int] = {}

        def place(name: str) -> str:
            return f"${order.setdefault(name, len(order) + 1)}"

        text = self._render(place)
        return text, [self.values[name] for name in order]

    def for_psql(self) -> str:
        """Return it with comments at its head and values written out, ready to be pasted; ends with a line break."""
        lines = [*self.about.splitlines(), *self.numbers]
        if self.by_index:
            settings = "".join(f" SET {setting};" for setting in _FOR_INDEX)
            lines.append(f"Before it, as the command does, where a table was never analysed:{settings}")
        comments = "".join(f"-- {' '.join(line.split())}\n" for line in lines)
        return f"{comments}{self._render(lambda name: _written(self.values[name]))};\n"

    def _render(self, value: Callable[[str], str]) -> str:
        names = {name: part._render(value) if isinstance(part, Query) else part for name, part in self.names.items()}
        return sql.Renderer({**names, "value": value}, self.shard_columns).render(self.statement)


async def fetch(
    connection: asyncpg.Connection,
    query: Query,
    doing: str,
    *,
    outbox: OutboxConfig | None = None,
    timeout_s: float | None = None,
) -> list[dict[str, Any]]:
    """
    Ask, in a transaction that cannot write.

    Args:
        connection: Not in a transaction.
        query: The question.
        doing: What is done by that, for the error.
        outbox: The only one that it is about: where its table is not there, the error says how it is named.
        timeout_s: How long that may take; None is `TIMEOUT_S`.

    Returns:
        The rows as JSON has them, columns in order: times as ISO 8601 in UTC. Columns of `query.unparsed` are the
        server's own JSON (`as_written`): its numbers may have more digits, and it may be nested deeper, than Python
        takes.

    Raises:
        StatementFailed: It took too long (sqlstate 57014), the table is locked (55P03), or the server refuses it.
        SchemaError, StoreUnavailable: As `session.translate` has them.
    """
    text, arguments = query.bound()
    limit_s = TIMEOUT_S if timeout_s is None else timeout_s
    settings = (
        f"SET LOCAL statement_timeout = {int(limit_s * 1000)}; SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)};"
        " SET LOCAL TimeZone = 'UTC'; SET LOCAL jit = off"
    )
    if query.by_index:
        settings += "".join(f"; SET LOCAL {setting}" for setting in _FOR_INDEX)
    try:
        with inspection.translated(doing):
            async with connection.transaction(readonly=True):
                await connection.execute(settings)
                rows = await connection.fetch((_BY_COLUMN if query.unparsed else _AS_JSON).format(text), *arguments)
    except errors.StatementFailed as exc:
        if exc.sqlstate == _TIMED_OUT and not exc.hint:
            exc.hint = f"One question may take {limit_s:g} s. In psql, what --sql prints may take as long as you like."
        if exc.sqlstate == _LOCKED and not exc.hint:
            exc.hint = "Somebody has locked the table: `outboxd doctor` names who."
        raise
    except errors.SchemaError as exc:
        if outbox is not None and await inspection.read_relation(connection, outbox.table) is None:
            raise inspection.missing_table(outbox) from exc
        raise
    return [_read(row[0], query.unparsed) if query.unparsed else json.loads(row[0]) for row in rows]


def as_written(value: msgspec.Raw) -> str:
    """Return JSON that `fetch` has left as the server has it."""
    return bytes(value).decode()


def _read(row: tuple[list[str], list[str]], unparsed: Sequence[str]) -> dict[str, Any]:
    """Read names and values of one row; null is None also where JSON is left as it is."""
    names, texts = row
    left = {name: text for name, text in zip(names, texts, strict=True) if name in unparsed and text != "null"}
    parsed = ["null" if name in left else text for name, text in zip(names, texts, strict=True)]
    values = json.loads(f"[{','.join(parsed)}]")
    return dict(zip(names, values, strict=True)) | {name: msgspec.Raw(text.encode()) for name, text in left.items()}


def names_without_outbox(config: Config) -> dict[str, Filling]:
    """Return what of `names_of` is about no outbox: `{schema}`, `{died}`, `{scope_name:o}`, `{category_name:o}`."""
    scopes = {scope.value: name for name, scope in config.scopes.items()}
    categories = {category.value: name for name, category in config.categories.items()}
    return {
        "schema": sql.quote(config.schema),
        "died": sql.literal(DIED_ERROR),
        "scope_name": lambda alias: _named(f"{alias}.shard_scope", scopes),
        "category_name": lambda alias: _named(f"{alias}.category", categories),
    }


def names_of(config: Config, outbox: OutboxConfig) -> dict[str, Filling]:
    """
    Return what fills the placeholders of a statement about one outbox, from the configuration alone.

    | written                  | becomes                                                    |
    |--------------------------|------------------------------------------------------------|
    | `{table}`, `{schema}`    | the outbox table, the schema of outboxd's own tables        |
    | `{outbox}`               | the outbox's name, as a string                              |
    | `{region:o}`             | `o.region_name`, or null where the outbox has no regions    |
    | `{region_text:o}`        | the same as `outboxd.failure` has it: '' instead of null    |
    | `{scope_name:o}`         | the name of `o.shard_scope`, or its number                  |
    | `{category_name:o}`      | the name of `o.category`, or its number                     |
    | `{lock_key:o}`           | the key that the shard is locked by                         |
    """
    has_region = contract.has_region(outbox)
    table = sql.quote_qualified(outbox.table)
    return {
        **names_without_outbox(config),
        "table": table,
        "outbox": sql.literal(outbox.name),
        "region": lambda alias: f"{alias}.region_name" if has_region else "NULL::text",
        "region_text": lambda alias: f"{alias}.region_name::text" if has_region else "''",
        "lock_key": lambda alias: contract.lock_key(table, outbox.sharding_columns, alias),
    }


def numbers_of(config: Config) -> list[str]:
    """Return what the numbers in the tables mean, a line for each scope and its categories."""
    lines = []
    for name, found in sorted(config.scopes.items(), key=lambda item: item[1].value):
        members = [
            f"{number} = {label}"
            for number, label, of in sorted((c.value, label, c.scope) for label, c in config.categories.items())
            if of == name
        ]
        lines.append(f"shard_scope {found.value} = {name}" + (f"; category {', '.join(members)}" if members else ""))
    return lines


def _named(column: str, names: Mapping[int, str]) -> str:
    if not names:
        return f"{column}::text"
    whens = " ".join(f"WHEN {number} THEN {sql.literal(name)}" for number, name in sorted(names.items()))
    return f"CASE {column} {whens} ELSE {column}::text END"


def _written(value: Value) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value) if value >= 0 else f"({value})"  # -2147483648::int4 would be out of range
    if isinstance(value, str | uuid.UUID):
        return sql.literal(str(value))
    return sql.literal("{" + ",".join(map(_element, value)) + "}")


def _element(value: str | int | uuid.UUID) -> str:
    """Write an element of an array."""
    if isinstance(value, int):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
