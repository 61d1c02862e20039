"""A model's source table: what a backfill needs to know of it, and the statements that walk it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import errors, inspection, sql

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from outboxd.config import Config, ModelConfig
    from outboxd.inspection import Relation, Table

_STATEMENTS = sql.load("backfill.sql")
_KEY_TYPES = ("smallint", "integer", "bigint", "uuid")
_INT8_MAX = 2**63 - 1
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_KINDS = ("r", "p")

FRESH = "0"
"""The low bound of a walk that has not begun, whatever the type of the key."""
_ZERO = "-0"
"""The low bound 0 of a walk under way: there may be negative keys, which are done."""


@dataclass(frozen=True, slots=True)
class Source:
    """
    A source table that can be walked.

    Attributes:
        name: Quoted and qualified, ready for SQL.
        alias: Its bare name, quoted: expressions of the configuration may use it.
        key: The column of its primary key, quoted.
        key_type: `smallint`, `integer`, `bigint` or `uuid`.
    """

    oid: int
    name: str
    alias: str
    key: str
    key_type: str

    def first_key(self, low_bound: str) -> Any:
        """
        Turn a low bound into the key where a batch begins.

        Returns:
            An integer (the lowest that is not done), a UUID (the last one done), or None: begin at the lowest key.

        Raises:
            WatermarkError: It is neither.
        """
        if low_bound == FRESH:
            return None
        try:
            if self.key_type == "uuid":
                return uuid.UUID(low_bound)
            if _INTEGER.fullmatch(low_bound) and -_INT8_MAX - 1 <= int(low_bound) <= _INT8_MAX + 1:
                return int(low_bound)
        except ValueError:
            pass
        raise errors.WatermarkError(
            f"the watermark of {self.name} has the low bound {low_bound!r}, which is no {self.key_type}",
            hint="Set another one with `outboxd backfill rewind`.",
        )

    def low_bound_after(self, last_key: str) -> str:
        """Tell the low bound when *last_key* is done."""
        if self.key_type == "uuid":
            return last_key
        following = int(last_key) + 1
        return str(following) if following else _ZERO

    def is_past_the_end(self, first_key: Any) -> bool:
        """Whether no key can be so high. Of any integer type: a column may be widened while it is walked."""
        return isinstance(first_key, int) and first_key > _INT8_MAX


@dataclass(frozen=True, slots=True)
class Walk:
    """
    One model's walk: its tables, and the statement that writes a batch.

    Attributes:
        by_row: Each row names its own regions.
    """

    model: ModelConfig
    source: Source
    scope: int
    category: int
    by_row: bool
    batch: str


async def inspect_walk(connection: asyncpg.Connection, config: Config, model: ModelConfig) -> Walk:
    """
    Look at a model's source table and outbox.

    Raises:
        SchemaError: One of them is missing, cannot be used, or has no fitting primary key.
        StoreUnavailable: The connection is gone.
    """
    outbox = next(o for o in config.outbox if o.name == model.outbox)
    source = await _inspect_source(connection, model)
    table = await inspection.inspect_table(connection, outbox)
    category = config.categories[model.category]
    return Walk(
        model=model,
        source=source,
        scope=config.scopes[category.scope].value,
        category=category.value,
        by_row=bool(model.region_names_sql.strip()),
        batch=_batch_statement(config.schema, model, source, table),
    )


async def _inspect_source(connection: asyncpg.Connection, model: ModelConfig) -> Source:
    relation = await inspection.read_relation(connection, model.table)
    subject = f"model {model.table}"
    if relation is None:
        raise errors.SchemaError(
            f"{subject}: there is no such table", hint="Correct [[model]] table; write schema.table if need be."
        )
    if relation.kind not in _KINDS:
        raise errors.SchemaError(f"{subject}: {relation.name} is not a table", hint="Only a table can be walked.")
    refuse_row_security(relation, subject)
    keys = next((index.keys for index in relation.indexes if index.is_primary), ())
    if len(keys) != 1:
        found = f"its primary key is ({', '.join(keys)})" if keys else "it has no primary key"
        raise errors.SchemaError(
            f"{subject}: {found}", hint="A walk goes along a primary key of one column, an integer or a uuid."
        )
    key_type = relation.columns[keys[0]].type
    if key_type not in _KEY_TYPES:
        raise errors.SchemaError(
            f"{subject}: its primary key {keys[0]} is of type {key_type}",
            hint="A walk goes along a primary key of one column, an integer or a uuid.",
        )
    return Source(relation.oid, relation.name, alias_of(model), sql.quote(keys[0]), key_type)


def refuse_row_security(relation: Relation, subject: str) -> None:
    """
    Refuse a table of which this role may not see every row.

    Raises:
        SchemaError: That.
    """
    if relation.row_security:
        raise errors.SchemaError(
            f"{subject}: row level security hides rows from this role, which would be passed over in silence",
            hint=f"Give the role BYPASSRLS, or ALTER TABLE {relation.name} DISABLE ROW LEVEL SECURITY.",
        )


def alias_of(model: ModelConfig) -> str:
    """Return the table's bare name, quoted: expressions of the configuration may use it."""
    return sql.quote(model.table.partition(".")[2] or model.table)


def names_of_expressions(model: ModelConfig, alias: str) -> dict[str, str]:
    """Return what a message takes from a row of the source table, which stands in the statement as *alias*."""

    def column(name: str) -> str:
        return f"{alias}.{sql.quote(name)}" if name else ""

    return {
        "shard_identifier": expression(model.shard_identifier_sql, column(model.shard_identifier)),
        "object_identifier": column(model.object_identifier),
        "payload": expression(model.payload_sql, "NULL::jsonb"),
    }


def names_of_row(model: ModelConfig, source: Source) -> dict[str, str | Callable[[str], str]]:
    """Return the placeholders of statements that read rows of the source table, and what they become."""
    key = f"{source.alias}.{source.key}"
    above, type_ = (">", "uuid") if source.key_type == "uuid" else (">=", "int8")
    return {
        "source": source.name,
        "alias": source.alias,
        "key": key,
        "key_type": type_,
        "resumed": lambda n: f"(${n}::{type_} IS NULL OR {key} {above} ${n}::{type_})",
        "condition": expression(model.where_sql, "true"),
        **names_of_expressions(model, source.alias),
        "regions_of_row": lambda n: sql.Renderer(
            {"regions": f"({model.region_names_sql}\n)::text[]", "wanted": f"${n}::text[]"}, {}
        ).render(_STATEMENTS["regions_of_row"]),
    }


def _batch_statement(schema: str, model: ModelConfig, source: Source, table: Table) -> str:
    row = names_of_row(model, source)
    given = {
        "region_name": "outboxd_target.outboxd_region",
        "shard_scope": "$3::int4",
        "category": "$4::int4",
        **{name: str(row[name]) for name in ("shard_identifier", "object_identifier", "payload")},
    }
    columns = [name for name in given if name != "region_name" or name in table.shard_columns]
    written = {
        "schema": sql.quote(schema),
        "table": table.name,
        "columns": ", ".join(sql.quote(name) for name in columns),
        "values": ", ".join(given[name] for name in columns),
    }
    statement = _STATEMENTS["batch_by_row" if model.region_names_sql.strip() else "batch"]
    return sql.Renderer({**row, **written}, table.shard_columns).render(statement)


def expression(text: str, otherwise: str) -> str:
    """Write an expression of the configuration, if there is one; a comment at its end must not swallow ours."""
    return f"({text}\n)" if text.strip() else otherwise
