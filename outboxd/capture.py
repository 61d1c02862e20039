"""
Capture: triggers on a source table that write its messages, so that no change can forget them.

Raw SQL, COPY, the bulk operations of an ORM, other services, cascades: all are statements, and each statement writes
its messages by one INSERT, however many rows it has changed. What the triggers do is in `capture_function`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outboxd import errors, inspection, source, sql
from outboxd.capture_function import CaptureFunction, KeyOperators, primary_key

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, ModelConfig
    from outboxd.inspection import Relation, Table

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("capture.sql").items()}
_WRONG_SQL, _PRIVILEGE = "42", "42501"
_TRIGGERS = 4
_MIGRATE = "Run `outboxd migrate`."


@dataclass(frozen=True, slots=True)
class Capture:
    """One model's capture: its tables, and the function that its triggers call."""

    model: ModelConfig
    relation: Relation
    outbox: Table
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
    operators = [KeyOperators(*row) for row in await connection.fetch(_STATEMENTS["key_operators"], relation.oid)]
    function = f"capture_{relation.oid}"
    create = CaptureFunction(config, model, relation, table, operators).text(function)
    mark = f"Writes the messages of {model.table}. {hashlib.sha256(create.encode()).hexdigest()[:16]}"
    return Capture(model, relation, table, function, create, mark)


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
    if not primary_key(relation):
        raise errors.SchemaError(
            f"{subject}: {relation.name} has no primary key", hint="Old and new rows of an UPDATE are paired by it."
        )
    wanted = [model.shard_identifier, model.object_identifier, *model.capture_columns]
    if missing := [name for name in wanted if name and name not in relation.columns]:
        raise errors.SchemaError(
            f"{subject}: {relation.name} has no column {', '.join(missing)}", hint="Correct the [[model]]."
        )
    return relation


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


async def gaps(connection: asyncpg.Connection, config: Config, model: ModelConfig) -> list[inspection.Fault]:
    """
    Tell what keeps the changes of a captured model from being written, as the database is now.

    Raises:
        SchemaError: The table cannot be captured.
    """
    capture = await inspect(connection, config, model)
    state = await _state(connection, config, capture)
    if state.mark is None:
        return [inspection.Fault("its triggers are not installed", _MIGRATE)]
    found = [inspection.Fault(f"{table} lacks a trigger, or one is disabled", _MIGRATE) for table in state.bare]
    if state.mark != capture.mark:
        found.append(inspection.Fault("its triggers are of another configuration", _MIGRATE))
    elif not state.is_closed:
        found.append(inspection.Fault("its function has other rights than outboxd migrate gives it", _MIGRATE))
    lacking = f"{capture.relation.owner}, who owns the table, lacks a right"
    return found + [inspection.Fault(lacking, f"{remedy};") for remedy in state.lacking]


@dataclass(frozen=True, slots=True)
class _State:
    """
    What there is of a capture.

    Attributes:
        mark: Which function is there; None: none.
        is_closed: It runs with the rights of the table's owner, and nobody else may call it.
        bare: Tables that lack a trigger.
        lacking: What the owner must be given.
        rivals: Other schemas of outboxd's that capture the table.
    """

    mark: str | None
    is_closed: bool
    bare: list[str]
    lacking: list[str]
    rivals: set[str]

    def is_installed(self, capture: Capture) -> bool:
        return self.mark == capture.mark and self.is_closed and not self.bare


async def _state(connection: asyncpg.Connection, config: Config, capture: Capture) -> _State:
    function, schema = f"{sql.quote(config.schema)}.{capture.function}", sql.quote(config.schema)
    relation = capture.relation
    tables = await connection.fetch(_STATEMENTS["partitions"], relation.oid, function, schema)
    lacking = await connection.fetch(_STATEMENTS["lacking"], relation.oid, capture.outbox.oid)
    found = await connection.fetchrow(_STATEMENTS["state"], function)
    is_closed = found is not None and found["is_definer"] and found["owner"] == relation.owner and not found["grantees"]
    return _State(
        mark=None if found is None else found["mark"],
        is_closed=is_closed,
        bare=[row["name"] for row in tables if row["triggers"] < _TRIGGERS],
        lacking=[row["remedy"] for row in lacking],
        rivals={schema for row in tables for schema in row["others"]},
    )


