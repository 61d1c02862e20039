"""Which GRANT statements a role lacks: one that owns the tables, runs the daemon, produces, operates, or only looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from outboxd import sql

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    import asyncpg

    from outboxd.config import Config, OutboxConfig

RoleKind = Literal["owner", "daemon", "producer", "operator", "reader"]

_STATEMENTS = sql.load("check.sql")
_ALL = ["SELECT", "INSERT", "UPDATE", "DELETE"]
# SELECT, because INSERT … RETURNING id reads. INSERT for the daemon: backfill and dead letters that are retried.
# An operator pauses, retries and buries, and drains a shard by hand: what a daemon may, but no source tables.
_ON_OUTBOX: dict[RoleKind, list[str]] = {
    "daemon": _ALL,
    "operator": _ALL,
    "producer": ["SELECT", "INSERT"],
    "reader": ["SELECT"],
}
_OF_A_DRAIN = {"option", "pause", "failure", "dead_letter", "worker"}
_ON_OWN_SCHEMA: dict[RoleKind, list[str]] = {"daemon": _ALL, "operator": _ALL, "reader": ["SELECT"]}


async def missing_grants(
    connection: asyncpg.Connection,
    config: Config,
    role: str,
    kind: RoleKind,
    *,
    walks: bool = False,
    sources: Iterable[str] = (),
) -> list[str]:
    """
    Return the statements that give a role what it lacks, ready to run; empty when it lacks nothing.

    Tables that do not exist yet are passed over. A producer that flushes (`flush=True`) needs what a daemon needs.

    Args:
        connection: Of any role: privileges are read from the catalog.
        config: Its `outboxes` and models.
        role: An existing role.
        kind: What the role is for.
        walks: Whether it also reads the source tables of backfills, as a daemon always does.
        sources: Tables whose rows the receivers want, of a role that delivers.

    Raises:
        asyncpg.PostgresError: As the driver has it.
    """
    search = _Search(connection, role, await _quoted(connection, role))
    if kind == "owner":
        return await _owner(search, config)
    statements: list[str] = []
    for outbox in config.outboxes:
        statements += await search.on_outbox(outbox, kind)
    walked = _models(config) if walks or kind == "daemon" else []
    wanted = sources if kind in ("daemon", "operator") else ()
    for source in dict.fromkeys([*walked, *wanted]):
        statements += await search.on_table(source, ["SELECT"])
    if kind in _ON_OWN_SCHEMA:
        statements += await search.on_own_schema(config.schema, _ON_OWN_SCHEMA[kind])
    return list(dict.fromkeys(statements))


async def missing_on_outbox(connection: asyncpg.Connection, outbox: OutboxConfig) -> list[str]:
    """Return the statements that give the role of a connection what it lacks to drain one outbox."""
    return await (await _own_search(connection)).on_outbox(outbox, "daemon")


async def missing_on_schema(connection: asyncpg.Connection, config: Config) -> list[str]:
    """Return the statements that give the role of a connection what a drain lacks on outboxd's own tables."""
    search = await _own_search(connection)
    return await search.on_own_schema(config.schema, _ON_OWN_SCHEMA["daemon"], only=_OF_A_DRAIN)


async def _own_search(connection: asyncpg.Connection) -> _Search:
    role = await connection.fetchval("SELECT current_user::text")
    return _Search(connection, role, await _quoted(connection, role))


async def is_migrated(connection: asyncpg.Connection, config: Config, kind: RoleKind) -> bool:
    """Tell whether every outbox is there, and outboxd's own tables for those who need them."""
    tables = [await find_table(connection, outbox.table) for outbox in config.outboxes]
    return None not in tables and (
        kind not in _ON_OWN_SCHEMA or bool(await connection.fetch(_STATEMENTS["schema_tables"], config.schema))
    )


def _models(config: Config) -> list[str]:
    """Return the source tables that a daemon of this silo mode reads in a backfill."""
    names = {outbox.name for outbox in config.outboxes}
    return [m.table for m in config.model if m.replication_version and m.outbox in names]


async def _quoted(connection: asyncpg.Connection, name: str) -> str:
    return str(await connection.fetchval(_STATEMENTS["quoted"], name))


def split_table(table: str) -> tuple[str | None, str]:
    """Split a configured table's name into schema (None: the search_path) and name."""
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else (None, table)


