"""
`outboxd migrate`: make the database what this version needs, and nothing else.

Numbered migrations make outboxd's own schema. Outbox tables are created, or adopted as they are: only
what is missing is added. One migration at a time in a database; a second one waits and finds nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from outboxd import capture, contract, errors, inspection, save_function, sql
from outboxd.session import refuse_pooler, translate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Relation

LOCK = (0x6F62786D, 0)  # "obxm": a class of its own among advisory locks
LOCK_WAIT_S = 600.0
_LOCK_POLL_S = 0.2
_INDEX_TIMEOUT_S = 7 * 86_400.0

_STATEMENTS = sql.load("table.sql")


async def migrate(connection: asyncpg.Connection, config: Config, *, notify: bool = False) -> list[str]:
    """
    Bring outboxd's schema and the outbox tables of the silo mode up to date.

    Safe at any time: while daemons run, twice, two at once. When a table is refused, nothing is changed.

    Args:
        connection: Direct (no pooler), used by nobody else, outside a transaction.
        config: Its `outboxes`, categories and schema.
        notify: Also add the trigger that wakes the daemon. Without it an existing trigger stays.

    Returns:
        What was done, a line each; empty when everything was there.

    Raises:
        PoolerError: A pooler stands in between: the migration lock would be stranded.
        SchemaError: A table or the schema is not one that can be migrated, or a privilege is missing.
        StatementFailed: A table was locked by others for too long.
        StoreUnavailable: The connection is gone.
    """
    try:
        await refuse_pooler(connection)
        # A DDL statement that waits for a lock makes every producer wait behind it: not for long.
        async with _alone(connection), _timeouts(connection, "5s", "0"):
            await _refuse(connection, config)
            done = await _migrate_schema(connection, config)
            for outbox in config.outboxes:
                done += await _migrate_outbox(connection, config, outbox, notify=notify)
            done += await _write_save_function(connection, config)
            done += await capture.install(connection, config)
    except inspection.FAILURES as exc:
        raise _explained(exc) from exc
    except errors.PrivilegeError as exc:
        exc.hint = _NOT_OWNER
        raise
    return done


_NOT_OWNER = "Migrate as a role that owns the tables: `outboxd check --role owner` names what this one lacks."


def _explained(exc: BaseException) -> errors.OutboxdError:
    error = translate(exc, "migrating")
    if isinstance(error, errors.StatementFailed) and error.sqlstate == "55P03":
        error.hint = "A long transaction holds the table. Nothing is half done: run `outboxd migrate` again."
    elif isinstance(error, errors.SchemaError):
        error.hint = _NOT_OWNER
    return error


@contextlib.asynccontextmanager
async def _alone(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Hold the migration lock. Asked for again and again rather than waited for: see `try_lock`."""
    await _lock(connection)
    try:
        yield
    finally:
        with contextlib.suppress(*inspection.FAILURES):  # a session that died has unlocked already
            await connection.fetchval(_STATEMENTS["unlock"], *LOCK)


@contextlib.asynccontextmanager
async def _timeouts(connection: asyncpg.Connection, lock: str, statement: str) -> AsyncIterator[None]:
    """Set `lock_timeout` and `statement_timeout` ("0" is none) for the statements inside."""
    before = await connection.fetchrow(_STATEMENTS["timeouts"])
    assert before is not None
    await connection.execute(_STATEMENTS["set_timeouts"], lock, statement)
    try:
        yield
    finally:
        with contextlib.suppress(*inspection.FAILURES):
            await connection.execute(_STATEMENTS["set_timeouts"], *before.values())


async def _lock(connection: asyncpg.Connection) -> None:
    try:
        async with asyncio.timeout(LOCK_WAIT_S):
            # Polled, because what we wait for is in the database.
            while not await connection.fetchval(_STATEMENTS["try_lock"], *LOCK):  # noqa: ASYNC110
                await asyncio.sleep(_LOCK_POLL_S)
    except TimeoutError as exc:
        raise errors.StatementFailed("another outboxd migration is running", hint="Try again when it is done.") from exc


async def _refuse(connection: asyncpg.Connection, config: Config) -> None:
    """Refuse everything that must be refused, before the first change."""
    number = await inspection.migrated_to(connection, config.schema)
    inspection.refuse_newer(config.schema, number or 0)
    lines = []
    for outbox in config.outboxes:
        relation = await inspection.read_relation(connection, outbox.table)
        found = inspection.refusals(relation, outbox) if relation else []
        lines += [f"outbox {outbox.name}: table {outbox.table}: {fault}" for fault in found]
    if lines:
        raise errors.SchemaError("\n  ".join(["a table cannot be adopted as it is:", *lines]))


