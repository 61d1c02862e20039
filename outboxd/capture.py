"""
Capture: triggers on a source table that write its messages, so that no change can forget them.

Raw SQL, COPY, the bulk operations of an ORM, other services, cascades: all are statements, and each statement writes
its messages by one INSERT, however many rows it has changed.
"""

from __future__ import annotations

import hashlib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outboxd import errors, inspection, source, sql

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, ModelConfig
    from outboxd.inspection import Relation, Table

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("capture.sql").items()}
_WRONG_SQL, _PRIVILEGE = "42", "42501"
TRIGGERS = 4
NEW, OLD, CHANGED = "outboxd_new", "outboxd_old", "outboxd_changed"


@dataclass(frozen=True, slots=True)
class Capture:
    """One model's capture: its table, and the function that its triggers call."""

    model: ModelConfig
    relation: Relation
    function: str
    create: str
    mark: str


async def inspect(connection: asyncpg.Connection, config: Config, model: ModelConfig) -> Capture:
    """
    Look at a model's table and outbox, and write the function.

    Raises:
        SchemaError: The table cannot be captured.
    """
    relation = await _relation(connection, model)
    outbox = next(each for each in config.outbox if each.name == model.outbox)
    table = await inspection.read_table(connection, outbox)
    function = f"capture_{relation.oid}"
    create = _function(config, model, relation, table, function)
    mark = f"Writes the messages of {model.table}. {hashlib.sha256(create.encode()).hexdigest()[:16]}"
    return Capture(model, relation, function, create, mark)


async def _relation(connection: asyncpg.Connection, model: ModelConfig) -> Relation:
    relation = await inspection.read_relation(connection, model.table)
    subject = f"model {model.table}: capture"
    if relation is None:
        raise errors.SchemaError(f"{subject}: there is no such table", hint="Create it first, then migrate again.")
    if relation.kind not in ("r", "p") or relation.persistence != "p":
        raise errors.SchemaError(
            f"{subject}: {relation.name} is no ordinary table", hint="Capture the tables below it."
        )
    if relation.kind == "r" and relation.is_inherited:
        raise errors.SchemaError(
            f"{subject}: {relation.name} is a partition, or others inherit from it",
            hint="Capture the partitioned table as a whole.",
        )
    if not _keys(relation):
        raise errors.SchemaError(
            f"{subject}: {relation.name} has no primary key", hint="Old and new rows of an UPDATE are paired by it."
        )
    wanted = [model.shard_identifier, model.object_identifier, *model.capture_columns]
    if missing := [name for name in wanted if name and name not in relation.columns]:
        raise errors.SchemaError(
            f"{subject}: {relation.name} has no column {', '.join(missing)}", hint="Correct the [[model]]."
        )
    return relation


def _keys(relation: Relation) -> tuple[str, ...]:
    return next((index.keys for index in relation.indexes if index.is_primary), ())


def _function(config: Config, model: ModelConfig, relation: Relation, table: Table, function: str) -> str:
    keys = [f"outboxd_key_{number}" for number in range(1, len(_keys(relation)) + 1)]
    watched = [f"outboxd_watched_{number}" for number in range(1, len(model.capture_columns) + 1)]
    is_changed = " OR ".join(f"stale.{name}::text IS DISTINCT FROM fresh.{name}::text" for name in watched) or "true"
    same = {"key_names": ", ".join(keys), "is_changed": f"({is_changed})"}

    def statement(changed: str, *, old: str = "", touched: str = "") -> str:
        names = {
            **same,
            "old_rows": _rows(model, relation, _generated(relation, old), is_gone=True),
            "new_rows": _rows(model, relation, _now(relation, touched), is_gone=False),
        }
        return _write(config, model, table, sql.Renderer(names, {}).render(_STATEMENTS[changed]))

    columns = ", ".join(f"{sql.quote(name)} AS {key}" for name, key in zip(_keys(relation), keys, strict=True))
    old, new = (
        sql.Renderer({"values": columns, "table": transition}, {}).render(_STATEMENTS["columns"])
        for transition in (OLD, NEW)
    )
    of_row = "SELECT " + ", ".join(f"stale.{key}" for key in keys)
    statements = {
        "insert": statement("changed_new", touched=new),
        "update": statement("changed_between", old=OLD, touched=f"{old} UNION {new}"),
        "delete": statement("changed_gone", old=OLD, touched=of_row),
        "truncate": statement("changed_all", old=CHANGED),
    }
    tag = "$outboxd$"
    while any(tag in text for text in statements.values()):
        tag = tag[:-1] + "_$"
    names = {
        "schema": sql.quote(config.schema),
        "function": function,
        "tag": tag,
        "name": sql.literal(relation.name),
        **{kind: sql.literal(text) for kind, text in statements.items()},
        **{f"kept_{kind}": text.replace(CHANGED, relation.name) for kind, text in statements.items()},
    }
    return sql.Renderer(names, {}).render(_STATEMENTS["function"])