async def _install(connection: asyncpg.Connection, config: Config, capture: Capture) -> list[str]:
    subject, owner = f"model {capture.model.table}: capture", capture.relation.owner
    state = await _state(connection, config, capture)
    if state.rivals:
        rivals = ", ".join(sorted(state.rivals))
        raise errors.SchemaError(f"{subject}: the table is captured already, for the schema {rivals}")
    if state.lacking:
        raise errors.SchemaError(
            f"{subject}: its triggers write with the rights of {owner}, who owns the table and lacks some",
            hint=f"Run: {'; '.join(state.lacking)};",
        )
    if state.is_installed(capture):
        return []
    try:
        async with connection.transaction():
            await _write(connection, config, capture, state.bare)
            await _try(connection, capture)
    except inspection.FAILURES as exc:
        code = getattr(exc, "sqlstate", "") or ""
        if not code.startswith(_WRONG_SQL):
            raise
        hint = "Correct the expressions of the [[model]]; what is not in pg_catalog wants its schema."
        if code == _PRIVILEGE:
            hint = (
                f"Migrate as a superuser; or as {owner}, who owns the table, or a member of that role, which then"
                f" needs CREATE on schema {config.schema}. What another role has installed, only that role can drop."
            )
        raise errors.SchemaError(f"{subject}: {exc.args[0]}", hint=hint) from exc
    return [f"table {capture.model.table}: capture written"]


async def _write(connection: asyncpg.Connection, config: Config, capture: Capture, bare: list[str]) -> None:
    """Create the function, for the table's owner and nobody else, and the triggers that are missing."""
    names = {
        "schema": sql.quote(config.schema),
        "function": capture.function,
        "text": sql.literal(capture.mark),
        "owner": sql.quote(capture.relation.owner),
    }

    async def run(statement: str, **more: str) -> None:
        await connection.execute(sql.Renderer({**names, **more}, {}).render(_STATEMENTS[statement]))

    await connection.execute(capture.create)
    await run("mark")
    [found] = await connection.fetch(_STATEMENTS["state"], f"{names['schema']}.{capture.function}")
    for grantee in found["grantees"]:
        await run("keep", grantee=grantee)
    for table in bare:
        await run("triggers", source=table)
    if found["owner"] != capture.relation.owner:
        await run("give")


async def _try(connection: asyncpg.Connection, capture: Capture) -> None:
    """
    Run every statement of the function on no row: what does not fit is to fail here, and not in the application.

    As the table's owner, whose rights the function has.
    """
    model, relation = capture.model, capture.relation
    alias = source.alias_of(model)
    names = {
        **source.names_of_expressions(model, alias),
        "source": relation.name,
        "alias": alias,
        "outbox": capture.outbox.name,
        "column": sql.quote(primary_key(relation)[0]),
        "owner": sql.quote(relation.owner),
    }
    trial = connection.transaction()
    await trial.start()
    for name in ("only_ours", "try_types", "try_insert", "try_update", "try_delete"):
        await connection.execute(sql.Renderer(names, {}).render(_STATEMENTS[name]))
    await trial.rollback()


async def _drop_others(connection: asyncpg.Connection, config: Config) -> list[str]:
    """Take triggers away from tables that no model captures any more, whichever silo mode it is of."""
    schema = sql.quote(config.schema)
    kept: set[int] = set()
    for model in config.model:
        if model.capture and (relation := await inspection.read_relation(connection, model.table)) is not None:
            tables = await connection.fetch(_STATEMENTS["partitions"], relation.oid, "", schema)
            kept |= {row["oid"] for row in tables}
    done = []
    for row in await connection.fetch(_STATEMENTS["captured"], schema):
        if row["oid"] not in kept:
            await connection.execute(sql.Renderer({"source": row["name"]}, {}).render(_STATEMENTS["drop_triggers"]))
            done.append(f"table {row['name']}: capture ended")
    for row in await connection.fetch(_STATEMENTS["functions_without_triggers"], schema):
        await connection.execute(f"DROP FUNCTION IF EXISTS {row['name']}()")
    return done