async def _migrate_schema(connection: asyncpg.Connection, config: Config) -> list[str]:
    done = []
    names = {"schema": sql.quote(config.schema)}
    if await inspection.migrated_to(connection, config.schema) is None:
        await _create_schema(connection, config.schema, names)
    applied = await inspection.migrated_to(connection, config.schema) or 0
    for number, (name, text) in inspection.migrations().items():
        if number > applied:
            async with connection.transaction():
                await connection.execute(render(text, names))
                await connection.execute(render(_STATEMENTS["record_migration"], names), number, name)
            done.append(f"schema {config.schema}: migration {number} ({name})")
    return done + await _write_categories(connection, config)


async def _create_schema(connection: asyncpg.Connection, schema: str, names: dict[str, str]) -> None:
    """Create schema and list of migrations. IF NOT EXISTS would ask for CREATE on the database regardless."""
    async with connection.transaction():
        if not await connection.fetchval("SELECT to_regnamespace($1)", sql.quote(schema)):
            await connection.execute(render(_STATEMENTS["create_schema"], names))
        await connection.execute(render(_STATEMENTS["create_migration"], names))


async def _write_categories(connection: asyncpg.Connection, config: Config) -> list[str]:
    names = {"schema": sql.quote(config.schema), "categories": "$1::jsonb"}
    document = categories_json(config)
    async with connection.transaction():
        await connection.execute(render(_STATEMENTS["forget_moved_categories"], names), document)
        rows = await connection.fetch(render(_STATEMENTS["upsert_categories"], names), document)
    written = ", ".join(row["name"] for row in rows)
    return [f"schema {config.schema}: categories {written}"] if rows else []


def categories_json(config: Config) -> str:
    """Return the rows of the table `category` as a JSON list."""
    return json.dumps(
        [
            {"value": c.value, "name": name, "scope": c.scope, "scope_value": config.scopes[c.scope].value}
            for name, c in config.categories.items()
        ],
        ensure_ascii=False,
    )


async def _migrate_outbox(
    connection: asyncpg.Connection, config: Config, outbox: OutboxConfig, *, notify: bool
) -> list[str]:
    relation = await inspection.read_relation(connection, outbox.table)
    if relation is None:
        done = await _create(connection, outbox)
    else:
        done = await _add_columns(connection, relation, outbox)
        done += await _add_indexes(connection, relation, outbox)
    return done + (await _add_trigger(connection, config, outbox) if notify else [])


async def _write_save_function(connection: asyncpg.Connection, config: Config) -> list[str]:
    """Create `save` anew where it was made by another configuration; its tables are there by now."""
    if not config.outboxes:
        return []
    rows = await connection.fetch(save_function.marks_query(config))
    marks = {row["signature"]: row["text"] for row in rows}
    types = {}
    for outbox in config.outboxes:
        table = await inspection.read_table(connection, outbox)
        types[outbox.name] = (table.shard_columns["shard_identifier"], table.object_type)
    changed = [each for each in save_function.functions(config, types) if marks[each.signature] != each.mark]
    async with connection.transaction():
        for function in changed:
            await connection.execute(function.create)
            await connection.execute(function.set_mark)
    return [f"schema {config.schema}: function save written"] if changed else []


async def _create(connection: asyncpg.Connection, outbox: OutboxConfig) -> list[str]:
    if "." in outbox.table:
        await _require_namespace(connection, outbox)
    async with connection.transaction():
        for statement in create_statements(outbox):
            await connection.execute(statement)
    return [f"table {outbox.table}: created with its indexes"]


async def _require_namespace(connection: asyncpg.Connection, outbox: OutboxConfig) -> None:
    """Refuse a schema that is not there: created on a typing error, it would hide the real table."""
    schema = sql.quote(outbox.table.split(".", 1)[0])
    if not await connection.fetchval("SELECT to_regnamespace($1)", schema):
        raise errors.SchemaError(f"outbox {outbox.name}: there is no schema {schema}", hint=f"CREATE SCHEMA {schema};")


def create_statements(outbox: OutboxConfig) -> list[str]:
    """Return the DDL of a new outbox table and its indexes."""
    table = sql.quote_qualified(outbox.table)
    own = contract.own_columns(outbox)
    names = {
        "table": table,
        "own_columns": "\n    ".join(f"{column.name} {column.declared}," for column in own),
        "storage": ",\n    ".join(f"{key} = {value}" for key, value in contract.STORAGE.items()),
    }
    wanted = (contract.read_index(outbox), contract.find_index(outbox))
    indexes = [index_statement("create_index", table, columns) for columns in wanted]
    return [render(_STATEMENTS["create_table"], names), *indexes]