def _rows(model: ModelConfig, relation: Relation, table: str, *, is_gone: bool) -> str:
    """Read what messages need of these rows; of rows that *is_gone*, the payload is that of deleted ones."""
    alias = sql.quote(model.table.partition(".")[2] or model.table)

    def listed(prefix: str, columns: tuple[str, ...] | list[str]) -> str:
        named = [f"{alias}.{sql.quote(name)} AS outboxd_{prefix}_{n}" for n, name in enumerate(columns, 1)]
        return ", ".join(named) or f"NULL::text AS outboxd_{prefix}"

    row = source.names_of_expressions(model, alias)
    names = {
        **row,
        "keys": listed("key", _keys(relation)),
        "watched": listed("watched", model.capture_columns),
        "payload": source.expression(model.capture_delete_payload_sql, "NULL::jsonb") if is_gone else row["payload"],
        "regions": _regions(model),
        "condition": source.expression(model.where_sql, "true"),
        "table": table,
        "alias": alias,
    }
    return sql.Renderer(names, {}).render(_STATEMENTS["rows"])


def _now(relation: Relation, touched: str) -> str:
    """Read the rows of these keys as they are."""
    keys = enumerate(_keys(relation), 1)
    is_touched = " AND ".join(f"outboxd_source.{sql.quote(k)} = outboxd_touched.outboxd_key_{n}" for n, k in keys)
    return sql.Renderer({"touched": touched, "is_touched": is_touched}, {}).render(_STATEMENTS["now"])


def _generated(relation: Relation, table: str) -> str:
    """Generate the virtual columns here: in a transition table the server does not, they are null or an error there."""
    if all(column.virtual is None for column in relation.columns.values()):
        return table
    columns = ((sql.quote(name), column.virtual) for name, column in relation.columns.items())
    values = ", ".join(name if virtual is None else f"({virtual}) AS {name}" for name, virtual in columns)
    return sql.Renderer({"values": values, "table": table}, {}).render(f"({_STATEMENTS['columns']})")


def _regions(model: ModelConfig) -> str:
    if model.region_names_sql.strip():
        return f"({model.region_names_sql}\n)::text[]"
    return f"ARRAY[{', '.join(map(sql.literal, model.region_names))}]::text[]"


def _write(config: Config, model: ModelConfig, table: Table, changed: str) -> str:
    category = config.categories[model.category]
    given = {
        "region_name": "target.outboxd_region",
        "shard_scope": str(config.scopes[category.scope].value),
        "shard_identifier": "changed.outboxd_shard",
        "category": str(category.value),
        "object_identifier": "changed.outboxd_object",
        "payload": "changed.outboxd_payload",
        "headers": "jsonb_build_object('op', changed.outboxd_op)",
    }
    has_region = "region_name" in table.shard_columns
    absent = {name for name, is_there in (("region_name", has_region), ("headers", table.has_headers)) if not is_there}
    columns = [name for name in given if name not in absent]
    targets = " CROSS JOIN LATERAL unnest(changed.outboxd_regions) AS target (outboxd_region)" if has_region else ""
    names = {
        "outbox": table.name,
        "columns": ", ".join(map(sql.quote, columns)),
        "values": ", ".join(given[name] for name in columns),
        "changed": f"\n{textwrap.indent(changed, '    ')}\n",
        "targets": targets,
    }
    return sql.Renderer(names, {}).render(_STATEMENTS["write"])