async def find_table(connection: asyncpg.Connection, table: str) -> asyncpg.Record | None:
    """Look up oid, schema, name and owner of a configured table, also where this role may not look."""
    return await connection.fetchrow(_STATEMENTS["table_named"], *split_table(table))


class _Search:
    """What one role lacks; `quoted` is its name as SQL writes it."""

    def __init__(self, connection: asyncpg.Connection, role: str, quoted: str) -> None:
        self.connection = connection
        self.role = role
        self.quoted = quoted

    async def on_schema(self, schema: str, privilege: str) -> list[str]:
        lacks = await self.connection.fetchval(_STATEMENTS["lacks_on_schema"], self.role, schema, privilege)
        name = await _quoted(self.connection, schema)
        return [f"GRANT {privilege} ON SCHEMA {name} TO {self.quoted};"] if lacks else []

    async def on_outbox(self, outbox: OutboxConfig, kind: RoleKind) -> list[str]:
        return await self.on_table(outbox.table, _ON_OUTBOX[kind], with_sequences=kind != "reader")

    async def on_table(self, table: str, wanted: list[str], *, with_sequences: bool = False) -> list[str]:
        found = await find_table(self.connection, table)
        if found is None:
            return []
        rows = await self.connection.fetch(_STATEMENTS["missing_on_tables"], self.role, [found["oid"]], wanted)
        statements = await self.on_schema(found["schema"], "USAGE")
        if rows:
            privileges = ", ".join(row["privilege"] for row in rows)
            statements.append(f"GRANT {privileges} ON {found['name']} TO {self.quoted};")
        return statements + (await self._on_sequences(found["oid"]) if with_sequences else [])

    async def _on_sequences(self, table: int) -> list[str]:
        rows = await self.connection.fetch(_STATEMENTS["sequences_without_usage"], self.role, table)
        return [f"GRANT USAGE ON SEQUENCE {row['name']} TO {self.quoted};" for row in rows]

    async def on_own_schema(self, schema: str, wanted: list[str], *, only: Container[str] | None = None) -> list[str]:
        tables = await self.connection.fetch(_STATEMENTS["schema_tables"], schema)
        oids = [row["oid"] for row in tables if only is None or row["bare"] in only]
        missing = await self.connection.fetch(_STATEMENTS["missing_on_tables"], self.role, oids, wanted)
        statements = await self.on_schema(schema, "USAGE")
        if missing:
            name = await _quoted(self.connection, schema)
            statements.append(f"GRANT {', '.join(wanted)} ON ALL TABLES IN SCHEMA {name} TO {self.quoted};")
        return statements

    async def to_own(self, what: str, name: str, owner: str) -> list[str]:
        if await self.connection.fetchval(_STATEMENTS["is_member"], self.role, owner):
            return []
        return [f"ALTER {what} {name} OWNER TO {self.quoted};"]


async def _owner(search: _Search, config: Config) -> list[str]:
    """Migrating means ALTER TABLE and CREATE INDEX: for the owner, who also needs CREATE on the schema."""
    statements: list[str] = []
    for outbox in config.outboxes:
        found = await find_table(search.connection, outbox.table)
        schema = found["schema"] if found else split_table(outbox.table)[0]
        if schema is None:
            schema = await search.connection.fetchval("SELECT current_schema()::text")
        if schema is not None:
            statements += await search.on_schema(schema, "USAGE") + await search.on_schema(schema, "CREATE")
        if found is not None:
            statements += await search.to_own("TABLE", found["name"], found["owner"])
    return list(dict.fromkeys(statements + await _own_schema_owner(search, config.schema)))


async def _own_schema_owner(search: _Search, schema: str) -> list[str]:
    owner = await search.connection.fetchval(_STATEMENTS["schema_owner"], schema)
    if owner is None:
        if not await search.connection.fetchval(_STATEMENTS["lacks_create_on_database"], search.role):
            return []
        database = await search.connection.fetchval("SELECT quote_ident(current_database())")
        return [f"GRANT CREATE ON DATABASE {database} TO {search.quoted};"]
    statements = await search.to_own("SCHEMA", await _quoted(search.connection, schema), owner)
    for table in await search.connection.fetch(_STATEMENTS["schema_tables"], schema):
        statements += await search.to_own("TABLE", table["name"], table["owner"])
    return statements