def index_statement(kind: str, table: str, columns: tuple[str, ...], **names: str) -> str:
    """Render one of the index statements of table.sql; *table* is quoted, *columns* are not."""
    return render(_STATEMENTS[kind], {"table": table, "columns": ", ".join(map(sql.quote, columns)), **names})


async def _add_columns(connection: asyncpg.Connection, relation: Relation, outbox: OutboxConfig) -> list[str]:
    """Add columns and defaults in one statement: one short lock, no rewrite of the table."""
    missing = [c for c in contract.columns(outbox) if c.addable and c.name not in relation.columns]
    bare = inspection.missing_defaults(relation, outbox)
    changes = [f"ADD COLUMN {sql.quote(c.name)} {c.declared}" for c in missing]
    changes += [f"ALTER COLUMN {sql.quote(c.name)} SET DEFAULT {c.default}" for c in bare]
    if changes:
        await connection.execute(f"ALTER TABLE {relation.name} {', '.join(changes)}")
    return [f"table {outbox.table}: column {c.name} added" for c in missing] + [
        f"table {outbox.table}: column {c.name} got its default" for c in bare
    ]


async def _add_indexes(connection: asyncpg.Connection, relation: Relation, outbox: OutboxConfig) -> list[str]:
    done = []
    if not any(index.identifies("id") for index in relation.indexes):
        done += await _add_primary_key(connection, relation, outbox)
    for columns in inspection.missing_indexes(relation, outbox):
        done += await _drop_leftovers(connection, relation, outbox, columns)
        await _build(connection, index_statement("create_index_concurrently", relation.name, columns))
        done.append(f"table {outbox.table}: index on ({', '.join(columns)}) built")
    return done


async def _add_primary_key(connection: asyncpg.Connection, relation: Relation, outbox: OutboxConfig) -> list[str]:
    """Make id unique, and the primary key unless another column is."""
    done = await _drop_leftovers(connection, relation, outbox, ("id",))
    index = sql.quote(f"outboxd_{relation.oid}_id")
    await _build(connection, index_statement("create_unique_concurrently", relation.name, ("id",), index=index))
    if any(found.is_primary for found in relation.indexes):
        return [*done, f"table {outbox.table}: unique index on (id) built"]
    names = {"table": relation.name, "index": index}
    await connection.execute(render(_STATEMENTS["add_primary_key"], names))
    return [*done, f"table {outbox.table}: primary key on (id) added"]


async def _drop_leftovers(
    connection: asyncpg.Connection, relation: Relation, outbox: OutboxConfig, columns: tuple[str, ...]
) -> list[str]:
    """Drop what a failed CREATE INDEX CONCURRENTLY left; each such index still costs every INSERT."""
    done = []
    for index in relation.indexes:
        if index.is_valid or index.keys != columns:
            continue
        if index.is_building:
            raise errors.StatementFailed(
                f"table {outbox.table}: another session is building index {index.name}",
                hint="Run `outboxd migrate` again when it is done.",
            )
        await _build(connection, render(_STATEMENTS["drop_index_concurrently"], {"index": index.name}))
        done.append(f"table {outbox.table}: invalid index {index.name} dropped")
    return done


async def _build(connection: asyncpg.Connection, statement: str) -> None:
    """
    Run a CONCURRENTLY statement, however long it takes.

    It waits for every older transaction; nobody waits for it. A timeout would only leave an invalid index.
    """
    async with _timeouts(connection, "0", "0"):
        await connection.execute(statement, timeout=_INDEX_TIMEOUT_S)


async def _add_trigger(connection: asyncpg.Connection, config: Config, outbox: OutboxConfig) -> list[str]:
    relation = await inspection.read_relation(connection, outbox.table)
    if relation is None or await inspection.notify_trigger(connection, relation.oid) is not None:
        return []  # a disabled one was disabled on purpose
    names = {"table": relation.name, "schema": sql.quote(config.schema)}
    await connection.execute(render(_STATEMENTS["create_trigger"], names))
    return [f"table {outbox.table}: trigger {inspection.NOTIFY_TRIGGER} added"]


def render(statement: str, names: dict[str, Any]) -> str:
    """Fill in the placeholders of a statement with quoted names."""
    return sql.Renderer(names, {}).render(statement)