async def install(connection: asyncpg.Connection, config: Config) -> list[str]:
    """
    Create the triggers of the models with `capture = true` anew where they are not as they must be; drop the others.

    Returns:
        What was done.

    Raises:
        SchemaError: A table cannot be captured, or an expression of the configuration does not fit it.
    """
    names = {outbox.name for outbox in config.outboxes}
    done: list[str] = []
    seen: dict[int, str] = {}
    for model in config.model:
        if not model.capture or model.outbox not in names:
            continue
        found = await inspect(connection, config, model)
        if seen.setdefault(found.relation.oid, model.table) != model.table:
            twins = f"models {seen[found.relation.oid]} and {model.table}"
            raise errors.SchemaError(f"{twins} are one table, which can be captured once: {found.relation.name}")
        done += await _install(connection, config, found)
    return done + await _drop_others(connection, config)


async def gaps(connection: asyncpg.Connection, config: Config, model: ModelConfig) -> list[str]:
    """
    Tell what keeps the changes of a captured model from being written, as the database is now.

    Raises:
        SchemaError: The table cannot be captured.
    """
    capture = await inspect(connection, config, model)
    mark, bare = await _state(connection, config, capture)
    if mark is None:
        return ["its triggers are not installed"]
    found = [f"{table} lacks a trigger, or one is disabled" for table in bare]
    return found if mark == capture.mark else [*found, "its triggers are of another configuration"]


async def _state(connection: asyncpg.Connection, config: Config, capture: Capture) -> tuple[str | None, list[str]]:
    """Return the mark of the function that is there, and the tables that lack a trigger."""
    function = f"{sql.quote(config.schema)}.{capture.function}"
    mark = await connection.fetchval(_STATEMENTS["mark_of"], function)
    tables = await connection.fetch(_STATEMENTS["partitions"], capture.relation.oid, function)
    return mark, [row["name"] for row in tables if row["triggers"] < TRIGGERS]


async def _install(connection: asyncpg.Connection, config: Config, capture: Capture) -> list[str]:
    mark, bare = await _state(connection, config, capture)
    if mark == capture.mark and not bare:
        return []
    (rights,) = await connection.fetch(_STATEMENTS["rights"])
    names = {
        "schema": sql.quote(config.schema),
        "function": capture.function,
        "text": sql.literal(capture.mark),
        "path": rights["path"],
        "owner": sql.quote(capture.relation.owner),
    }
    # A superuser's rights are more than the configuration's expressions should run with.
    steps = ["find_by", "keep", "mark", *(["give"] if rights["may_give"] else [])]
    settings = [sql.Renderer(names, {}).render(_STATEMENTS[step]) for step in steps]
    triggers = [sql.Renderer({**names, "source": table}, {}).render(_STATEMENTS["triggers"]) for table in bare]
    try:
        async with connection.transaction():
            for statement in (capture.create, *settings, *triggers):
                await connection.execute(statement)
            await _try(connection, capture)
    except inspection.FAILURES as exc:
        state = getattr(exc, "sqlstate", "") or ""
        if not state.startswith(_WRONG_SQL) or state == _PRIVILEGE:
            raise
        raise errors.SchemaError(
            f"model {capture.model.table}: capture: {exc.args[0]}",
            hint="Correct the expressions of the [[model]].",
        ) from exc
    return [f"table {capture.model.table}: capture written"]


async def _try(connection: asyncpg.Connection, capture: Capture) -> None:
    """Run every statement of the function on no row: what does not fit is to fail here, and not in the application."""
    names = {"source": capture.relation.name, "column": sql.quote(_keys(capture.relation)[0])}
    trial = connection.transaction()
    await trial.start()
    for name in ("try_insert", "try_update", "try_delete"):
        await connection.execute(sql.Renderer(names, {}).render(_STATEMENTS[name]))
    await trial.rollback()


async def _drop_others(connection: asyncpg.Connection, config: Config) -> list[str]:
    """Take triggers away from tables that no model captures any more, whichever silo mode it is of."""
    kept: set[int] = set()
    for model in config.model:
        if model.capture and (relation := await inspection.read_relation(connection, model.table)) is not None:
            kept |= {row["oid"] for row in await connection.fetch(_STATEMENTS["partitions"], relation.oid, "")}
    schema = sql.quote(config.schema)
    done = []
    for row in await connection.fetch(_STATEMENTS["captured"], schema):
        if row["oid"] not in kept:
            await connection.execute(sql.Renderer({"source": row["name"]}, {}).render(_STATEMENTS["drop_triggers"]))
            done.append(f"table {row['name']}: capture ended")
    for row in await connection.fetch(_STATEMENTS["functions_without_triggers"], schema):
        await connection.execute(f"DROP FUNCTION IF EXISTS {row['name']}()")
    return done
